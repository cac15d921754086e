"""How the folder of an embedding model makes a vector of a text: sentence-transformers' modules.json and what it names.

    transformer -> pooling (cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken, or several) -> Dense, Normalize, ...

Contract: the vectors are sentence-transformers' (Reimers and Gurevych 2019), whose names and formats these are; a module that is not
known here is refused by name, not left out. A folder without modules.json is a plain encoder: the mean of its last states. Cost: a few
small files. Rejected: sentence-transformers itself, a dependency of every evaluation and of the demo for one pooled state.

Shapes: B texts, N tokens, H hidden.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankery.errors import InputError

if TYPE_CHECKING:
    import torch

MODULES_FILE, SETTINGS_FILE, PROMPTS_FILE = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")


@dataclass(frozen=True)
class Recipe:
    """What a folder says of its vectors."""

    transformer: Path  # folder of model and tokenizer
    is_plain: bool = True  # nothing but an encoder
    modes: tuple[str, ...] = ("mean",)  # side by side
    after: tuple[tuple[str, Path], ...] = ()  # (Dense or Normalize, its folder), in order
    max_len: int | None = None  # None: what the model takes
    lower_case: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    include_prompt: bool = True  # False: a prompt's tokens are read, but not pooled


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a folder.

    Raises:
        InputError: modules that are not known here, or files that cannot be read.
    """
    if not (folder / MODULES_FILE).is_file():
        return Recipe(folder)
    modules = _read(folder / MODULES_FILE, list)
    try:
        found = [(str(module["type"]).rpartition(".")[2], folder / module["path"]) for module in modules]
    except (TypeError, KeyError):
        raise InputError(f"{folder / MODULES_FILE}: expected a list of modules with type and path") from None
    kinds = [kind for kind, _ in found]
    after = tuple((kind, place) for kind, place in found[2:] if kind != "Dropout")
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind not in ("Dense", "Normalize") for kind, _ in after):
        raise InputError(
            f"{folder}: its modules are {', '.join(kinds)[:80]}; expected Transformer, Pooling, and Dense and Normalize after them: "
            "score it with sentence-transformers, and compare its run (--run)"
        )
    place, pooling = found[0][1], _read(found[1][1] / "config.json", dict)
    settings = _read(place / SETTINGS_FILE, dict) if (place / SETTINGS_FILE).is_file() else {}
    own = _read(folder / PROMPTS_FILE, dict) if (folder / PROMPTS_FILE).is_file() else {}
    prompts = own.get("prompts") or {}
    default = prompts.get(own.get("default_prompt_name"), "")
    document = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), default)
    return Recipe(
        place, False, _modes(found[1][1], pooling), after, settings.get("max_seq_length"), bool(settings.get("do_lower_case")),
        prompts.get("query", default), document, bool(pooling.get("include_prompt", True)),
    )  # fmt: skip


def _modes(folder: Path, pooling: dict[str, Any]) -> tuple[str, ...]:
    given = pooling.get("pooling_mode") or [mode for key, mode in OLD_MODES.items() if pooling.get(key)] or "mean"
    modes = (given,) if isinstance(given, str) else tuple(given)
    if bad := [mode for mode in modes if mode not in MODES]:
        raise InputError(f"{folder}: pooling_mode is {bad[0]!r:.80}; expected one of {', '.join(MODES)}")
    return modes


def _read(file: Path, kind: type) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({str(error)[:80]}); expected JSON") from error
    if not isinstance(content, kind):
        raise InputError(f"{file}: expected a JSON {'object' if kind is dict else kind.__name__}")
    return content


def pooled(states: torch.Tensor, mask: torch.Tensor, modes: tuple[str, ...], skipped: int = 0) -> torch.Tensor:
    """Vectors [B, H x modes] fp32 of last hidden states [B, N, H] and their mask [B, N], padded on the right; the first `skipped` tokens
    of a text take no part.
    """
    import torch

    position = torch.arange(1, states.shape[1] + 1, device=states.device)
    real = mask.bool() & (position > skipped)
    weights = real.unsqueeze(-1).float()
    states = states.float()
    last = (mask.sum(1) - 1).clamp(min=0)
    rows = torch.arange(len(states), device=states.device)

    def one(mode: str) -> torch.Tensor:
        if mode == "cls":
            return states[rows, real.int().argmax(1)]
        if mode == "lasttoken":
            return states[rows, last]
        if mode == "max":
            return states.masked_fill(weights == 0, -torch.inf).amax(1).nan_to_num(neginf=0.0)
        by_position = weights * position.view(1, -1, 1) if mode == "weightedmean" else weights
        count = by_position.sum(1).clamp(min=1e-9)  # no token at all: zeros, cosine 0
        return (states * by_position).sum(1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)

    return torch.cat([one(mode) for mode in modes], dim=1)


def open_dense(folder: Path) -> Any:
    """A Dense module: a linear layer and what follows it, in fp32.

    Raises:
        InputError: it cannot be read, or is of a form that is not known here.
    """
    import torch
    from safetensors.torch import load_file

    config = _read(folder / "config.json", dict)
    activation = str(config.get("activation_function") or "Identity").rpartition(".")[2]
    inputs = (config.get("module_input_name", "sentence_embedding"), config.get("module_output_name"))
    plain = inputs[0] == "sentence_embedding" and inputs[1] in (None, "sentence_embedding")
    if activation not in ACTIVATIONS or config.get("use_residual") or not plain:
        raise InputError(
            f"{folder}: is no linear layer with one of {', '.join(ACTIVATIONS)}; score the model with sentence-transformers, and "
            "compare its run (--run)"
        )
    try:
        weights = (
            load_file(folder / "model.safetensors")
            if (folder / "model.safetensors").is_file()
            else torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        )
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=bool(config.get("bias", True)))
        linear.load_state_dict({name.removeprefix("linear."): tensor.float() for name, tensor in weights.items()})
    except Exception as error:  # whatever a library makes of a damaged file
        raise InputError(
            f"{folder}: cannot be opened ({' '.join(str(error).split())[:80]}); restore its files"
        ) from error
    return torch.nn.Sequential(linear, getattr(torch.nn, activation)())
