"""LoRA through peft: small matrices beside frozen weights, and the way back into them.

Contract: the adapters stand in the transformers model itself, so that every engine sees one model; the head is trained whole.
An adapter directory is peft's format (adapter_config.json, adapter_model.safetensors) with our contract beside it: its
golden scores say that the base is the one it was trained on. Cost of a checkpoint: the adapters, not the base. Rejected:
peft's wrapper around the model, which would rename every weight of it. Hu et al. 2022: W + (alpha / rank) B A.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rankery.errors import InputError
from rankery.models.sizes import tensor_shapes

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DORA = "lora_magnitude_vector"  # of weight-decomposed adapters, Liu et al. 2024
PEFT_PREFIX = "base_model.model."  # what peft's wrapper puts before the names of a model
ALL_LINEAR = "all-linear"
# Settings of peft that are applied here, or mean nothing to scores; any other that is set is refused by its name.
APPLIED = {
    *(
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
    ),
    *(
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "modules_to_save",
    ),
    *(
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
    ),
    *("use_dora", "lora_bias", "qalora_group_size"),
}


def adapter_settings(folder: Path) -> dict[str, Any] | None:
    """What the configuration of an adapter directory says; None where the folder is none.

    Raises:
        InputError: an adapter configuration that cannot be read, or of something that is not applied here.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        base, revision, kind = settings["base_model_name_or_path"], settings.get("revision"), settings.get("peft_type")
        if not isinstance(base, str | None) or not isinstance(revision, str | None):
            raise TypeError("base_model_name_or_path and revision are no texts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: is no adapter configuration ({error!r:.80}); expected the file as saved") from None
    if kind != "LORA":
        raise InputError(
            f"{file}: is of adapters of kind {kind!r:.80}; expected LORA: merge them into the base with peft first"
        )
    more = ["bias"] if settings.get("bias") not in (None, "none") else []
    if others := more + sorted(key for key, value in settings.items() if value and key not in APPLIED):
        raise InputError(
            f"{file}: sets {', '.join(others)[:80]}, which rankery does not apply; merge the adapters into the base with peft first "
            "(merge_and_unload), and use that model"
        )
    return dict(settings)


class Source(NamedTuple):
    """What a model and its tokenizer are read from, each with its hub options."""

    base: str
    base_hub: dict[str, Any]
    tokenizer: str
    tokenizer_hub: dict[str, Any]


def find_source(name: str, hub: dict[str, Any], base_model: str | None = None) -> Source:
    """A model itself, or the base of an adapter directory, whose tokenizer is that of the directory where it has one.

    Args:
        name: folder, or name on a hub.
        hub: options of loading from it.
        base_model: where the base of the adapters is now; None: where their configuration says.

    Raises:
        InputError: no base is named, or it is not there; a base for what are no adapters.
    """
    settings = adapter_settings(Path(name))
    if settings is None:
        if base_model is not None:
            raise InputError(f"base_model is {base_model!r}, but {name} is no adapter directory: leave base_model out")
        return Source(name, hub, name, hub)
    said = settings["base_model_name_or_path"]
    base = os.path.expanduser(said or "") if base_model is None else os.path.expanduser(base_model)
    gone = base.startswith((".", "/", "~")) and not os.path.exists(base)
    if not base or gone:
        raise InputError(
            f"{name}: holds adapters of {base or said!r}, which is not there; write where their base is now into "
            f"{ADAPTER_CONFIG} (base_model_name_or_path), or in Python name it: base_model"
        )
    base_hub = {**hub, "revision": settings.get("revision") if base_model is None else None}
    has_tokenizer = any((Path(name) / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    return Source(base, base_hub, name, hub) if has_tokenizer else Source(base, base_hub, base, base_hub)


def labels_of_adapters(folder: Path) -> int | None:
    """Logits of the head that an adapter directory holds; None where it holds none.

    Raises:
        InputError: weights that are not whole.
    """
    file = folder / ADAPTER_WEIGHTS
    shapes = tensor_shapes(file) if file.is_file() else {}
    heads = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
    found = [shape[0] for name, shape in shapes.items() if name.removeprefix(PEFT_PREFIX) in heads]
    return found[0] if found else None


def add_adapters(
    model: Any,
    base: str,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str | Sequence[str],
    seed: int,
    revision: str | None = None,
) -> None:
    """Puts new adapters into a transformers model, which are nothing at first (B is zero).

    All but them, the head and what else the base's checkpoint did not hold (a pooler, say) freezes.

    Args:
        model: a transformers model; `new_weights` names what was initialised when it was loaded.
        base: where it came from, with its revision; kept in the adapter directory.
        rank: rank of the adapters.
        alpha: their weight is alpha / rank.
        dropout: on what goes into them.
        targets: names of linear layers, or the ends of their names; "all-linear": all within the model's layers.
        seed: makes them reproducible.

    Raises:
        InputError: peft is not installed, a target matches nothing, or no layer is left.
    """
    _require_peft()
    from peft import LoraConfig

    vocabulary = model.get_output_embeddings() if _head_name(model) is None else None  # read by rows, not called
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not vocabulary
    ]
    if targets == ALL_LINEAR:
        chosen = [name for name in linear if any(part.isdigit() for part in name.split("."))]  # in a numbered layer
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        missing = [target for target in wanted if not any(_matches(name, target) for name in linear)]
        if missing:
            ends = sorted({name.split(".")[-1] for name in linear})
            raise InputError(
                f"lora_target_modules: {', '.join(missing)} matches no linear layer; the model has {', '.join(ends)}"
            )
        chosen = [name for name in linear if any(_matches(name, target) for target in wanted)]
    head = _head_name(model)
    trained = {name for name, _ in model.named_parameters() if name in model.new_weights or _is_under(name, head)}
    adapted = [name for name in chosen if not any(weight.startswith(f"{name}.") for weight in trained)]
    if not adapted:
        found = ", ".join(sorted({type(module).__name__ for module in model.modules() if not list(module.children())}))
        raise InputError(
            f"lora_target_modules: {targets!r} leaves no layer to adapt: the head is trained whole, and of other layers only "
            f"torch.nn.Linear takes adapters here (the model is made of {found}); name such layers, or leave lora_rank empty"
        )
    # The whole head by its name, which peft adds for itself: parts of it would be wrapped twice.
    saved = sorted({name.split(".")[0] if _is_under(name, head) else name.rpartition(".")[0] for name in trained})
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=adapted,
        task_type="SEQ_CLS" if head else "CAUSAL_LM", modules_to_save=saved or None, base_model_name_or_path=base,
        revision=revision,
    )  # fmt: skip
    torch.manual_seed(seed)
    _inject(model, config, trained)


