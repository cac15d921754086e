"""Values of a configuration that are fine each, but not together; looked at before anything else happens.

Contract: a pure function of the configuration (and of what is installed); all problems, each with the place of its key.
Rejected: pydantic's model validators, which stop at the first problem of a model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rankery.objective import ALIASES, GRADED_LOSSES, LOSSES, OPTIONS, is_grouped, loss_weights

if TYPE_CHECKING:
    from rankery.config import TrainConfig

DECODER_KEYS = ("seq", "special_token", "prefix", "head", "yes_word", "no_word", "prompt", "instruction")
PRESET_KEYS = (
    "query_format",
    "document_format",
    "document_first",
    "seq",
    "special_token",
    "prefix",
    "yes_word",
    "no_word",
)


def contradictions(config: TrainConfig, places: Mapping[str, str]) -> list[tuple[tuple[str, ...], str]]:
    """(the keys involved, the problem): values that are fine each, but not together."""
    found: list[tuple[tuple[str, ...], str]] = []

    def problem(keys: tuple[str, ...], text: str) -> None:
        place = next((places[key] for key in keys if key in places), "default")
        found.append((keys, f"{place}: {text}"))

    low, high = config.min_label, config.max_label
    if low >= high:
        problem(
            ("max_label", "min_label"),
            f"min_label is {low:g} and max_label {high:g}; expected min_label below max_label",
        )
    if config.relevant_above is not None and low < high and not low <= config.relevant_above < high:
        problem(
            ("relevant_above", "max_label", "min_label"),
            f"relevant_above is {config.relevant_above:g} with labels from {low:g} to {high:g}; expected a number from min_label "
            "to below max_label: some labels have to be above it",
        )
    for key in ("query_format", "document_format"):
        value = getattr(config, key)
        if value is not None and "{}" not in value:
            problem((key,), f"{key} is {value!r}; expected a text with {{}} where the text goes")
    for key in DECODER_KEYS if config.model_type == "bert_encoder" else ():
        value = getattr(config, key)
        if value:
            problem((key, "model_type"), f"{key} is {value!r}; bert_encoder does not use it: leave it empty")
    for key in ("yes_word", "no_word"):
        value = getattr(config, key)
        if value and config.prompt is None and config.head != "yes_no":
            problem((key, "head"), f"{key} is {value!r}, but head is not yes_no; set head to yes_no, or leave it empty")
    _preset_problems(config, problem)
    if config.lora_rank is not None and not config.lora_merge and config.save_dtype != "fp32":
        problem(
            ("save_dtype", "lora_merge"),
            f"save_dtype is {config.save_dtype}, but lora_merge is false, and adapters are saved in fp32; set lora_merge to true, "
            "or leave save_dtype out",
        )
    for key in ("lora_alpha", "lora_dropout", "lora_target_modules"):
        if config.lora_rank is None and getattr(config, key) != type(config).model_fields[key].default:
            problem((key, "lora_rank"), f"{key} is {getattr(config, key)!r}, but lora_rank is empty; set it too")
    if config.load_in_4bit and config.lora_rank is None:
        problem(("load_in_4bit",), "load_in_4bit is true, but 4-bit weights cannot be trained; set lora_rank too")
    if config.load_in_4bit and find_spec("bitsandbytes") is None:
        problem(
            ("load_in_4bit",), "load_in_4bit is true, but bitsandbytes is not installed: pip install 'rankery[qlora]'"
        )
    if config.lora_rank is not None and find_spec("peft") is None:
        problem(
            ("lora_rank",), f"lora_rank is {config.lora_rank}, but peft is not installed: pip install 'rankery[peft]'"
        )
    if config.head == "yes_no" and config.num_labels > 1:
        problem(("num_labels", "head"), f"num_labels is {config.num_labels}; a yes_no head gives one score: expected 1")
    _loss_problems(config, problem)
    classes = high - low + 1
    if config.num_labels > 1 and (
        loss_weights(config.loss_type) != {"point_ce": 1.0} or config.num_labels != classes or not low.is_integer()
    ):
        problem(
            ("num_labels", "loss_type", "max_label", "min_label"),
            f"num_labels is {config.num_labels} with loss_type {config.loss_type} and labels from {low:g} to {high:g}; expected "
            f"num_labels 1, or one class for each integer label (max_label - min_label + 1 = {classes:g}) with point_ce",
        )
    if config.resume and config.overwrite:
        problem(("resume", "overwrite"), "resume and overwrite are both true; expected one of them")
    if config.patience is not None and (config.val_dataset is None or config.best_metric is None):
        problem(
            ("patience", "val_dataset", "best_metric"),
            f"patience is {config.patience}, but without val_dataset and best_metric nothing is compared; set both, or leave "
            "patience empty",
        )
    metrics = ["loss", "nDCG@10", "MRR@10", "MAP", "Kendall", *(f"Recall@{k}" for k in config.recall_at)]
    if config.best_metric not in (None, "auto", *metrics):
        problem(
            ("best_metric", "recall_at"),
            f"best_metric is {config.best_metric!r}; expected auto, or one of {', '.join(metrics)}",
        )
    for pattern in config.lr_groups:
        try:
            re.compile(pattern)
        except re.error as error:
            problem(("lr_groups",), f"lr_groups key {pattern!r} is no regular expression: {error}")
    return found


def _preset_problems(config: TrainConfig, problem: Callable[[tuple[str, ...], str], None]) -> None:
    """Keys that are set beside a preset, which would no longer ask as its models were trained to be asked."""
    own = [key for key in PRESET_KEYS if getattr(config, key) is not None]
    own += ["head"] if config.head == "score" else []
    if config.prompt is not None and own:
        problem(
            ("prompt", *own),
            f"prompt is {config.prompt}, which sets {', '.join(own)} too; leave {'them' if own[1:] else 'it'} empty, or leave "
            "prompt out",
        )


def _loss_problems(config: TrainConfig, problem: Callable[[tuple[str, ...], str], None]) -> None:
    """Losses that do not exist or are named twice, and options of losses that are not used."""
    given = [config.loss_type] if isinstance(config.loss_type, str) else list(config.loss_type)
    names = [ALIASES.get(name, name) for name in given]
    for name in [name for name in names if name not in LOSSES]:
        near = difflib.get_close_matches(name, [*LOSSES, *ALIASES], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        problem(("loss_type",), f"loss_type is {name!r}; expected one of {', '.join(LOSSES)}{hint}")
    if not names:
        problem(("loss_type",), f"loss_type is empty; expected one of {', '.join(LOSSES)}")
    if len(set(names)) < len(names):
        problem(("loss_type",), f"loss_type names a loss twice: {', '.join(given)}; expected each once")
    for loss, options in OPTIONS.items():
        for key, _ in options:
            if loss not in names and getattr(config, key) != type(config).model_fields[key].default:
                problem(
                    (key, "loss_type"),
                    f"{key} is {getattr(config, key)!r}, but loss_type is {config.loss_type!r}; it belongs to {loss}",
                )
    if config.listwise_grades != "gain" and not set(GRADED_LOSSES) & set(names):
        problem(
            ("listwise_grades", "loss_type"),
            f"listwise_grades is {config.listwise_grades}, but loss_type is {config.loss_type!r}; it belongs to "
            f"{' and '.join(GRADED_LOSSES)}",
        )
    if config.train_group_size is not None and not is_grouped(config.loss_type):
        problem(
            ("train_group_size", "loss_type"),
            f"train_group_size is {config.train_group_size}, but loss_type {config.loss_type!r} looks at each pair alone; leave "
            "it out, or use a pair- or listwise loss",
        )
