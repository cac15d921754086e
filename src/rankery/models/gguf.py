"""Language models from GGUF files, through transformers.

Contract: the weights are unpacked to fp32; what is saved later is a plain directory that knows nothing of their quantisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rankery.errors import InputError
from rankery.models.loading import set_dropout


def find_gguf(name: str) -> tuple[str, str | None]:
    """(folder, file) of a GGUF file, or of a folder that holds one and no config.json; else (name, None)."""
    path = Path(name)
    if path.suffix == ".gguf":
        return str(path.parent), path.name
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    if len(files) > 1:
        raise InputError(f"model_name_or_path is {name!r}, which holds {len(files)} GGUF files; name one of them")
    return (name, files[0].name) if files else (name, None)


def load_gguf(
    folder: str, file: str, auto_class: Any, num_labels: int, dropout: tuple[float | None, ...]
) -> tuple[Any, Any]:
    """transformers unpacks the weights; a fresh model takes them, which knows nothing of their quantisation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unpacked = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    config = unpacked.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    config.num_labels = num_labels
    set_dropout(config, *dropout)
    fresh = auto_class.from_config(config, trust_remote_code=False).float()
    fresh.new_weights = frozenset()
    if auto_class is AutoModelForCausalLM:
        fresh.load_state_dict(unpacked.state_dict())
    else:
        fresh.base_model.load_state_dict(unpacked.base_model.state_dict())
        fresh.new_weights = frozenset({"score.weight"})
    return fresh, tokenizer