def load_adapters(model: Any, folder: Path, base: str, revision: str | None = None) -> None:
    """Puts the adapters of a directory into their base model, which is kept as where they belong.

    Raises:
        InputError: peft is not installed, or the adapters cannot be read, do not fit the model, or change its vocabulary head.
    """
    _require_peft()
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensor_shapes(folder / ADAPTER_WEIGHTS)
        config = LoraConfig.from_pretrained(str(folder))
        state = {_inner_name(name): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: its adapters could not be read: {error}; expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} as saved"
        ) from error
    config.base_model_name_or_path = base
    config.revision = revision
    trained = {name for name in state if "lora_" not in name}
    tied = tied_weights(model)
    if whole := sorted(trained & (tied.keys() | set(tied.values()))):
        raise InputError(
            f"{folder}: its adapters hold {', '.join(whole)} whole, which the base shares between its first and its last layer; merge "
            "them into the base with peft first (merge_and_unload), and use that model"
        )
    try:
        _inject(model, config, trained)
    except ValueError as error:
        raise InputError(f"{folder}: its adapters do not fit {base}: {error}") from None
    vocabulary = model.get_output_embeddings() if _head_name(model) is None else None
    if hasattr(vocabulary, "base_layer"):
        raise InputError(
            f"{folder}: has adapters on the vocabulary head (lm_head), of which a yes/no head reads rows alone; merge them into the "
            "base with peft first (merge_and_unload), and use that model"
        )
    own = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise InputError(f"{folder}: its adapters do not fit {base}; expected the base that they were trained on")
    model.load_state_dict(state, strict=False)
    model.new_weights -= state.keys()  # a head that came with the adapters is none


def tied_weights(model: Any) -> dict[str, str]:
    """Weights that are others under a second name: the name that transformers leaves out of a directory -> the one it keeps.

    By name, since gathered and cast states hold them twice, and of tensors that share memory a choice would be made by chance.
    """
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def has_adapters(model: Any) -> bool:
    return hasattr(model, "peft_config")


def save_adapters(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes the adapters and the head of a model's `state` in peft's format."""
    from safetensors.torch import save_file

    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file({_peft_name(name): state[name].contiguous() for name in trained}, folder / ADAPTER_WEIGHTS)
    model.peft_config["default"].save_pretrained(str(folder))


def merge_adapters(model: Any) -> None:
    """W + (alpha / rank) B A for each weight, in place; the adapters are gone."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    del model.peft_config
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def _inject(model: Any, config: Any, trained: set[str]) -> None:
    """Adapters into the model; they and the parameters named `trained` are all that learns."""
    from peft import inject_adapter_in_model

    kept, config.modules_to_save = config.modules_to_save, None  # the head needs no copy: it is trained where it is
    inject_adapter_in_model(config, model)
    config.modules_to_save = kept
    config.inference_mode = False
    model.peft_config = {"default": config}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name in trained)


def _head_name(model: Any) -> str | None:
    """The classification head's name; None for a language model."""
    return next((name for name in ("score", "classifier") if hasattr(model, name)), None)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_under(name: str, module: str | None) -> bool:
    return module is not None and name.startswith(f"{module}.")


def _peft_name(name: str) -> str:
    name = name.replace(f"{DORA}.default.weight", DORA).replace(".default.", ".")
    return PEFT_PREFIX + name.removesuffix(".default")  # of embeddings


def _inner_name(name: str) -> str:
    name = name.removeprefix(PEFT_PREFIX)
    if name.endswith(f".{DORA}"):
        return f"{name}.default.weight"
    if name.endswith((".lora_embedding_A", ".lora_embedding_B")):
        return f"{name}.default"
    for kind in ("lora_A", "lora_B"):
        name = name.replace(f".{kind}.", f".{kind}.default.")
    return name


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise InputError("LoRA needs peft, which is not installed: pip install 'rankery[peft]'")
