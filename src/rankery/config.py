"""YAML + key=value overrides -> one frozen, strict `TrainConfig`; the only place with defaults.

Contract: default < YAML < command line; all problems are raised at once with file and line; unknown keys name the nearest
known one; nothing is written. `epoch` is another name of `epochs`. Rejected: argparse flags for each parameter (two lists
of names to keep equal) and omegaconf (no bounds, no meanings).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rankery.config_rules import contradictions
from rankery.config_yaml import Dumper, parse_yaml, read_yaml
from rankery.errors import InputError, cut, shown

ALIASES = {"epoch": "epochs"}
# What other tools call our keys; for the hint of an error message only.
ELSEWHERE = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "warmup_proportion",
    "max_length": "max_len",
    "max_seq_length": "max_len",
    "bf16": "mixed_precision",
    "fp16": "mixed_precision",
    "report_to": "log_with",
    "logging_steps": "log_interval",
    "save_total_limit": "num_max_checkpoints",
    "model": "model_name_or_path",
    "loss": "loss_type",
}


class TrainConfig(BaseModel):
    """Everything that decides a training run."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    # Model
    model_name_or_path: str = Field(description="base model or reranker: a Hugging Face name or a folder")
    model_type: Literal["bert_encoder", "llm_decoder"] = Field("bert_encoder", description="kind of model")
    max_len: int = Field(512, gt=0, description="tokens of a pair at most, special tokens included")
    num_labels: int = Field(1, ge=1, description="logits of the model; above 1: one class for each integer label")
    query_format: str | None = Field(
        None,
        description="text around the query, {} is the query; empty: as the model was saved, else see docs/prompts.md",
    )
    document_format: str | None = Field(None, description="same for the document")
    document_first: bool | None = Field(
        None, description="true: the document stands before the query; empty: as the model was saved, else false"
    )
    special_tokens_in_text: Literal["literal", "parse"] | None = Field(
        None,
        description="queries and documents that spell control tokens (<s>, [SEP], <|im_end|>): literal reads them as any text, parse as "
        "these tokens; empty: as the model was saved, else literal where a decoder's prompt has turns, parse elsewhere",
    )
    seq: str | None = Field(None, description="text between query and document; llm_decoder only")
    special_token: str | None = Field(None, description="text that ends the input; llm_decoder only")
    prefix: str | None = Field(None, description="text before the query: system and instruction; llm_decoder only")
    head: Literal["score", "yes_no"] | None = Field(
        None, description="a trained head, or logit(yes) - logit(no) of the next token; empty: score; llm_decoder only"
    )
    yes_word: str | None = Field(None, description="one token that means relevant; yes_no heads only")
    no_word: str | None = Field(None, description='one token that means irrelevant; "": the logit of yes_word alone')
    prompt: Literal["qwen3-reranker", "bge-reranker-v2-gemma"] | None = Field(
        None, description="preset of the prompt's keys above, which then stay empty; llm_decoder only"
    )
    instruction: str | None = Field(None, description="describes the task, where the preset has a place for it")
    hidden_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout on hidden states; empty: the model's own"
    )
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout on attention probabilities; empty: the model's own"
    )
    lora_rank: int | None = Field(
        None,
        gt=0,
        description="train LoRA adapters of this rank, and the head, instead of all weights; empty: all weights",
    )
    lora_alpha: int = Field(32, gt=0, description="adapters weigh lora_alpha / lora_rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on what goes into the adapters")
    lora_target_modules: str | list[str] = Field(
        "all-linear",
        description="linear layers that get adapters, by the ends of their names; all-linear: all in the layers",
    )
    lora_merge: bool = Field(
        True, description="the final model has the adapters merged in; false: it is an adapter directory"
    )
    load_in_4bit: bool = Field(
        False, description="keep the frozen weights in 4 bits (QLoRA); needs lora_rank and bitsandbytes"
    )
    trust_remote_code: bool = Field(False, description="run model code that the checkpoint brings along")
    revision: str | None = Field(None, description="branch, tag or commit on the model hub")
    cache_dir: str | None = Field(None, description="folder of downloaded models; empty: Hugging Face's own")
    # Data
    train_dataset: str | list[str] = Field(description="JSONL file, list of files or glob")
    val_dataset: str | list[str] | None = Field(None, description="same for evaluation while training; empty: none")
    max_label: float = Field(1.0, description="largest label in the data")
    min_label: float = Field(0.0, description="smallest label in the data")
    dataset_cache_dir: str | None = Field(None, description="folder of tokenised data; empty: the user's cache folder")
    num_workers: int = Field(0, ge=0, le=256, description="worker processes that prepare batches, 256 at most")
    # Training
    output_dir: str = Field(description="folder of the final model, checkpoints and logs")
    loss_type: str | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "point_ce", description="loss, or a weighted sum such as {listwise_kl: 1.0, point_ce: 0.2}; see docs/losses.md"
    )
    train_group_size: int | None = Field(
        None, ge=2, description="documents drawn of each query and epoch, one of them a positive; empty: all"
    )
    false_negative_margin: float | None = Field(
        None,
        description="leave out documents of neg whose neg_scores are above the best of pos_scores less this; listwise_ce then learns "
        "the lists; empty: none",
    )
    listwise_grades: Literal["gain", "top"] = Field(
        "gain",
        description="of listwise_ce and listwise_kl, where labels have more than two grades: gain learns each grade against the "
        "lower ones, top a query's highest grade alone",
    )
    ranknet_weight: Literal["none", "grade"] = Field(
        "none", description="of pairwise_ranknet: grade weighs two documents by the difference of their labels"
    )
    teacher_temperature: float = Field(1.0, gt=0, description="of listwise_kl: above 1 flattens the teacher's scores")
    student_temperature: float = Field(1.0, gt=0, description="of listwise_kl: the same for the student's scores")
    ndcg_at: int | None = Field(None, gt=0, description="of lambda_rank: k of nDCG@k; empty: the whole group")
    epochs: int = Field(1, gt=0, description="passes over the training data")
    lr: float = Field(2e-5, gt=0, description="peak learning rate")
    lr_groups: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="own peak learning rate for parameters whose name a regular expression finds; the last one that does counts",
    )
    batch_size: int = Field(
        32, gt=0, description="pairs a batch on each process; queries a batch for pair- and listwise losses"
    )
    gradient_accumulation_steps: int = Field(1, gt=0, description="batches whose gradients one update sums")
    seed: int = Field(42, ge=0, lt=2**63, description="decides data order, new weights and dropout")
    warmup_proportion: float = Field(
        0.1, ge=0, lt=1, description="share of updates with rising lr; 0: cosine decay at once"
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay; never on biases and norms")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="adamw, or plain sgd (for checks of gradients)")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: not clipped")
    mixed_precision: Literal["no", "fp16", "bf16"] = Field(
        "no", description="precision of computation; weights stay fp32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    activation_offload: bool = Field(
        False,
        description="keep activations for the backward pass in the CPU's memory; saves accelerator memory, costs time",
    )
    token_budget: int | None = Field(
        None,
        gt=0,
        description="tokens a micro-batch computes at most, padding included; empty: what rankery tune kept, else chosen for the device; on a CPU 2,048, more where groups of up to 2 GB want it",
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto", description="pairs end to end in one row, without padding; auto: where the model's family can"
    )
    # Evaluation, saving, logging
    eval_steps: int | None = Field(None, gt=0, description="evaluate every so many updates; empty: every epoch")
    save_steps: int | None = Field(
        None, gt=0, description="save a checkpoint every so many updates; empty: none between"
    )
    save_on_epoch_end: bool = Field(True, description="save a checkpoint at the end of every epoch")
    save_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="precision of the final model's weights; checkpoints are fp32"
    )
    num_max_checkpoints: int = Field(2, gt=0, description="newest checkpoints kept")
    best_metric: str | None = Field(
        "auto", description="metric whose best model is kept (auto: nDCG@10); empty: the last model is"
    )
    patience: int | None = Field(None, gt=0, description="stop after so many evaluations without a better best_metric")
    relevant_above: float | None = Field(
        None, description="labels above it count as relevant for MRR, MAP and Recall; empty: min_label"
    )
    recall_at: list[Annotated[int, Field(gt=0)]] = Field(
        default_factory=lambda: [10], description="cut-offs of Recall@k"
    )
    log_interval: int = Field(10, gt=0, description="log the loss every so many updates")
    log_with: Literal["tensorboard", "wandb", "none"] = Field("tensorboard", description="tracker")
    resume: bool = Field(False, description="go on from the newest whole checkpoint in output_dir")
    overwrite: bool = Field(False, description="replace the run in output_dir; what the run did not write stays")


