"""Checkpoints that are whole or absent, and the way back to the newest.

    output_dir/checkpoints/checkpoint_N/{model/, optimizer-P-of-N.safetensors, state.json}
    output_dir/checkpoints/best_N/      the best model so far, and the one that the newest checkpoint names
    output_dir/checkpoints/last_N/      the last model, for as long as the final one is made of it

Contract: checkpoints are written aside, synced, renamed; state.json, sealed by a digest, lists every file with size and CRC-32,
those of the best model too, so that damage is found before anything is made of it; nothing that a run did not write is deleted.
Weights and optimiser state are safetensors. Cost: one write of 3 x the weights. Rejected: pickled checkpoints, and hashing with
SHA (three times slower to no end).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from rankery.errors import InputError
from rankery.models.folders import (
    CONTRACT_FILE,
    STATE_FILE,
    files_in,
    not_saved,
    regular_file,
    remove,
    written_aside,
)
from rankery.sealed import Schema, read_sealed, sealed

if TYPE_CHECKING:
    from rankery.training.engine import Engine

Files = dict[str, list[int]]  # path in a folder -> (bytes, CRC-32)

# The state of a run that begins.
FRESH: dict[str, Any] = {
    "step": 0, "updates": 0, "metrics_bytes": 0, "metrics_check": None, "best": None, "best_step": 0, "best_files": {},
    "worse_evaluations": 0, "loss_sum": 0.0, "loss_steps": 0, "scaler": {}, "metrics": {}, "best_metrics": {},
    "metrics_before": {}, "new_head": False,
}  # fmt: skip
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Measures = dict[str, Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]]
LOADED = (
    ".json",
    ".safetensors",
    ".bin",
    ".py",
    ".model",
    ".jinja",
    ".txt",
)  # what opening a model looks for, by ending


class State(Schema):
    """state.json of a checkpoint: how far the run is, and what the checkpoint is made of."""

    step: PositiveInt
    updates: NonNegativeInt
    metrics_bytes: NonNegativeInt
    metrics_check: NonNegativeInt | None = None  # CRC-32 of these bytes; None: an older rankery wrote it
    best: float | None
    best_step: NonNegativeInt
    best_files: Measures = Field(default_factory=dict)  # of best_N; empty: none, or an older rankery wrote it
    worse_evaluations: NonNegativeInt
    loss_sum: float
    loss_steps: NonNegativeInt
    scaler: dict[str, int | float]
    metrics: dict[str, int | float]
    best_metrics: dict[str, int | float]
    metrics_before: dict[str, int | float]
    new_head: bool
    files: Measures
    token_budget: PositiveInt | None
    engine: str
    processes: PositiveInt
    run_id: RunId


def numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """(step, path) of the `kind`_N folders that a run wrote, oldest first."""
    mark = STATE_FILE if kind == "checkpoint" else CONTRACT_FILE
    found = [(re.fullmatch(rf"{kind}_(\d+)", path.name), path) for path in (folder / "checkpoints").glob(f"{kind}_*")]
    whole = [(int(match[1]), path) for match, path in found if match and (path / mark).is_file()]
    return sorted((step, path) for step, path in whole if not path.is_symlink())


def write_optimizer(folder: Path, optimizer: dict[str, torch.Tensor], engine: Engine) -> None:
    """Puts down what one process keeps of the optimiser (nothing: no file), for `write_checkpoint` to take in.

    Raises:
        InputError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    name = f"optimizer-{engine.process + 1:05d}-of-{engine.processes:05d}.safetensors"
    path = folder / "checkpoints" / f".tmp-{name}"
    try:
        if optimizer:
            save_file(optimizer, path)
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise not_saved(path, error) from error


