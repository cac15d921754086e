"""The output folder: who owns it, whether a run may write there, and how it is claimed.

    output_dir/run.json                 says that the folder is a run's, and of which data and configuration
    output_dir/config.yaml              the same configuration, for people and for another run
    output_dir/.lock                    while a process writes there: which one (locks.py)
    output_dir/metrics.jsonl, timings.jsonl, tensorboard/, wandb/
    output_dir/checkpoints/             see checkpoint.py
    output_dir/model/                   appears when the run is done (published.py)
    output_dir/report.html              what it did, for people

Contract: everything is checked before anything is written; one process writes at a time; nothing that a run did not write is
deleted, nothing that it is about to read, and nothing through a link. Rejected: deleting whole folders by their names, which people
put their own files into.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError

from rankery.config import RESUME_FREE, TrainConfig, dump_config, load_config
from rankery.errors import InputError
from rankery.lifeline import Terminated
from rankery.locks import LOCK_FILE, FolderLock
from rankery.models.contract import foreign_files
from rankery.models.folders import CONTRACT_FILE, dispose, remove, write_whole
from rankery.sealed import Schema, read_sealed, sealed
from rankery.training.checkpoint import RunId, numbered
from rankery.training.published import PUBLISHED_FILE, is_published
from rankery.training.tracking import METRICS_FILE, TIMINGS_FILE, remove_traces

RUN_FILE, CONFIG_FILE, REPORT_FILE, BUDGET_FILE = "run.json", "config.yaml", "report.html", "token_budget"
FOLDERS = ("tensorboard", "wandb", "checkpoints", "model")
OURS = (METRICS_FILE, TIMINGS_FILE, *FOLDERS, REPORT_FILE, CONFIG_FILE, RUN_FILE)
MODELS = ("best", "last", "final")  # kinds of model folders in checkpoints/
ASIDE = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # safetensors' own name for a file that it is writing: optimiser state
LEFTOVER = re.compile(
    r"\.(tmp|old)-(checkpoint_\d+|best_\d+|last_\d+|final_\d+|model|config\.yaml|run\.json|report\.html|metrics\.jsonl|timings\.jsonl"
    r"|token_budget|published\.json|optimizer)(-.*)?"
)


class RunFile(Schema):
    """run.json: what a folder's run was started with."""

    format: PositiveInt = 1  # 2: published.json says which model is the run's
    run_id: RunId
    data: list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]]  # names of the tokenised data
    batch: PositiveInt
    config: dict[str, Any]


class Budget(Schema):
    """checkpoints/token_budget."""

    token_budget: PositiveInt


def check_output_dir(config: TrainConfig, data: Sequence[Path]) -> None:
    """Whether the run, which reads `data`, may write there; writes nothing.

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
    started = {path for path in _leftovers(folder) if config.resume and not (folder / RUN_FILE).exists()}
    if not folder.is_dir() or not set(folder.iterdir()) - started - {folder / LOCK_FILE}:
        return
    if not (config.resume or config.overwrite):
        what = "holds another run" if (folder / RUN_FILE).is_file() else "is not empty"
        raise InputError(f"output_dir {folder} {what}; choose another folder, or set resume=true or overwrite=true")
    run = read_run(folder)
    if run is None:
        _check_no_run(config, folder)
        return
    if problems := _misplaced(folder):
        raise InputError(problems)
    models = [path for path in (folder / "checkpoints").glob("*") if re.fullmatch(r"(best|last)_\d+", path.name)]
    problems = [
        f"{path} holds {', '.join(foreign)}, which rankery did not write and would have to delete; move it away"
        for path in [folder / "model", *sorted(models)]
        if (foreign := foreign_files(path))
    ]
    if not problems and config.resume and (folder / "model").exists() and not is_published(folder, run["format"]):
        problems.append(
            f"{folder / 'model'} is not what this run has put there, or has changed since; move it away, or bring it back"
        )
    problems += _changed(config, run, folder) if config.resume else _read_and_deleted(config, folder, data)
    if problems:
        raise InputError(problems)


def read_run(folder: Path) -> dict[str, Any] | None:
    """What run.json says of the run that owns a folder; None where there is none.

    Raises:
        InputError: the file is damaged, or something else wrote it.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        return None
    try:
        run = read_sealed(file, RunFile)
        known = {key: value for key, value in run["config"].items() if key in TrainConfig.model_fields}
        TrainConfig.model_validate(known)
    except ValidationError as error:
        reason = f"no valid config.{', config.'.join(str(problem['loc'][0]) for problem in error.errors())}"
    except (OSError, ValueError) as error:
        reason = str(error)
    else:
        return run
    raise InputError(
        f"{file}: is not what rankery writes there ({reason:.200}); restore it, or choose another output_dir: this one may be "
        "somebody else's"
    )


