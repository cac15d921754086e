"""`train`: parse, build, fit. Everything is checked before anything is written.

Contract: `build` makes every object of a run from its configuration; it neither trains nor logs. Rejected: a trainer class
that does all three, which cannot be tested apart.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rankery.arguments import checked
from rankery.config import TrainConfig, key_places, load_config
from rankery.data.encoding import EncodedPairs, default_cache_folder
from rankery.data.examples import trunks_of
from rankery.data.files import content_digest
from rankery.data.plan import Plan, example_tokens
from rankery.data.records import LabelRange
from rankery.errors import InputError
from rankery.locks import FolderLock
from rankery.models.budget import default_token_budget, keep_large_blocks, set_attention
from rankery.models.reranker import Reranker
from rankery.objective import Objective, build_objective, is_grouped
from rankery.training import checkpoint, output
from rankery.training.criterion import Criterion, choose_criterion
from rankery.training.data_checks import (
    as_begun,
    describe_grades,
    learns_by_gain,
    learnt_together,
    lists_are_labels,
    unfit_data,
    unusable_losses,
    without_false_negatives,
)
from rankery.training.describe import describe_data
from rankery.training.engine import DTYPES, Engine, enough_memory, start_engine
from rankery.training.inputs import (
    bad_lines,
    check_places,
    find_files,
    look_deeper,
    open_data,
    open_model,
    prepare_data,
)
from rankery.training.tuned import read_tuned, tuned_file, tuned_key


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
    criterion: Criterion
    val_digest: str | None  # of the validation files as they were read

    @property
    def steps(self) -> int:
        return self.plan.steps_per_epoch * self.config.epochs

    def say(self, text: str) -> None:
        if self.engine.is_main:
            tqdm.write(text)  # a line of its own, also beside a progress bar
            sys.stdout.flush()


@checked
def train(config: str | Path | Mapping[str, Any] | TrainConfig | None, **overrides: Any) -> Path:
    """Fine-tunes a reranker; returns the folder of the final model.

    Args:
        config: YAML file, mapping or TrainConfig; docs/configuration.md lists the keys. None: the keys are those of `overrides`.
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
    with FolderLock(Path(parsed.output_dir)) as lock, output.said_when_stopped(parsed):
        try:
            run = begin(parsed, lock)
        except InputError as error:
            raise error.placed(key_places(source, overrides)) from error
        return fit(run)


def begin(config: TrainConfig, lock: FolderLock | None = None) -> Run:
    """Joins the processes and builds; where they cannot start, what else is wrong is said too."""
    try:
        engine = start_engine(config)
    except InputError as error:
        files, problems = find_files(config)
        raise InputError(error.problems + problems + look_deeper(config, files), error.shared) from error
    return build(config, engine, lock)


