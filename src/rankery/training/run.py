"""`train`: parse, build, fit. Everything is checked before anything is written.

Contract: `build` makes every object of a run from its configuration; it neither trains nor logs. Rejected: a trainer class
that does all three, which cannot be tested apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rankery.config import TrainConfig, load_config
from rankery.config_rules import DECODER_KEYS
from rankery.data.encoding import EncodedPairs, cache_key, default_cache_folder, encode, is_cached, open_encoded
from rankery.data.examples import own_tokens
from rankery.data.files import expand_paths
from rankery.data.plan import Plan
from rankery.data.records import DataSummary, LabelRange, check_records
from rankery.errors import InputError
from rankery.models.budget import default_token_budget, keep_large_blocks, set_attention
from rankery.models.contract import read_contract
from rankery.models.cross_encoder import CrossEncoder
from rankery.models.llm_decoder import LLMDecoder
from rankery.models.lora import add_adapters, has_adapters, merge_adapters
from rankery.models.reranker import Reranker
from rankery.objective import Objective, build_objective, is_grouped
from rankery.training import checkpoint, output
from rankery.training.data_checks import learnt_together, unfit_data, unusable_losses
from rankery.training.describe import describe_data
from rankery.training.engine import DTYPES, Engine, start_engine
from rankery.training.optim import unused_groups
from rankery.training.tracking import check_tracker
from rankery.training.tuned import read_tuned, tuned_file, tuned_key

# Keys of the configuration that `from_pretrained` of both kinds of reranker takes.
MODEL_KEYS = (
    *("query_format", "document_format", "seed", "trust_remote_code", "revision", "cache_dir"),
    *("hidden_dropout", "attention_dropout", "load_in_4bit"),
)


@dataclass
class Run:
    """Everything that the loop needs; `plan` is replaced when the token budget shrinks."""

    config: TrainConfig
    engine: Engine
    reranker: Reranker  # its scorer is what `model` wraps or shards
    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    train_data: EncodedPairs
    val_data: EncodedPairs | None
    plan: Plan
    folder: Path
    run_id: str
    start: dict[str, Any]  # state of the checkpoint that the run goes on from; empty for a new run
    summary: str
    parameters: list[tuple[int, bool]]  # (size, whether it is trained)

    @property
    def steps(self) -> int:
        return self.plan.steps_per_epoch * self.config.epochs

    def say(self, text: str) -> None:
        if self.engine.is_main:
            tqdm.write(text)  # a line of its own, also beside a progress bar
            sys.stdout.flush()


def train(config: str | Path | Mapping[str, Any] | TrainConfig, **overrides: Any) -> Path:
    """Fine-tunes a reranker; returns the folder of the final model.

    Args:
        config: YAML file, mapping or TrainConfig; docs/configuration.md lists the keys.
        overrides: keys that replace those of `config`.

    Raises:
        InputError: anything wrong with configuration, data, model, launch or output folder, before anything is written;
            a loss that is not finite, before the update.
    """
    from rankery.training.loop import fit

    source = config.model_dump() if isinstance(config, TrainConfig) else config
    try:
        parsed = load_config(source, overrides)
    except InputError as error:
        error.shared = True
        raise
    keep_large_blocks()
    return fit(build(parsed, start_engine(parsed)))


def build(config: TrainConfig, engine: Engine) -> Run:
    """Checks everything, tokenises, loads the model, claims the output folder."""
    labels = LabelRange(config.min_label, config.max_label)
    files = engine.on_main(lambda: _check_places(config))
    found = None
    folder = Path(config.output_dir)
    if config.resume and (earlier := engine.on_main(lambda: output.read_run(folder))):
        found = engine.on_main(lambda: checkpoint.newest_checkpoint(folder, earlier["run_id"], print))
    start = found[1] if found else {}
    reranker = _load_model(config, found[0] / "model" if found else config.model_name_or_path)
    reranker.packing = config.packing
    if not found:
        _prepare_adapters(config, reranker.model)
    if problems := _unfit_model(config, reranker):
        raise InputError(problems, shared=True)
    cache = Path(config.dataset_cache_dir) if config.dataset_cache_dir else default_cache_folder()
    keys = engine.on_main(lambda: _prepare_data(config, files, reranker, labels, cache))
    data = {name: open_encoded(cache / keys[name], reranker.template, labels, files[name]) for name in files}
    objective = build_objective(config)
    examples, dropped = learnt_together(config, data["train"])
    if problems := unfit_data(config, data) + unusable_losses(objective, examples, data["train"]):
        raise InputError(problems, shared=True)
    batch = config.batch_size * config.gradient_accumulation_steps * engine.processes
    layout = reranker.layout
    tokens = data["train"].lengths
    if layout == "shared" and is_grouped(config.loss_type):
        query = np.asarray(data["train"].arrays["pair_query"])
        tokens = own_tokens(tokens, data["train"].heads, query, config.train_group_size)
    elif layout == "shared":
        layout = "packed"  # single pairs of a query meet by chance only
    budget = engine.on_main(lambda: output.token_budget(config, start))
    if not budget:  # of the smallest device: all processes follow one plan
        tuned = read_tuned(tuned_file(config)).get(tuned_key(config, reranker.model.config, layout, engine.device))
        own = tuned or default_token_budget(reranker.model.config, engine.device, training=True)
        budget = min(engine.gather(own))
    resolved = config.model_copy(update={"token_budget": budget})
    run_info = engine.on_main(lambda: output.claim(resolved, list(keys.values()), batch))
    reranker.labels = (config.min_label, config.max_label)
    set_attention(reranker.model, engine.device, DTYPES[config.mixed_precision])
    if config.gradient_checkpointing:
        reranker.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in reranker.scorer.parameters()]
    model, optimizer = engine.prepare(reranker.scorer, config)
    if found:
        engine.load_optimizer_state(model, optimizer, checkpoint.load_optimizer(found[0], start, engine))
        if start["scaler"]:
            engine.scaler.load_state_dict(start["scaler"])
    plan = Plan(examples, tokens, config.seed, batch, engine.processes, budget, layout)
    summary = "\n".join(describe_data(name, encoded) for name, encoded in data.items())
    if dropped:
        summary += (
            f"\n  {dropped} documents listed as negatives score like positives and are left out (false_negative_margin)"
        )
    return Run(
        resolved, engine, reranker, model, optimizer, objective, data["train"], data.get("val"),
        plan, Path(config.output_dir), run_info["run_id"], start, summary, parameters,
    )  # fmt: skip


def _check_places(config: TrainConfig) -> dict[str, list[Path]]:
    """The data files by split.

    Raises:
        InputError: all that is missing, taken or not installed. A base model that needs no download is then opened too, so that
            what is wrong with it is in the same list.
    """
    files: dict[str, list[Path]] = {}
    problems = [problem for problem in [check_tracker(config.log_with)] if problem]
    with _collected(problems):
        files["train"] = expand_paths(config.train_dataset)
    with _collected(problems):
        files |= {"val": expand_paths(config.val_dataset)} if config.val_dataset is not None else {}
    with _collected(problems):
        output.check_output_dir(config, [path for paths in files.values() for path in paths])
    base = config.model_name_or_path
    if problems and not config.resume and (base.startswith((".", "/", "~")) or Path(base).exists()):
        with _collected(problems):
            _load_model(config, base)
    if problems:
        raise InputError(problems)
    return files


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems += error.problems


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


def _load_model(config: TrainConfig, path: str | Path) -> Reranker:
    """The model to train, with the settings that are left open as they were saved or by default."""
    common: dict[str, Any] = {key: getattr(config, key) for key in MODEL_KEYS}
    common |= {"device": "cpu", "dtype": torch.float32}
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
    if config.packing == "on" and reranker.layout == "padded":
        problems.append(f"packing is on, but models of type {kind} cannot be packed; expected auto or off")
    if config.gradient_checkpointing and not reranker.model.supports_gradient_checkpointing:
        problems.append(
            f"gradient_checkpointing is true, but transformers has none for models of type {kind}; expected false "
            "(a smaller token_budget and activation_offload=true save memory too)"
        )
    return problems


def _prepare_data(
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


def _progress(what: str, summary: DataSummary) -> Callable[[Iterator[Any]], Iterator[Any]]:
    return lambda records: iter(tqdm(records, desc=what, unit="record", disable=not sys.stderr.isatty()))