def write_checkpoint(folder: Path, state: dict[str, Any], write_model: Callable[[Path], None], keep: int) -> None:
    """Writes checkpoint_N (N = state["step"]) with the optimiser files that lie ready; removes all but the newest `keep`.

    Raises:
        InputError: the disk is full or not writable; earlier checkpoints stay whole.
    """
    target = folder / "checkpoints" / f"checkpoint_{state['step']}"
    parts = list((folder / "checkpoints").glob(".tmp-optimizer-*"))
    try:
        with written_aside(target) as aside:
            write_model(aside / "model")
            for part in parts:
                part.rename(aside / part.name.removeprefix(".tmp-"))
            (aside / STATE_FILE).write_text(sealed({**state, "files": measured(aside)}))
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    # Later ones are damaged leftovers of an earlier attempt: they do not count.
    for _, old in [entry for entry in numbered(folder, "checkpoint") if entry[0] <= state["step"]][:-keep]:
        remove(old)


def prune(folder: Path, kind: str, keep: Collection[int] = ()) -> None:
    """Removes the `kind`_N folders but for the steps in `keep`."""
    for step, path in numbered(folder, kind):
        if step not in keep:
            remove(path)


def named_best(folder: Path) -> set[int]:
    """The step of the best model that the newest checkpoint names; empty where there is none."""
    for _, path in numbered(folder, "checkpoint")[-1:]:
        try:
            return {read_sealed(path / STATE_FILE, State)["best_step"]}
        except (OSError, ValueError):
            pass  # damaged: a resumption goes on from an older one, and says so where its best model is gone
    return set()


def measured(folder: Path) -> Files:
    """Every file in a folder, by its path there."""
    return {name: _measure(folder / name) for name in files_in(folder)}


def damage(folder: Path, files: Files) -> list[str]:
    """What is wrong with a folder that once held `files`: those that changed, that are no plain files of its own, that opening a
    model would take for a part of it."""
    changed = [
        f"{name:.80}"
        for name, size in files.items()
        if (path := regular_file(folder, name)) is None or path.stat().st_size != size[0] or _measure(path) != size
    ]
    models = [folder] if CONTRACT_FILE in files else [folder / "model"]
    added = [
        path.name
        for model in models
        for path in (model.iterdir() if model.is_dir() else ())
        if path.suffix in LOADED and path.relative_to(folder).as_posix() not in files
    ]
    said = [f"{', '.join(changed[:5])} changed since it was written"] if changed else []
    return said + ([f"{', '.join(sorted(added)[:5])} was added"] if added else [])


def _measure(path: Path) -> list[int]:
    check = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            check = zlib.crc32(chunk, check)
    return [path.stat().st_size, check]


def newest_checkpoint(folder: Path, run_id: str, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a run with its state; None when the run has none.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    problems = []
    for step, path in reversed(numbered(folder, "checkpoint")):
        try:
            state = read_sealed(path / STATE_FILE, State)
            if state["run_id"] != run_id:
                raise ValueError(f"it is of run {state['run_id']}, this one is {run_id}")
            if state["step"] != step or not max(state["updates"], state["best_step"]) <= step:
                raise ValueError(f"{STATE_FILE} changed since it was written")
            if wrong := damage(path, state["files"]):
                raise ValueError("; ".join(wrong))
        except (OSError, ValueError) as error:
            problems.append(f"{path}: is no whole checkpoint of a rankery run ({error}); delete it or restore it")
            continue
        for problem in problems:
            say(f"note: {problem}; resuming from {path.name}")
        return path, state
    if problems:
        raise InputError(problems)
    return None


def load_optimizer(path: Path, state: dict[str, Any], engine: Engine) -> dict[str, torch.Tensor]:
    """What this process takes back: its own part where the engine shards it, else the whole.

    Raises:
        InputError: parts that only the same engine with as many processes can take.
    """
    from safetensors.torch import load_file

    was, now = (state["engine"], state["processes"]), (engine.kind, engine.processes)
    parts = "zero" in was[0] or "zero" in now[0]
    if parts and was != now:
        raise InputError(
            f"resume: {path.name} was written by {was[0]} with {was[1]} processes, this launch is {now[0]} with {now[1]}; "
            "DeepSpeed's state is in parts: start as before",
            shared=True,
        )
    process = engine.process if parts else 0
    name = f"optimizer-{process + 1:05d}-of-{was[1]:05d}.safetensors"
    return load_file(path / name) if name in state["files"] else {}  # plain SGD keeps nothing
