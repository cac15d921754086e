"""BERT-like rerankers: query and document in one sequence, scored by a classification head.

Contract: any transformers encoder with a sequence-classification class and a fast tokenizer; a folder that rankery saved
needs nothing but its path, and is checked against its contract. Rejected: a model class of our own around the encoder,
which other libraries could not load.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from rankery.data.template import pair_template
from rankery.errors import InputError
from rankery.models.budget import computes_bf16
from rankery.models.contract import check_arguments, check_template, read_contract, verify_golden
from rankery.models.reranker import Reranker

DEFAULT_MAX_LEN = 512
# What the families call their dropout.
DROPOUT_NAMES = {
    "hidden": ("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout"),
    "attention": ("attention_probs_dropout_prob", "attention_dropout"),
}


class CrossEncoder(Reranker):
    """A BERT-like reranker."""

    model_type = "bert_encoder"

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        num_labels: int | None = None,
        *,
        max_len: int | None = None,
        query_format: str | None = None,
        document_format: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        seed: int | None = None,
        verify: bool = True,
        trust_remote_code: bool = False,
        revision: str | None = None,
        cache_dir: str | None = None,
        hidden_dropout: float | None = None,
        attention_dropout: float | None = None,
    ) -> CrossEncoder:
        """Loads a reranker, or a base encoder with a new head.

        Args:
            model_name_or_path: folder, or name on the model hub.
            num_labels: logits; None: as saved, 1 for a base model.
            max_len: tokens of a pair at most; None: as saved, else what the model takes, 512 at most.
            query_format: text around the query (`{}`); None: as saved, else the query alone.
            document_format: same for the document.
            device: None: the accelerator if there is one, else the CPU.
            dtype: torch dtype or its name; None: float32 on CPUs, bfloat16 on accelerators that compute in it.
            seed: makes the new head of a base model reproducible.
            verify: score the contract's probes and compare; False skips it.
            trust_remote_code: run model code that the checkpoint brings along.
            revision: branch, tag or commit on the hub.
            cache_dir: folder of downloads.
            hidden_dropout: dropout on hidden states in training; None: the model's own.
            attention_dropout: same on attention probabilities.

        Raises:
            InputError: no such model, arguments that contradict the contract, or scores that do.
        """
        model_name_or_path = os.path.expanduser(model_name_or_path)
        contract = read_contract(Path(model_name_or_path))
        wanted = {"num_labels": num_labels, "query_format": query_format, "document_format": document_format}
        check_arguments(contract, {**wanted, "model_type": cls.model_type}, model_name_or_path)
        hub = {"trust_remote_code": trust_remote_code, "revision": revision, "cache_dir": cache_dir}
        device = _device(device)
        dtype = _dtype(dtype, device)
        if seed is not None:
            torch.manual_seed(seed)
        model, tokenizer = _load(
            model_name_or_path, num_labels, hub, {"hidden": hidden_dropout, "attention": attention_dropout}
        )
        saved = contract or {}
        limit = position_limit(model)
        if max_len is None:
            known = [n for n in (limit, tokenizer.model_max_length, DEFAULT_MAX_LEN) if n]
            max_len = saved.get("max_len") or min(known)
        if limit is not None and max_len > limit:
            raise InputError(
                f"max_len is {max_len}; {model_name_or_path} takes at most {limit} tokens: set max_len to {limit} or less"
            )
        template = pair_template(
            tokenizer,
            max_len,
            query_format or saved.get("query_format", "{}"),
            document_format or saved.get("document_format", "{}"),
            uses_token_types=(getattr(model.config, "type_vocab_size", 0) or 0) > 1,
        )
        labels = (saved.get("min_label", 0.0), saved.get("max_label", 1.0))
        reranker = cls(model.to(device=device, dtype=dtype).eval(), tokenizer, template, labels)
        if contract is not None:
            check_template(contract, template, model_name_or_path)
            if verify:
                verify_golden(contract, reranker, model_name_or_path)
        return reranker


def position_limit(model: Any) -> int | None:
    """Longest sequence that the model has positions for; None where it has no such limit.

    RoBERTa's positions start after the pad id, so that its table holds fewer than its size.
    """
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(model.config, "max_position_embeddings", None)


def _load(name: str, num_labels: int | None, hub: dict[str, Any], dropout: dict[str, float | None]) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if name.startswith((".", "/", "~")) and not os.path.isdir(name):
        raise InputError(f"model_name_or_path is {name!r}; there is no such folder")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it reports the new head of every base model as missing weights
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name, **hub)
        is_reranker = any("ForSequenceClassification" in kind for kind in config.architectures or [])
        config.num_labels = num_labels or (config.num_labels if is_reranker else 1)
        _set_dropout(config, dropout)
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
        model = AutoModelForSequenceClassification.from_pretrained(name, config=config, dtype=torch.float32, **hub)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = " ".join(str(error).split())[:400]
        raise InputError(
            f"model_name_or_path is {name!r}; it could not be loaded: {first}; expected a folder with config.json, "
            "model.safetensors and tokenizer.json, or a name on a model hub that can be reached"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # Without its files, transformers makes a tokenizer of the special tokens alone.
    known, expected = len(tokenizer), getattr(config, "vocab_size", 0)
    if known < expected // 2:
        raise InputError(
            f"model_name_or_path is {name!r}; its tokenizer has {known} tokens, the model {expected}: tokenizer.json is missing"
        )
    return model, tokenizer


def _set_dropout(config: Any, dropout: dict[str, float | None]) -> None:
    for kind, value in dropout.items():
        names = [name for name in DROPOUT_NAMES[kind] if hasattr(config, name)]
        if value is not None and not names:
            raise ValueError(
                f"{kind}_dropout is {value}, but {type(config).__name__} has none of {DROPOUT_NAMES[kind]}"
            )
        for name in names if value is not None else ():
            setattr(config, name, value)


def _device(name: str | torch.device | None) -> torch.device:
    """A device that this machine has; None: its accelerator, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    default = torch.device(accelerator.type) if accelerator is not None else torch.device("cpu")
    if name is None:
        return default
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", default.type):
        raise InputError(f"device is {str(name)!r}; expected cpu{'' if default.type == 'cpu' else f' or {default}'}")
    return device


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        native = device.type == "cuda" and computes_bf16()
        return torch.bfloat16 if native else torch.float32
    if isinstance(dtype, str):
        named = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(dtype, dtype)
        found = getattr(torch, named, None)
        if not isinstance(found, torch.dtype):
            raise InputError(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
        dtype = found
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError("dtype is float16 on a CPU, which computes it slowly and badly; expected float32 or bfloat16")
    return dtype