def _misplaced(folder: Path) -> list[str]:
    """What of a run is a link, which nobody may write or delete through, or no file or folder as it should be."""
    places = [folder / name for name in OURS] + [
        folder / "checkpoints" / name for name in (BUDGET_FILE, PUBLISHED_FILE)
    ]
    wrong = {
        path: "a link" if path.is_symlink() else "no folder" if path.name in FOLDERS else "no file"
        for path in places
        if path.is_symlink() or (path.exists() and not (path.is_dir() if path.name in FOLDERS else path.is_file()))
        if path.is_symlink() or path.name != REPORT_FILE  # which may fail to be written
    }
    return [f"{path} is {what}, where rankery writes and deletes; move it away" for path, what in wrong.items()]


def _check_no_run(config: TrainConfig, folder: Path) -> None:
    """A folder that holds something, but no run."""
    taken = [name for name in OURS if (folder / name).exists()]
    if config.resume:
        raise InputError(
            f"output_dir {folder} is not empty and holds no run that resume=true could go on with; choose another folder"
        )
    if taken:
        raise InputError(
            f"output_dir {folder} holds {', '.join(taken)}, written by something else; choose another folder"
        )


def _changed(config: TrainConfig, run: dict[str, Any], folder: Path) -> list[str]:
    """Keys that a resumption may not change, and does."""
    return [
        f"resume: {key} was {old!r} in {folder / RUN_FILE}, got {new!r}; a resumed run keeps it"
        for key, (old, new) in changed_keys(config, run).items()
    ]


