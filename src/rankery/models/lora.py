"""LoRA through peft: small matrices beside frozen weights, and the way back into them.

Contract: the adapters stand in the transformers model itself, so that every engine sees one model; the head is trained whole.
An adapter directory is peft's format (adapter_config.json, adapter_model.safetensors) with our contract beside it: its
golden scores say that the base is the one it was trained on. Cost of a checkpoint: the adapters, not the base. Rejected:
peft's wrapper around the model, which would rename every weight of it. Hu et al. 2022: W + (alpha / rank) B A.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rankery.errors import InputError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # what peft's wrapper puts before the names of a model
ALL_LINEAR = "all-linear"


def base_of(folder: Path) -> tuple[str, str | None] | None:
    """(name or path, revision) of the base model of an adapter directory; None where the folder is none.

    Raises:
        InputError: an adapter configuration that cannot be read.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return str(settings["base_model_name_or_path"]), settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is no adapter configuration ({error!r}); expected the file as saved") from None


def base_and_hub(name: str, hub: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(what to load the model from, with which hub options): a model itself, or the base of an adapter directory."""
    found = base_of(Path(name))
    return (found[0], {**hub, "revision": found[1]}) if found else (name, hub)


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
    trained = {
        name
        for name, _ in model.named_parameters()
        if name in model.new_weights or (head is not None and name.startswith(f"{head}."))
    }
    adapted = [name for name in chosen if not any(weight.startswith(f"{name}.") for weight in trained)]
    if not adapted:
        found = ", ".join(sorted({type(module).__name__ for module in model.modules() if not list(module.children())}))
        raise InputError(
            f"lora_target_modules: {targets!r} leaves no layer to adapt: the head is trained whole, and of other layers only "
            f"torch.nn.Linear takes adapters here (the model is made of {found}); name such layers, or leave lora_rank empty"
        )
    saved = sorted({name.rpartition(".")[0] for name in trained})
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=adapted,
        task_type="SEQ_CLS" if head else "CAUSAL_LM", modules_to_save=saved or None, base_model_name_or_path=base,
        revision=revision,
    )  # fmt: skip
    torch.manual_seed(seed)
    _inject(model, config, trained)


def load_adapters(model: Any, folder: Path) -> None:
    """Puts the adapters of a directory into their base model.

    Raises:
        InputError: peft is not installed, or the adapters cannot be read or do not fit the model.
    """
    _require_peft()
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = LoraConfig.from_pretrained(str(folder))
        state = {_inner_name(name): tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: its adapters could not be read: {error}; expected {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} as saved"
        ) from error
    try:
        _inject(model, config, {name for name in state if "lora_" not in name})
    except ValueError as error:
        raise InputError(f"{folder}: its adapters do not fit {config.base_model_name_or_path}: {error}") from None
    own = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise InputError(
            f"{folder}: its adapters do not fit {config.base_model_name_or_path}; expected the base that they were trained on"
        )
    model.load_state_dict(state, strict=False)
    model.new_weights -= state.keys()  # a head that came with the adapters is none


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


def _peft_name(name: str) -> str:
    return PEFT_PREFIX + name.replace(".default.", ".")


def _inner_name(name: str) -> str:
    name = name.removeprefix(PEFT_PREFIX)
    for kind in ("lora_A", "lora_B"):
        name = name.replace(f".{kind}.", f".{kind}.default.")
    return name


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise InputError("LoRA needs peft, which is not installed: pip install 'rankery[peft]'")
