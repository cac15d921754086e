"""The output folder: who owns it, whether a run may write there, and how it is claimed.

    output_dir/run.json, config.yaml, metrics.jsonl, tensorboard/
    output_dir/checkpoints/             see checkpoint.py
    output_dir/model/                   appears when the run is done

Contract: everything is checked before anything is written; run.json says that a folder is a run's; nothing that a run did not
write is deleted. Rejected: deleting whole folders by their names, which people put their own files into.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

from rankery.config import RESUME_FREE, TrainConfig, dump_config, load_config
from rankery.errors import InputError
from rankery.models.contract import CONTRACT_FILE, foreign_files
from rankery.training.checkpoint import numbered, remove

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"
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