def changed_keys(config: TrainConfig, run: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(value of the run, value now) of each key that makes another model of it."""
    old, new = load_config(run["config"]).model_dump(), config.model_dump()
    return {key: (old[key], new[key]) for key in old if key not in RESUME_FREE and old[key] != new[key]}


def _read_and_deleted(config: TrainConfig, folder: Path, data: Sequence[Path]) -> list[str]:
    """What this run wants to read of the run that it replaces."""
    ours = [(folder / name).resolve() for name in OURS]
    inputs = [("model_name_or_path", Path(config.model_name_or_path).expanduser()), *(("a data file", p) for p in data)]
    return [
        f"{name} is {path}, which overwrite=true would delete with the run in {folder}; choose another output_dir, or copy it "
        "elsewhere first"
        for name, path in inputs
        if any(path.resolve().is_relative_to(own) for own in ours)
    ]


def token_budget(config: TrainConfig, state: dict[str, Any]) -> int | None:
    """The budget of a run: the configuration's; of a resumed one what it had come down to, unless told anew."""
    folder = Path(config.output_dir)
    run = read_run(folder) if config.resume else None
    if run is None or config.token_budget not in (None, run["config"].get("token_budget")):
        return config.token_budget
    lowered = folder / "checkpoints" / BUDGET_FILE  # also of a run that had to stop before its first checkpoint
    if not lowered.exists():
        return state.get("token_budget", config.token_budget)
    try:
        return read_sealed(lowered, Budget)["token_budget"]
    except (OSError, ValueError) as error:
        raise InputError(f"{lowered}: cannot be read ({error}); delete it, or set token_budget") from error


def lower_token_budget(folder: Path, budget: int) -> None:
    """Remembers a smaller budget for the resumption of a run that has to stop."""
    write_whole(folder / "checkpoints" / BUDGET_FILE, sealed({"token_budget": budget}))


def lock_run(config: TrainConfig, lock: FolderLock) -> None:
    """Takes the folder of a run that is there, before anything in it is read.

    Raises:
        InputError: another process has it.
    """
    if (config.resume or config.overwrite) and (lock.file.parent / RUN_FILE).is_file():
        lock.take()


def claim(
    config: TrainConfig,
    data_keys: dict[str, str],
    batch: int,
    lock: FolderLock,
    chosen_by: str | None = None,
    val_digest: str | None = None,
) -> dict[str, Any]:
    """Makes the folder ours: removes an old run when told to, writes run.json and config.yaml; returns run.json.

    Args:
        config: of the run.
        data_keys: names of the tokenised data, by split.
        batch: pairs a step.
        lock: of the folder.
        chosen_by: metric whose best model is kept; None: the last is.
        val_digest: of the validation files, whatever tokenised them.

    Raises:
        InputError: a resumed run whose data or number of pairs a step changed; another run that began there meanwhile.
    """
    folder = Path(config.output_dir)
    if not lock.is_taken:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()
        if (folder / RUN_FILE).exists():
            raise InputError(f"output_dir {folder} was taken by another run meanwhile; choose another folder")
    run = read_run(folder)
    if config.resume and run is not None:
        _restore_model(folder)
        before = dict(zip(data_keys, run["data"], strict=False))
        if changed := [f"{name}_dataset" for name, key in data_keys.items() if before.get(name) != key]:
            raise InputError(
                f"resume: the data of {' and '.join(changed)} changed since {folder} was started; expected the same texts, labels "
                "and tokenizer: bring the files back, or start again with overwrite=true or another output_dir"
            )
        if run["batch"] != batch:
            raise InputError(
                f"resume: a step of {folder} has {run['batch']} pairs (batch_size x gradient_accumulation_steps x processes), "
                f"this launch makes it {batch}; start as many processes as before, or change the other two to match"
            )
    else:
        if run is not None:
            _remove_run(folder, run["run_id"])
            (folder / CONFIG_FILE).unlink(missing_ok=True)
        own = config.model_copy(update={"resume": False, "overwrite": False})
        run = {
            "format": 2,
            "run_id": uuid.uuid4().hex[:12],
            "data": list(data_keys.values()),
            "batch": batch,
            "chosen_by": chosen_by,
            "val_digest": val_digest,
            "config": own.model_dump(),
        }
        write_whole(folder / RUN_FILE, sealed(run))  # from here on the folder is ours
    if not (folder / CONFIG_FILE).exists():
        write_whole(folder / CONFIG_FILE, dump_config(load_config(run["config"])))
    _clear_leftovers(folder)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return run


@contextmanager
def said_when_stopped(config: TrainConfig) -> Iterator[None]:
    """SIGTERM inside says which run it has stopped, and how that goes on."""
    try:
        yield
    except Terminated as stop:
        folder = Path(config.output_dir)
        newest = numbered(folder, "checkpoint")[-1:]
        then = f"goes on from {newest[0][1].name}" if newest else "begins again: there is no checkpoint yet"
        what = f"; resume=true {then}" if (folder / RUN_FILE).is_file() else ", which had not begun: start it again"
        raise Terminated(f"the training in {folder}{what}") from stop


def _restore_model(folder: Path) -> None:
    """Gives a final model its name back that a killed run had moved away to put another in its place."""
    moved = [path for path in folder.glob(".old-model-*") if (path / CONTRACT_FILE).is_file() and not path.is_symlink()]
    if moved and not (folder / "model").exists():
        moved[0].rename(folder / "model")


def _remove_run(folder: Path, run_id: str) -> None:
    """Removes what a run wrote, but for the two files that are replaced; other things stay."""
    for path in [path for kind in ("checkpoint", *MODELS) for _, path in numbered(folder, kind)]:
        remove(path)
    for name in (BUDGET_FILE, PUBLISHED_FILE):
        (folder / "checkpoints" / name).unlink(missing_ok=True)
    if (folder / "model").is_dir():
        remove(folder / "model")
    if (folder / REPORT_FILE).is_file():
        (folder / REPORT_FILE).unlink()
    remove_traces(folder, run_id)


def _leftovers(folder: Path) -> list[Path]:
    """Half-written and half-removed things of a killed run."""
    places = (folder, folder / "checkpoints")
    return [path for place in places for path in place.glob(".*") if LEFTOVER.fullmatch(path.name)]


def _clear_leftovers(folder: Path) -> None:
    for path in (folder / "checkpoints").glob(".tmp*"):
        if ASIDE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
    for path in _leftovers(folder):
        kind, name, _ = LEFTOVER.fullmatch(path.name).groups()  # type: ignore[union-attr]
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif kind == "tmp":
            shutil.rmtree(path)
        else:
            dispose(path, path.with_name(name))
