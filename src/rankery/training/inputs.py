"""What a training reads, data files and base model: found, checked, opened and tokenised.

Contract: nothing but the token cache is written. What is wrong is collected: of all that is missing or taken, and, once anything
is, of the data's lines and the base model too, so that one start tells all that can be told without the other's help. Cost: where
nothing is wrong, nothing is read twice. Rejected: checks in the order in which a run needs things, which end at the first one.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rankery.config import TrainConfig
from rankery.config_rules import DECODER_KEYS
from rankery.data.encoding import EncodedPairs, cache_key, encode, is_cached, open_encoded
from rankery.data.files import expand_paths
from rankery.data.records import DataSummary, LabelRange, check_records
from rankery.errors import InputError
from rankery.models.contract import read_contract
from rankery.models.cross_encoder import CrossEncoder
from rankery.models.llm_decoder import LLMDecoder
from rankery.models.lora import add_adapters, has_adapters, merge_adapters
from rankery.models.reranker import Reranker
from rankery.training import output
from rankery.training.optim import unused_groups
from rankery.training.tracking import check_tracker

CPU = torch.device("cpu")
# Keys of the configuration that `from_pretrained` of both kinds of reranker takes.
MODEL_KEYS = (
    *(
        "query_format",
        "document_format",
        "document_first",
        "special_tokens_in_text",
        "seed",
        "trust_remote_code",
        "revision",
        "cache_dir",
    ),
    *("hidden_dropout", "attention_dropout", "load_in_4bit"),
)


def check_places(config: TrainConfig) -> dict[str, list[Path]]:
    """The data files by split.

    Raises:
        InputError: what `find_files` and then `look_deeper` find.
    """
    files, problems = find_files(config)
    if problems:
        raise InputError(problems + look_deeper(config, files))
    return files


def find_files(config: TrainConfig) -> tuple[dict[str, list[Path]], list[str]]:
    """(the data files by split; all that is missing, taken or not installed)."""
    files: dict[str, list[Path]] = {}
    problems = [problem for problem in [check_tracker(config.log_with)] if problem]
    for name, spec in (("train", config.train_dataset), ("val", config.val_dataset)):
        if spec is not None:
            with _collected(problems, f"{name}_dataset: "):
                files[name] = expand_paths(spec)
    with _collected(problems):
        output.check_output_dir(config, [path for paths in files.values() for path in paths])
    return files, problems


def look_deeper(config: TrainConfig, files: dict[str, list[Path]]) -> list[str]:
    """Once something is wrong, what else is: in the lines of the data, and with a base model that needs no download."""
    problems = bad_lines(config, files)
    base = config.model_name_or_path
    if not config.resume and (base.startswith((".", "/", "~")) or Path(base).exists()):
        with _collected(problems):
            open_model(config, None)
    return problems


def bad_lines(config: TrainConfig, files: dict[str, list[Path]]) -> list[str]:
    """What is wrong in the lines of the data, which takes no model to see."""
    problems: list[str] = []
    for paths in files.values():
        with _collected(problems):
            check_records(paths, LabelRange(config.min_label, config.max_label))
    return problems


@contextmanager
def _collected(problems: list[str], prefix: str = "") -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems += [f"{prefix}{problem}" for problem in error.problems]


def open_model(config: TrainConfig, checkpoint: Path | None, device: torch.device = CPU) -> Reranker:
    """The model of a checkpoint, or the base with adapters as configured, in the CPU's memory; in 4 bits on its device.

    Raises:
        InputError: it cannot be opened, or cannot do what the configuration asks for.
    """
    reranker = _load_model(config, checkpoint or config.model_name_or_path, device)
    reranker.packing = config.packing
    if checkpoint is None:
        _prepare_adapters(config, reranker.model)
    if problems := _unfit_model(config, reranker):
        raise InputError(problems)
    return reranker


def _prepare_adapters(config: TrainConfig, model: Any) -> None:
    """Adapters as the configuration says; those of a base that is an adapter directory are merged into it."""
    if has_adapters(model):
        if config.lora_rank is not None:
            raise InputError(
                f"model_name_or_path is {config.model_name_or_path!r}, an adapter directory, and lora_rank is {config.lora_rank}; "
                "expected a whole model under new adapters: train it with lora_merge=true"
            )
        merge_adapters(model)
    if config.lora_rank is not None:
        folder = Path(config.model_name_or_path).expanduser()
        base = str(folder.resolve()) if folder.exists() else config.model_name_or_path
        add_adapters(
            model, base, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target_modules, config.seed,
            config.revision,
        )  # fmt: skip


def _load_model(config: TrainConfig, path: str | Path, device: torch.device) -> Reranker:
    """The model to train, with the settings that are left open as they were saved or by default."""
    common: dict[str, Any] = {key: getattr(config, key) for key in MODEL_KEYS}
    common |= {"device": device if config.load_in_4bit else CPU, "dtype": torch.float32}
    # A saved model is opened, and checked, with its own length; it may be trained further with another one.
    is_saved = read_contract(Path(path).expanduser()) is not None
    common["max_len"] = None if is_saved else config.max_len
    reranker: Reranker
    if config.model_type == "bert_encoder":
        reranker = CrossEncoder.from_pretrained(path, config.num_labels, **common)
    else:
        prompt = {key: getattr(config, key) for key in DECODER_KEYS}
        reranker = LLMDecoder.from_pretrained(path, config.num_labels, **common, **prompt)
    if is_saved:
        reranker.set_max_len(config.max_len)
    reranker.calibration = None  # was of the weights that are about to change
    return reranker


def _unfit_model(config: TrainConfig, reranker: Reranker) -> list[str]:
    """What the configuration asks for and the base model cannot do."""
    problems = unused_groups(reranker.model, config.lr_groups)
    kind = reranker.model.config.model_type
    if config.packing == "on" and reranker.layout not in ("packed", "shared"):
        problems.append(f"packing is on, but models of type {kind} cannot be packed; expected auto or off")
    if config.gradient_checkpointing and not reranker.model.supports_gradient_checkpointing:
        problems.append(
            f"gradient_checkpointing is true, but transformers has none for models of type {kind}; expected false "
            "(a smaller token_budget and activation_offload=true save memory too)"
        )
    return problems


def prepare_data(
    config: TrainConfig, files: dict[str, list[Path]], reranker: Reranker, labels: LabelRange, cache: Path
) -> dict[str, str]:
    """Checks all files that are not in the cache, then tokenises them; returns the names of the cache folders."""
    keys: dict[str, str] = {}
    problems: list[str] = []
    summaries: dict[str, DataSummary] = {}
    for name, paths in files.items():
        with _collected(problems):
            keys[name] = cache_key(paths, reranker.tokenizer, reranker.template, labels)
            if not is_cached(cache / keys[name]):
                summaries[name] = check_records(paths, labels)
    if problems:
        raise InputError(problems)
    for name, summary in summaries.items():
        progress = _progress(f"tokenising {name}", summary)
        encode(files[name], reranker.tokenizer, reranker.template, labels, cache / keys[name], progress)
    return keys


def open_data(
    cache: Path, keys: dict[str, str], files: dict[str, list[Path]], reranker: Reranker, labels: LabelRange
) -> dict[str, EncodedPairs]:
    """What the main process has tokenised.

    Raises:
        InputError: it is not there, as on a machine that has a cache folder of its own.
    """
    if not all(is_cached(cache / key) for key in keys.values()):
        raise InputError(
            f"dataset_cache_dir is {cache}, where {platform.node()} does not find what the first process has tokenised; expected "
            "a folder that all machines see: set dataset_cache_dir to one"
        )
    return {name: open_encoded(cache / keys[name], reranker.template, labels, files[name]) for name in files}


def _progress(what: str, summary: DataSummary) -> Callable[[Iterator[Any]], Iterator[Any]]:
    return lambda records: iter(tqdm(records, desc=what, unit="record", disable=not sys.stderr.isatty()))