def build(config: TrainConfig, engine: Engine, lock: FolderLock | None = None) -> Run:
    """Checks everything, tokenises, loads the model, claims the output folder, which `lock` keeps (None: nobody, afterwards)."""
    if lock is None:
        with FolderLock(Path(config.output_dir)) as lock:
            return build(config, engine, lock)
    labels = LabelRange(config.min_label, config.max_label)
    engine.on_main(lambda: output.lock_run(config, lock))
    files = engine.on_main(lambda: check_places(config))
    found, begun = None, ""
    folder = Path(config.output_dir)
    if config.resume and (earlier := engine.on_main(lambda: output.read_run(folder))):
        found = engine.on_main(lambda: checkpoint.newest_checkpoint(folder, earlier["run_id"], print))
        config, begun = as_begun(config, earlier["config"])
    start = found[1] if found else {}
    try:
        reranker = engine.everywhere(lambda: open_model(config, found[0] / "model" if found else None, engine.device))
    except InputError as error:
        raise InputError(error.problems + engine.on_main(lambda: bad_lines(config, files)), shared=True) from error
    cache = Path(config.dataset_cache_dir) if config.dataset_cache_dir else default_cache_folder()
    keys = engine.on_main(lambda: prepare_data(config, files, reranker, labels, cache))
    data = engine.everywhere(lambda: open_data(cache, keys, files, reranker, labels))
    problems = unfit_data(config, data)
    kept = without_false_negatives(config, data["train"])
    dropped = len(data["train"]) - len(kept)
    if lists_are_labels(config):
        data["train"] = data["train"].labelled_by_lists()
    by_gain = learns_by_gain(config, data["train"])
    objective = build_objective(config, by_gain)
    data = {name: replace(encoded, by_gain=by_gain) for name, encoded in data.items()}
    examples = learnt_together(config, data["train"], kept)
    if problems := problems + unusable_losses(objective, examples, data["train"]):
        raise InputError(problems, shared=True)
    criterion = engine.on_main(lambda: choose_criterion(config, objective, data.get("val")))
    digest = engine.on_main(lambda: content_digest(files["val"]) if "val" in files else None)
    batch = config.batch_size * config.gradient_accumulation_steps * engine.processes
    # Of the first process: where models are loaded in parts, others cannot compare layouts.
    reranker.family_layout = engine.on_main(lambda: reranker.family_layout)
    layout = reranker.layout
    trunks = None
    if layout == "shared" and is_grouped(config.loss_type):
        trunks = trunks_of(data["train"].lengths, data["train"].heads, np.asarray(data["train"].arrays["pair_query"]))
    elif layout == "shared":
        layout = "packed"  # single pairs of a query meet by chance only
    budget = engine.on_main(lambda: output.token_budget(config, start))
    if not budget:  # of the smallest device: all processes follow one plan
        tuned = read_tuned(tuned_file(config)).get(tuned_key(config, reranker.model.config, layout, engine.device))
        largest = 0
        if is_grouped(config.loss_type):
            every = np.arange(len(examples))
            largest = int(example_tokens(every, examples.draw(0), data["train"].lengths, layout, trunks).max())
        own = tuned or default_token_budget(reranker.model.config, engine.device, training=True, largest=largest)
        budget = min(engine.gather(own))
    resolved = config.model_copy(update={"token_budget": budget})
    reranker.labels = (config.min_label, config.max_label)
    packed = layout in ("packed", "shared")
    set_attention(reranker.model, engine.device, DTYPES[config.mixed_precision], packed)
    if config.gradient_checkpointing:
        reranker.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = [(parameter.numel(), parameter.requires_grad) for parameter in reranker.scorer.parameters()]
    with enough_memory("the model"):
        model, optimizer = engine.prepare(reranker.scorer, config)
    run_info = engine.on_main(lambda: output.claim(resolved, keys, batch, lock, criterion.selects, digest))
    if found:
        engine.load_optimizer_state(model, optimizer, checkpoint.load_optimizer(found[0], start, engine))
        if start["scaler"]:
            engine.scaler.load_state_dict(start["scaler"])
    plan = Plan(examples, data["train"].lengths, config.seed, batch, engine.processes, budget, layout, trunks)
    summary = "\n".join(describe_data(name, encoded) for name, encoded in data.items())
    summary += describe_grades(config, data["train"], begun)
    if dropped:
        summary += (
            f"\n  {dropped} documents listed as negatives score like positives and are left out (false_negative_margin)"
        )
    return Run(
        resolved, engine, reranker, model, optimizer, objective, data["train"], data.get("val"),
        plan, Path(config.output_dir), run_info["run_id"], start, summary, parameters,
        criterion, digest,
    )  # fmt: skip


@contextmanager
def rehearsal(config: TrainConfig, **changes: Any) -> Iterator[Run]:
    """A run that is checked and built, and that nobody trains: its folder is thrown away afterwards.

    Args:
        config: of the training.
        changes: keys that replace those of `config`.

    Raises:
        InputError: as `train`, but for the output folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        aside = config.model_copy(update={"output_dir": f"{folder}/run", "resume": False, **changes})
        yield begin(aside)
