"""The loop: step, log, evaluate, save; on one screen.

Contract: `fit` trains a run from wherever its checkpoint left it to the end; what one step is stands in step.py. Rejected:
callbacks for logging, evaluating and saving, which hide the order in which they happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rankery.data.collate import Work
from rankery.errors import attempt
from rankery.models.card import Outcome as Result
from rankery.models.card import model_card, verdict
from rankery.models.contract import add_golden, write_model_directory
from rankery.models.folders import remove
from rankery.models.loading import new_head
from rankery.models.lora import has_adapters, merge_adapters
from rankery.models.scorer import model_weights
from rankery.training import checkpoint, output, published
from rankery.training.criterion import is_better
from rankery.training.describe import describe
from rankery.training.optim import lr_factor, set_lr
from rankery.training.report import write_report
from rankery.training.run import Run
from rankery.training.step import Outcome, settle, step_batches, stop_all, train_step
from rankery.training.tracking import Progress, Tracker
from rankery.training.validation import evaluate, is_flat

SAVE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fit(run: Run) -> Path:
    """Trains to the end; returns the folder of the final model."""
    config, state = run.config, {**checkpoint.FRESH, "is_flat": False, "best_is_flat": False, **run.start}
    run.say(describe(run))
    if run.criterion.note:
        run.say(run.criterion.note)
    if run.criterion.selects is None:  # also of a run that was begun when a metric that cannot vary chose
        state.update(best=None, best_step=0, best_metrics={}, worse_evaluations=0)
    if state["step"]:
        run.say(f"resumed after step {state['step']}")
    tracker = None
    if run.engine.is_main:
        tracker = Tracker(run.folder, config.log_with, run.run_id, state, config.model_dump(), run.say)
    _drop_future_best(run, state["step"])
    if run.val_data is not None and state["step"] == 0:
        _evaluate(run, state, tracker)
    run.model.train()
    progress, running = Progress(run, state["step"]), deque[Outcome]()
    for number, batches in _steps(run, state["step"]):
        if _stopped_early(run, state):
            run.say(f"stopped early: no better {run.criterion.selects} in {config.patience} evaluations")
            break
        set_lr(run.optimizer, lr_factor(state["updates"] + len(running), run.steps, config.warmup_proportion))
        running.append(train_step(run, number, batches))
        logs, evaluates, saves = _due(run, number + 1)
        # One step runs on while the next is prepared; fp16 waits, since an overflow shifts the schedule.
        keep = 0 if logs or evaluates or saves or run.engine.scaler.is_enabled() else 1
        while len(running) > keep:
            norm = _settle(run, state, running.popleft(), progress)
        if logs:
            _log(run, state, tracker, norm, progress)
        if evaluates:
            with progress.paused():
                _evaluate(run, state, tracker)
        if saves:
            with progress.paused():
                _save_checkpoint(run, state, tracker)
    progress.close()
    folder = _finish(run, state)
    if tracker is not None:
        tracker.close()
        write_report(run, state, result(run, state))
    return folder


def _steps(run: Run, first: int) -> Iterator[tuple[int, list[Work]]]:
    """(step number, this process's batches); read when asked for, or ahead of time by worker processes."""
    numbers, prefetched_plan = range(first, run.steps), run.plan
    prefetched: Iterator[list[Work]] = iter(())
    if run.config.num_workers:
        options = {"batch_size": None, "sampler": numbers, "num_workers": run.config.num_workers}
        prefetched = iter(torch.utils.data.DataLoader(step_batches(run), **options))  # type: ignore[arg-type]
    for number in numbers:
        # A fresh look at the plan each time: when its budget has shrunk, what was cut ahead is too large.
        batches = next(prefetched, None) if run.plan is prefetched_plan else None
        yield number, step_batches(run)[number] if batches is None else batches


def _due(run: Run, step: int) -> tuple[bool, bool, bool]:
    """Whether the end of a step (from 1) is the time to log, to evaluate, to save a checkpoint."""
    config, ends_epoch, is_last = run.config, step % run.plan.steps_per_epoch == 0, step == run.steps
    evaluates = is_last or (step % config.eval_steps == 0 if config.eval_steps else ends_epoch)
    saves = (config.save_on_epoch_end and ends_epoch) or bool(config.save_steps and step % config.save_steps == 0)
    return step % config.log_interval == 0 or is_last, run.val_data is not None and evaluates, saves


def _settle(run: Run, state: dict[str, Any], outcome: Outcome, progress: Progress) -> float:
    """A step becomes a part of the run's state; returns its gradient norm."""
    loss, norm = settle(run, outcome)
    state["step"], state["updates"] = outcome.number + 1, state["updates"] + outcome.updated
    state["loss_sum"], state["loss_steps"] = state["loss_sum"] + loss, state["loss_steps"] + 1
    progress.update(loss, outcome.lr, len(outcome.pairs), outcome.works)
    return norm


def _stopped_early(run: Run, state: dict[str, Any]) -> bool:
    return run.config.patience is not None and state["worse_evaluations"] >= run.config.patience


def _log(run: Run, state: dict[str, Any], tracker: Tracker | None, norm: float, progress: Progress) -> None:
    values = {
        "epoch": state["step"] / run.plan.steps_per_epoch,
        "loss": state["loss_sum"] / state["loss_steps"],
        "lr": run.optimizer.param_groups[0]["lr"],
        "grad_norm": norm,
    }
    state["loss_sum"], state["loss_steps"] = 0.0, 0
    if tracker is not None:
        tracker.log(state["step"], values, progress.lap())


def _evaluate(run: Run, state: dict[str, Any], tracker: Tracker | None) -> None:
    assert run.val_data is not None
    config = run.config
    try:
        metrics, flat = evaluate(
            run.engine, run.model, run.val_data, run.objective, run.plan.budget, run.reranker.layout, config
        )
    except torch.OutOfMemoryError:  # sharded: the others wait inside a collective call
        stop_all(run)
        raise
    state.update(metrics=metrics, is_flat=flat)
    run.say(f"step {state['step']}: validation " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    if tracker is not None:
        tracker.log(state["step"], {f"val/{key}": value for key, value in metrics.items()})
    if state["step"] == 0:
        state.update(metrics_before=metrics, new_head=bool(new_head(run.reranker.model)))
        return
    if flat:
        run.say("note: the model orders nothing now: it gives all documents of a query (nearly) one score")
    name = run.criterion.selects
    if name is None:
        return
    if not state["best_step"] or is_better(name, metrics, state["best_metrics"]):
        state.update(
            best=metrics[name], best_step=state["step"], best_metrics=metrics, best_is_flat=flat, worse_evaluations=0
        )
        state["best_files"] = _write_model(run, state, run.folder / "checkpoints" / f"best_{state['step']}")
        # A run that is killed now goes on from the newest checkpoint, with the best model that this one names.
        run.engine.on_main(
            lambda: checkpoint.prune(run.folder, "best", {state["step"], *checkpoint.named_best(run.folder)})
        )
    else:
        state["worse_evaluations"] += 1


def result(run: Run, state: dict[str, Any], of_best: bool = True) -> Result:
    """What the training has brought so far: of the best model, where one was chosen, or of the last."""
    prefix = "best_" if of_best and state["best_step"] else ""
    return Result(
        state["metrics_before"],
        state[f"{prefix}metrics"],
        run.criterion.judges,
        state["new_head"],
        state[f"{prefix}is_flat"],
    )


def _card(run: Run, state: dict[str, Any]) -> str:
    def whole() -> str:
        return model_card(run.config, run.reranker, result(run, state, of_best=False), state["step"], run.summary)

    return attempt("the card of the model could not be written", whole, "")


def _write_model(run: Run, state: dict[str, Any], folder: Path) -> checkpoint.Files:
    weights = model_weights(run.engine.model_state(run.model, has_adapters(run.reranker.model)))
    card = _card(run, state)

    def write() -> checkpoint.Files:
        write_model_directory(folder, run.reranker, weights, card, golden=False)
        return checkpoint.measured(folder)

    return run.engine.on_main(write)


def _save_checkpoint(run: Run, state: dict[str, Any], tracker: Tracker | None) -> None:
    engine = run.engine
    weights = model_weights(engine.model_state(run.model, has_adapters(run.reranker.model)))
    optimizer = engine.optimizer_state(run.model, run.optimizer)
    engine.everywhere(lambda: checkpoint.write_optimizer(run.folder, optimizer, engine))

    def write() -> None:
        assert tracker is not None
        saved = {**state, **tracker.position(), "token_budget": run.plan.budget}
        saved |= {
            "scaler": engine.scaler.state_dict(), "engine": engine.kind, "processes": engine.processes, "run_id": run.run_id,
        }  # fmt: skip
        card = _card(run, state)
        checkpoint.write_checkpoint(
            run.folder, saved, lambda folder: write_model_directory(folder, run.reranker, weights, card, golden=False),
            run.config.num_max_checkpoints,
        )  # fmt: skip
        checkpoint.prune(run.folder, "best", {state["best_step"]})

    engine.on_main(write)


def _drop_future_best(run: Run, step: int) -> None:
    """Best models of steps that are about to be run again."""
    if run.engine.is_main:
        for at, path in checkpoint.numbered(run.folder, "best"):
            if at > step:
                remove(path)


def _finish(run: Run, state: dict[str, Any]) -> Path:
    """Puts the best or last model into output_dir/model, its adapters merged and its weights in save_dtype.

    The folder appears whole, and what it is made of goes only then: a run that is killed here finishes when it is resumed.
    """
    target, checkpoints, engine = run.folder / "model", run.folder / "checkpoints", run.engine
    best, last = checkpoints / f"best_{state['best_step']}", checkpoints / f"last_{state['step']}"
    source, which = best, f"the best by {run.criterion.selects}, of step"
    if run.val_data is None:
        state["is_flat"] = _is_flat_unseen(run)
    files, kept = state["best_files"], set()
    if problem := engine.on_main(lambda: published.not_whole(best, files)):
        if engine.on_main(lambda: published.is_finished(run.folder, (best.name, last.name), _format(run))):
            engine.on_main(lambda: add_golden(target, run.reranker))  # a kill may have come before them
            run.say(f"model (finished before): {target}")
            return target
        if state["best_step"]:
            run.say(f"note: {best} {problem}; the last model is saved instead")
            kept.add(state["best_step"])
            state["best_step"] = 0
        source, which = last, "of the last step,"
        files = _write_model(run, state, last)
    engine.on_main(lambda: _write_final(run, source, files, kept))
    run.say(f"model ({which} {source.name.split('_')[1]}): {target}")
    brought = result(run, state)
    if brought.before and brought.after:
        changes = [f"{key} {brought.before[key]:.4f} -> {value:.4f}" for key, value in brought.after.items()]
        run.say(f"validation before training -> after: {', '.join(changes)}")
    run.say(verdict(brought))
    return target


def _is_flat_unseen(run: Run) -> bool:
    """Whether the last model orders nothing, by a sample of what it learnt from: no validation data has told."""

    def look() -> bool:
        layout, labels = run.reranker.layout, run.config.num_labels
        return is_flat(run.engine, run.model, run.train_data, run.plan.budget, layout, labels)

    return attempt("whether the model orders anything could not be looked at", look, False)


def _format(run: Run) -> int:
    return int((output.read_run(run.folder) or {"format": 2})["format"])


def _write_final(run: Run, source: Path, files: checkpoint.Files, kept: set[int]) -> None:
    """The final model from a folder of the run's weights: as it is, or merged and cast as the configuration says."""
    dtype, adapted, made = SAVE_DTYPES[run.config.save_dtype], has_adapters(run.reranker.model), source
    published.check_place(run.folder, source, _format(run))
    if (adapted and run.config.lora_merge) or (not adapted and dtype != torch.float32):
        reranker = type(run.reranker).from_pretrained(  # type: ignore[attr-defined]
            source, device="cpu", dtype=torch.float32, trust_remote_code=run.config.trust_remote_code,
            cache_dir=run.config.cache_dir,
        )  # fmt: skip
        if has_adapters(reranker.model):
            merge_adapters(reranker.model)
        weights = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in reranker.model.state_dict().items()
        }
        for name, parameter in reranker.model.named_parameters():
            parameter.data.copy_(weights[name])  # rounded as saved: golden scores are of these
        made = source.with_name(f"final_{source.name.split('_')[1]}")
        write_model_directory(made, reranker, weights, (source / "README.md").read_text(encoding="utf-8"))
        files = checkpoint.measured(made)
    published.publish(run.folder, made, files, source.name)
    add_golden(run.folder / "model", run.reranker)
    for kind in output.MODELS:
        checkpoint.prune(run.folder, kind, kept if kind == "best" else ())
