"""The output folder: who owns it, checkpoints that are whole or absent, and the way back to the newest.

    output_dir/run.json, config.yaml, metrics.jsonl, tensorboard/
    output_dir/checkpoints/checkpoint_N/{model/, optimizer-P-of-N.safetensors, state.json}
    output_dir/checkpoints/best_N/      the best model so far, and the one that the newest checkpoint names
    output_dir/checkpoints/last_N/      the last model, for as long as the final one is made of it
    output_dir/model/                   appears when the run is done

Contract: checkpoints are written aside, synced, renamed; state.json lists every file with size and CRC-32, so that damage is
found; nothing that a run did not write is deleted. Weights and optimiser state are safetensors. Cost: one write of 3 x the
weights. Rejected: pickled checkpoints, and hashing with SHA (three times slower to no end).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankery.config import RESUME_FREE, TrainConfig, dump_config, load_config
from rankery.errors import InputError
from rankery.models.contract import CONTRACT_FILE, foreign_files
from rankery.models.folders import written_aside

if TYPE_CHECKING:
    from rankery.training.engine import Engine

RUN_FILE, CONFIG_FILE, STATE_FILE = "run.json", "config.yaml", "state.json"
BUDGET_FILE = "token_budget"
OURS = ("metrics.jsonl", "tensorboard", "wandb", "checkpoints", "model", CONFIG_FILE, RUN_FILE)  # who owns it: last
LEFTOVER = re.compile(
    r"\.(tmp|old)-(checkpoint_\d+|best_\d+|last_\d+|model|config\.yaml|run\.json|token_budget|optimizer)(-.*)?"
)


def check_output_dir(config: TrainConfig) -> None:
    """Whether the run may write there; writes nothing.

    Raises:
        InputError: a folder that is taken, or a resumption of a run with another configuration.
    """
    folder = Path(config.output_dir)
    for name, path in (("output_dir", folder), ("dataset_cache_dir", Path(config.dataset_cache_dir or folder))):
        existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            what = "cannot be written to" if existing.is_dir() else "is a file"
            raise InputError(f"{name} is {path}, but {existing} {what}; choose another folder")
    # What a run leaves that was killed before it owned the folder.
    started = {path for path in folder.glob("*") if LEFTOVER.fullmatch(path.name) or path.name == CONFIG_FILE}
    is_run = (folder / RUN_FILE).is_file()
    if not folder.is_dir() or not set(folder.iterdir()) - (started if config.resume and not is_run else set()):
        return
    if is_run and (config.resume or config.overwrite):
        foreign = foreign_files(folder / "model")
        if foreign:
            raise InputError(
                f"{folder / 'model'} holds {', '.join(foreign)}, which rankery did not write and would have to delete; move "
                "it away"
            )
    if config.resume and is_run:
        _check_same_run(config, folder)
    elif config.overwrite and not is_run:
        taken = [name for name in OURS if (folder / name).exists()]
        if taken:
            raise InputError(
                f"output_dir {folder} holds {', '.join(taken)}, written by something else; choose another folder"
            )
    elif not config.overwrite:
        what = "holds another run" if is_run else "is not empty"
        raise InputError(f"output_dir {folder} {what}; choose another folder, or set resume=true or overwrite=true")


def _check_same_run(config: TrainConfig, folder: Path) -> None:
    old = load_config(folder / CONFIG_FILE).model_dump()
    new = config.model_dump()
    problems = [
        f"resume: {key} was {old[key]!r} in {folder / CONFIG_FILE}, got {new[key]!r}; a resumed run keeps it"
        for key in old
        if key not in RESUME_FREE and old[key] != new[key]
    ]
    if problems:
        raise InputError(problems)


def token_budget(config: TrainConfig, state: dict[str, Any]) -> int | None:
    """The budget of a run: the configuration's; of a resumed one what it had come down to, unless told anew."""
    folder = Path(config.output_dir)
    if not config.resume or not (folder / RUN_FILE).is_file():
        return config.token_budget
    if config.token_budget not in (None, load_config(folder / CONFIG_FILE).token_budget):
        return config.token_budget
    lowered = folder / "checkpoints" / BUDGET_FILE  # also of a run that had to stop before its first checkpoint
    return int(lowered.read_text()) if lowered.is_file() else state.get("token_budget", config.token_budget)