# Keys that may differ between a run and its resumption: they change no number of the model.
RESUME_FREE = frozenset(
    [
        "output_dir",
        "batch_size",  # pairs a step are compared instead
        "gradient_accumulation_steps",
        "num_workers",
        "token_budget",
        "packing",
        "activation_offload",
        "save_steps",
        "save_on_epoch_end",
        "num_max_checkpoints",
        "log_interval",
        "log_with",
        "resume",
        "overwrite",
        "cache_dir",
        "dataset_cache_dir",
    ]
)


def _kinds(name: str) -> set[Any]:
    """The types that a key takes, without what they hold: {str, list} of str | list[str]."""
    annotation = TrainConfig.model_fields[name].annotation
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {get_origin(member) or member for member in members}


# Keys whose value may be a text: taken from the command line as it stands, unless it opens as another type that they take.
TEXTS = {name: _kinds(name) for name in TrainConfig.model_fields if str in _kinds(name)}
OPENS = {list: "[", dict: "{"}
EMPTY_MEANS_EMPTY = ("seq", "special_token", "prefix", "no_word")  # not: the default
FOLDERS = ("output_dir", "cache_dir", "dataset_cache_dir")


def parse_value(key: str, text: str) -> Any:
    """A command-line value, read as YAML reads it; texts as they are."""
    others = tuple(mark for kind, mark in OPENS.items() if kind in TEXTS.get(key, ()))
    if key in TEXTS and not text.startswith(others):
        return text if text or key in EMPTY_MEANS_EMPTY else None
    return parse_yaml(text, f"command line: {cut(key)} is {shown(text)}, which", lines=False)[1]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` words (a leading -- is allowed) as a dictionary.

    Raises:
        InputError: words of another form, a key twice.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.removeprefix("--").partition("=")
        if key in values:
            problems.append(f"command line: {key} is set twice; keep one")
        try:
            values[key] = parse_value(ALIASES.get(key, key), text)
        except InputError as error:
            problems += error.problems
        if not equals:
            problems.append(f"command line: got {shown(word)}; expected key=value, for example lr=5e-5")
    if problems:
        raise InputError(problems)
    return values


def load_config(
    source: str | Path | Mapping[str, Any] | None, overrides: Mapping[str, Any] | None = None
) -> TrainConfig:
    """The configuration of a run: defaults, then `source` (YAML file or mapping), then overrides.

    Raises:
        InputError: with every problem, each with the file and line of its key.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    if isinstance(source, str | Path):
        layers = [read_yaml(Path(source))]
    else:
        layers = [(dict(source or {}), dict.fromkeys(source or {}, "configuration"))]
    layers.append((dict(overrides or {}), dict.fromkeys(overrides or {}, "command line")))
    for layer, layer_places in layers:
        for key, value in layer.items():
            name = ALIASES.get(key, str(key))
            if name in layer and name != str(key):
                problems.append(
                    f"{layer_places.get(key, str(source))}: both {key} and {name} are set; they are one key: keep one"
                )
            values[name] = _plain(value)
            places[name] = layer_places.get(key, layer_places.get(str(key), str(source)))
    known = TrainConfig.model_fields
    for key in [key for key in values if key not in known]:
        near = [ELSEWHERE[key]] if key in ELSEWHERE else difflib.get_close_matches(str(key), [*known, *ALIASES], 1)
        hint = f"; did you mean {near[0]}?" if near else "; docs/configuration.md lists the keys"
        problems.append(f"{places[key]}: unknown key {key}{hint}")
        del values[key]
    # An empty value means "the default", or "none" where the default is none.
    values = {key: value for key, value in values.items() if value is not None or known[key].default is None}
    if "best_metric" in places and values.get("best_metric", "") == "":
        values["best_metric"] = None
    if values.get("val_dataset") in ("", []):
        values["val_dataset"] = None
    values |= {key: os.path.expanduser(values[key]) for key in FOLDERS if isinstance(values.get(key), str)}
    bad: set[str] = set()
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        config = TrainConfig.model_construct(**{key: value for key, value in values.items() if key not in bad})
        for detail in error.errors():
            key = str(detail["loc"][0])
            place = places.get(key, "configuration")
            if detail["type"] == "missing":
                problems.append(f"{key} is not set; expected: {known[key].description}")
            else:
                name = key + _inner(values[key], detail["loc"][1:])
                problems.append(
                    f"{place}: {name} is {shown(detail['input'])}; {detail['msg']} ({known[key].description})"
                )
    problems += [text for keys, text in contradictions(config, places) if not bad & set(keys)]
    if problems:
        raise InputError(problems)
    return config


def key_places(source: Any, overrides: Mapping[str, Any]) -> dict[str, str]:
    """`file:line` of the keys that `source`, if it is a YAML file, sets and no override replaces."""
    places = read_yaml(Path(source))[1] if isinstance(source, str | Path) else {}
    replaced = {ALIASES.get(key, key) for key in overrides}
    named = {ALIASES.get(key, key): place for key, place in places.items()}
    return {key: place for key, place in named.items() if key not in replaced}


def _plain(value: Any) -> Any:
    """Paths as texts and tuples as lists, which YAML and pydantic's strict types know."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _inner(value: Any, path: Sequence[int | str]) -> str:
    """Where pydantic's `path` leads in a value, as [key] or [index]; its names of types lead nowhere."""
    named = ""
    for part in path:
        leads = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if leads:
            named, value = f"{named}[{part}]", value[part]
    return named


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML that `load_config` reads back to the same object."""
    return yaml.dump(config.model_dump(), Dumper=Dumper, sort_keys=False, allow_unicode=True)
