"""What loading any kind of reranker shares: where it runs, in which precision, and one clear error when it cannot be loaded.

Contract: nothing is downloaded that was not asked for, no code of a checkpoint runs unless trusted, and transformers' own
warnings (a new head is a missing weight to it) stay silent.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rankery.errors import InputError, NewHeadWarning, check_whole
from rankery.models.budget import computes_bf16
from rankery.models.quiet import quiet
from rankery.models.sizes import check_config_file, damaged

DEFAULT_MAX_LEN = 512
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that weights can be in
# Arguments of transformers' from_pretrained: fp32, and weights that do not fit are reported to `new_weights`, not raised.
REPORTED: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
EXPECTED = "expected a folder with config.json, model.safetensors and tokenizer.json, or a name on a model hub that can be reached"
NO_LAYER = r"(?!.*\.\d+\.).*"  # names of modules that are in no numbered layer
UNREAD_DECODERS = ("modernbert-decoder",)
ALIGNED_BYTES = 64  # as torch's own allocations
# What the families call their dropout.
DROPOUT_NAMES = {
    "hidden": ("hidden_dropout_prob", "hidden_dropout", "dropout", "embedding_dropout", "mlp_dropout"),
    "attention": ("attention_probs_dropout_prob", "attention_dropout"),
}


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns what transformers raises into one InputError, and keeps it quiet.

    Raises:
        InputError: the model is not there, or cannot be read.
    """
    if name.startswith((".", "/", "~")) and not os.path.exists(name):
        raise InputError(f"model_name_or_path is {name!r}; there is no such folder; {EXPECTED}")
    check_config_file(name)
    try:
        with quiet():
            yield
    except (InputError, Warning, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # files of others make libraries raise anything
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust code
            raise
        raise InputError(_not_loaded(name, error)) from error


def _not_loaded(name: str, error: BaseException) -> str:
    """One line for whatever a library raised while it read a model's files."""
    pickles = sorted(Path(name).glob("pytorch_model*.bin")) if os.path.isdir(name) else []
    if pickles and isinstance(error, (pickle.UnpicklingError, EOFError)):
        return damaged(pickles[0], "it is a pickle of other objects than tensors, or broken")
    first = " ".join(str(error).split())[:400].rstrip(".")
    kind = "" if isinstance(error, (OSError, ValueError, ImportError)) and first else f"{type(error).__name__}: "
    return f"model_name_or_path is {name!r}; it could not be loaded: {kind}{first}; {EXPECTED}"


def check_tokenizer(name: str, tokenizer: Any, config: Any) -> None:
    """Without its files, transformers makes a tokenizer of the special tokens alone."""
    known, expected = len(tokenizer), getattr(config, "vocab_size", 0)
    if known < expected // 2:
        raise InputError(
            f"model_name_or_path is {name!r}; its tokenizer has {known} tokens, the model {expected}: tokenizer.json is missing"
        )


def has_classifier(config: Any) -> bool:
    """Whether a checkpoint says that it holds a classification head."""
    return any("ForSequenceClassification" in kind for kind in config.architectures or [])


def is_decoder_family(config: Any) -> bool:
    """Whether a checkpoint is of a family of causal language models, whose tokens see only those before them."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type  # BERT and its like have a causal class too
    is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return is_causal and not getattr(config, "is_encoder_decoder", False)


def check_encoder(name: str, config: Any) -> None:
    """A cross-encoder's head reads the first token, which has to see all others.

    Raises:
        InputError: the checkpoint is a decoder.
    """
    if config.model_type in UNREAD_DECODERS:
        raise InputError(_unread(name, config))
    if is_decoder_family(config):
        raise InputError(
            f"model_name_or_path is {name!r}, a decoder ({config.model_type}); expected an encoder such as BERT or XLM-RoBERTa: "
            "choose one, or set model_type=llm_decoder (in Python: LLMDecoder)"
        )


def check_decoder(name: str, config: Any) -> None:
    """An LLM decoder's head reads its last hidden state, with nothing between.

    Raises:
        InputError: the family has more layers there.
    """
    if config.model_type in UNREAD_DECODERS:
        raise InputError(_unread(name, config))


def _unread(name: str, config: Any) -> str:
    return (
        f"model_name_or_path is {name!r}, a decoder of a family ({config.model_type}) that puts a dense layer between its last hidden state "
        "and its head, which rankery does not read, neither as llm_decoder nor as bert_encoder; choose another decoder (Qwen, Llama), "
        "or an encoder (ModernBERT)"
    )


def check_family(name: str, config: Any) -> None:
    """A score head wants a sequence-classification class of the model's family.

    Raises:
        InputError: transformers has none (Granite, Cohere, Mamba), and the checkpoint brings none.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    brought = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not brought:
        raise InputError(
            f"{name}: transformers has no sequence-classification class for its family ({config.model_type}), which a score head "
            "needs; use it as a language model (model_type=llm_decoder, head=yes_no), or choose another one"
        )


def choose_labels(name: str, config: Any, wanted: int | None) -> int:
    """Logits of the head: what is asked for, which a head that is there must have; else as saved, 1 for a base model.

    Raises:
        InputError: shows both.
    """
    if not has_classifier(config):
        return wanted or 1
    if wanted not in (None, config.num_labels):
        raise InputError(
            f"model_name_or_path is {name!r}, whose head gives {config.num_labels} logits, but num_labels is {wanted}; set "
            f"num_labels to {config.num_labels}, or start from a base model without a head"
        )
    return int(config.num_labels)


def new_weights(name: str, model: Any, report: Mapping[str, Any], has_head: bool) -> frozenset[str]:
    """The weights that a checkpoint did not hold: those of a head, unless it `has_head`, and a pooler's.

    Args:
        name: of the checkpoint.
        model: as loaded, weights of another shape ignored.
        report: transformers' `output_loading_info`.
        has_head: the checkpoint says that it holds a head.

    Raises:
        InputError: others, which transformers would leave random; weights of another shape.
    """
    if shapes := sorted((key, tuple(held), tuple(wanted)) for key, held, wanted in report["mismatched_keys"]):
        key, held, wanted = shapes[0]
        raise InputError(
            f"model_name_or_path is {name!r}, whose files hold {key} as {held}, but a {type(model).__name__} with num_labels "
            f"{model.config.num_labels} has it as {wanted}; set num_labels to that of its head, or choose another model"
        )
    missing = report["missing_keys"]
    known, inside = dict(model.named_parameters()), f"{model.base_model_prefix}."
    lost = [
        key
        for key in sorted(missing)
        if key in known and (has_head or (key.startswith(inside) and "pooler" not in key))
    ]
    if lost:
        named = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        raise InputError(
            f"model_name_or_path is {name!r}; {len(lost)} of the {len(known)} weights of a {type(model).__name__} are not in its "
            f"files ({named}) and would be random: expected the whole model, as its config.json describes it"
        )
    return frozenset(missing)


def new_head(model: Any) -> list[str]:
    """Names of weights outside the base that were not in the checkpoint: while there are some, scores mean nothing."""
    return sorted(name for name in model.new_weights if not name.startswith(f"{model.base_model_prefix}."))


def warn_of_new_head(name: str, model: Any) -> None:
    """Says that a model's head was not in its checkpoint, so that its scores mean nothing until it is trained."""
    if head := new_head(model):
        warnings.warn(
            f"model_name_or_path is {name!r}, a base model: its head ({', '.join(head)}) is new and random, and so are its scores; "
            "train it, or choose a reranker",
            NewHeadWarning,
            stacklevel=3,
        )


def set_dropout(config: Any, hidden: float | None, attention: float | None) -> None:
    """Sets the dropout that a family has, under its own names; None leaves it."""
    for kind, value in (("hidden", hidden), ("attention", attention)):
        names = [name for name in DROPOUT_NAMES[kind] if hasattr(config, name)]
        if value and not names:
            raise ValueError(
                f"{kind}_dropout is {value}, but {type(config).__name__} has none of {DROPOUT_NAMES[kind]}"
            )
        for name in names if value is not None else ():
            setattr(config, name, value)


def position_limit(model: Any) -> int | None:
    """Longest sequence that the model has positions for; None where it has no such limit.

    RoBERTa's positions start after the pad id, so that its table holds fewer than its size; Nystromformer's table is longer than
    what it takes.
    """
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    said = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(table, torch.nn.Embedding):
        held = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        return min(held, said or held)
    return said


def choose_max_len(wanted: int | None, saved: int | None, limit: int | None, tokenizer: Any, name: str) -> int:
    """Tokens of a pair: what is asked for, else as saved, else what model and tokenizer take, 512 at most."""
    check_whole("max_len", wanted)
    if wanted is None:
        wanted = saved or min(n for n in (limit, tokenizer.model_max_length, DEFAULT_MAX_LEN) if n)
    if limit is not None and wanted > limit:
        raise InputError(f"max_len is {wanted}; {name} takes at most {limit} tokens: set max_len to {limit} or less")
    return wanted


def choose_device(name: str | torch.device | None) -> torch.device:
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


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The named dtype; None: float32 on CPUs, bfloat16 on accelerators that compute in it."""
    if dtype is None:
        native = device.type == "cuda" and computes_bf16()
        return torch.bfloat16 if native else torch.float32
    if isinstance(dtype, str):
        named = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(dtype, dtype)
        dtype = getattr(torch, named, dtype)
    if dtype not in DTYPES:
        raise InputError(f"dtype is {str(dtype)!r}; expected float32, bfloat16 or float16")
    if dtype == torch.float16 and device.type == "cpu":
        raise InputError("dtype is float16 on a CPU, which computes it slowly and badly; expected float32 or bfloat16")
    return dtype


def four_bit(wanted: bool, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers' from_pretrained that keep the linear layers of a model's layers in 4 bits (NF4, Dettmers et al.
    2023), made on their device. What stands in no numbered layer, heads and poolers, stays whole: it is small, and trained.

    Raises:
        InputError: bitsandbytes is not installed.
    """
    if not wanted:
        return {}
    if find_spec("bitsandbytes") is None:
        raise InputError("load_in_4bit is true, but bitsandbytes is not installed: pip install 'rankery[qlora]'")
    from transformers import BitsAndBytesConfig

    computed = torch.bfloat16 if computes_bf16() else torch.float32
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed, llm_int8_skip_modules=[NO_LAYER]
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def placed(model: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """The model on its device, its weights in a precision (None: as they are); 4-bit weights keep theirs.

    Weights that a file maps into memory are copied out of it: how matrix products round depends on where in memory their
    factors begin, so a resumed run would not be the uninterrupted one, bit for bit. Buffers keep theirs too, as transformers loads them: rotary frequencies in bf16 put far tokens in wrong places.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        for module in model.modules():
            # On some CPUs bitsandbytes would lay weights out anew in the first pass that scores: only of sizes that 64 divides,
            # not for several threads at once, and never to be trained again.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    elif dtype is not None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNED_BYTES:
            parameter.data = parameter.data.clone()
    return model if device is None else model.to(device)