def lower_token_budget(folder: Path, budget: int) -> None:
    """Remembers a smaller budget for the resumption of a run that has to stop."""
    _write_whole(folder / "checkpoints" / BUDGET_FILE, str(budget))


def claim(config: TrainConfig, data_keys: list[str], batch: int) -> dict[str, Any]:
    """Makes the folder ours: removes an old run when told to, writes run.json and config.yaml; returns run.json.

    Raises:
        InputError: a resumed run whose data or number of pairs a step changed.
    """
    folder = Path(config.output_dir)
    run_file = folder / RUN_FILE
    if config.resume and run_file.is_file():
        run = json.loads(run_file.read_text())
        _restore_model(folder)
        if run["data"] != data_keys:
            raise InputError(
                f"resume: the data changed since {folder} was started; expected the same files and tokenizer"
            )
        if run["batch"] != batch:
            raise InputError(
                f"resume: a step of {folder} has {run['batch']} pairs (batch_size x gradient_accumulation_steps x processes), "
                f"this launch makes it {batch}; start as many processes as before, or change the other two to match"
            )
    else:
        if run_file.is_file():
            _remove_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run = {"run_id": uuid.uuid4().hex[:12], "data": data_keys, "batch": batch}
        _write_whole(folder / CONFIG_FILE, dump_config(config.model_copy(update={"resume": False, "overwrite": False})))
        _write_whole(run_file, json.dumps(run))
    for leftover in _leftovers(folder):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    (folder / "checkpoints").mkdir(exist_ok=True)
    return run


def _restore_model(folder: Path) -> None:
    """Gives a final model its name back that a killed run had moved away to put another in its place."""
    moved = [path for path in folder.glob(".old-model-*") if (path / CONTRACT_FILE).is_file()]
    if moved and not (folder / "model").exists():
        moved[0].rename(folder / "model")


def _remove_run(folder: Path) -> None:
    """Removes what a run wrote; in checkpoints/ other things stay."""
    for path in [path for kind in ("checkpoint", "best", "last") for _, path in numbered(folder, kind)]:
        remove(path)
    (folder / "checkpoints" / BUDGET_FILE).unlink(missing_ok=True)
    for path in (folder / name for name in OURS if name != "checkpoints"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _leftovers(folder: Path) -> list[Path]:
    """Half-written folders of a killed run."""
    places = (folder, folder / "checkpoints")
    return [path for place in places for path in place.glob(".*") if LEFTOVER.fullmatch(path.name)]


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """(step, path) of the `kind`_N folders that a run wrote, oldest first."""
    mark = STATE_FILE if kind == "checkpoint" else CONTRACT_FILE
    found = [(re.fullmatch(rf"{kind}_(\d+)", path.name), path) for path in (folder / "checkpoints").glob(f"{kind}_*")]
    return sorted((int(match[1]), path) for match, path in found if match and (path / mark).is_file())


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
        raise InputError(
            f"{path}: could not be saved: {error}; what was saved before is whole: make room, then go on with resume=true"
        ) from error


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
            files = {
                str(path.relative_to(aside)): _measure(path) for path in sorted(aside.rglob("*")) if path.is_file()
            }
            (aside / STATE_FILE).write_text(json.dumps({**state, "files": files}))
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
            return {int(json.loads((path / STATE_FILE).read_text())["best_step"])}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged: a resumption goes on from an older one, and says so where its best model is gone
    return set()


def remove(path: Path) -> None:
    """Deletes a folder so that no half of it is ever seen under its name."""
    gone = path.with_name(f".old-{path.name}")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _measure(path: Path) -> list[int]:
    check = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            check = zlib.crc32(chunk, check)
    return [path.stat().st_size, check]


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint with its state; None when the run has none.

    Raises:
        InputError: there are checkpoints, but none is whole.
    """
    problems = []
    candidates = numbered(folder, "checkpoint")
    for step, path in reversed(candidates):
        try:
            state = json.loads((path / STATE_FILE).read_text())
            damaged = [name for name, size in state["files"].items() if _measure(path / name) != size]
            if damaged or state["step"] != step:
                raise ValueError(f"{', '.join(damaged) or STATE_FILE} changed since it was written")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
