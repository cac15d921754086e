"""Token budgets that `rankery tune` has measured, by what they were measured on.

Contract: one small JSON file in the cache folder; a training that names no token_budget takes the one that stands there for its
model, device and precision, and writes it to its own configuration, so that reruns and resumed runs do not depend on this file.
A file that cannot be read, or was changed by somebody, counts as empty: it costs a measurement, no more.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from rankery.config import TrainConfig
from rankery.data.encoding import default_cache_folder
from rankery.models.folders import write_whole
from rankery.sealed import Schema, read_sealed, sealed

TUNED_FILE = "token_budgets.json"
LARGEST = 1 << 30  # tokens; nobody measures more


def tuned_file(config: TrainConfig) -> Path:
    return Path(config.dataset_cache_dir or default_cache_folder()) / TUNED_FILE


def tuned_key(config: TrainConfig, model_config: Any, layout: str, device: torch.device) -> str:
    """What a measurement holds for: the model's shape and how it is trained, on which device."""
    text = model_config.get_text_config()
    shape = [getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")]
    on = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.processor()}".strip()
    )
    parts = {
        "model": f"{text.model_type} {'x'.join(map(str, shape))}",
        "device": on,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "precision": config.mixed_precision,
        "gradient_checkpointing": config.gradient_checkpointing,
        "activation_offload": config.activation_offload,
        "lora_rank": config.lora_rank,
        "layout": layout,
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value not in (None, False))


class Tuned(Schema):
    """token_budgets.json: a budget for each key; what is no budget is of another rankery, and left alone."""


def read_tuned(file: Path) -> dict[str, int]:
    """Budgets by key."""
    try:
        found = read_sealed(file, Tuned)
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if type(value) is int and 0 < value <= LARGEST}


def write_tuned(file: Path, key: str, budget: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, sealed({**read_tuned(file), key: budget}) + "\n")
