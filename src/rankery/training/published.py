"""The final model's way into output_dir/model, and whether what lies there is it.

Contract: a model is measured when it is written and once more before it is published; published.json says what model/ is made of
before it appears. What this run did not put there is never replaced: the trained model then stays where it is, and the run fails.
Cost: a checksum of the weights at the end. Rejected: taking any model/ that is there for the result of a finished run.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from rankery.errors import InputError
from rankery.models.folders import CONTRACT_FILE, remove, write_whole
from rankery.sealed import Schema, read_sealed, sealed
from rankery.training.checkpoint import Files, Measures, damage, measured

PUBLISHED_FILE = "published.json"  # in checkpoints/


class Published(Schema):
    """What model/ was made of."""

    source: str  # best_N or last_N
    files: Measures


def is_published(folder: Path, run_format: int = 2) -> bool:
    """Whether model/ of a run's folder holds the weights that the run has put there. Other files in it may have changed since: a
    calibration, a card. Runs of an older rankery (format 1) say nothing: theirs is any model that rankery has saved."""
    model = folder / "model"
    try:
        published = read_sealed(folder / "checkpoints" / PUBLISHED_FILE, Published)
    except (OSError, ValueError):
        return run_format < 2 and (model / CONTRACT_FILE).is_file()
    weights = {name: size for name, size in published["files"].items() if name.endswith(".safetensors")}
    return bool(weights) and not model.is_symlink() and not damage(model, weights)


def is_finished(folder: Path, sources: Collection[str], run_format: int = 2) -> bool:
    """Whether model/ is the run's, made of one of these folders; of which is not known of runs of an older rankery."""
    if not is_published(folder, run_format):
        return False
    try:
        return read_sealed(folder / "checkpoints" / PUBLISHED_FILE, Published)["source"] in sources
    except (OSError, ValueError):
        return True


def not_whole(model: Path, files: Files) -> str:
    """Why nothing may be made of a model that a run wrote as `files`; "": it is whole."""
    if model.is_symlink() or not model.is_dir():
        return "is gone"
    wrong = damage(model, files) if files else []
    return f"is damaged ({'; '.join(wrong)})" if wrong else ""


def check_place(folder: Path, source: Path, run_format: int = 2) -> None:
    """Whether model/ is free, or this run's own.

    Raises:
        InputError: something else is there.
    """
    model = folder / "model"
    if os.path.lexists(model) and not is_published(folder, run_format):
        raise InputError(
            f"{model}: has appeared since the run began, and the run did not put it there; the trained model is kept in {source}: "
            "move the other away, then go on with resume=true"
        )


def publish(folder: Path, made: Path, files: Files, source: str) -> None:
    """Gives a model that was written as `files` its place.

    Args:
        folder: of the run.
        made: the model's folder, which becomes model/.
        files: what `measured` said when it was written; empty: an older rankery did not measure it.
        source: name of the folder that it was made of.

    Raises:
        InputError: the model is damaged, or something else is in its place; it stays where it is.
    """
    if wrong := not_whole(made, files):
        raise InputError(f"{made}: {wrong}, and is not published; go on with resume=true")
    check_place(folder, made)
    files = files or measured(made)
    model = folder / "model"
    if model.exists():
        remove(model)
    write_whole(folder / "checkpoints" / PUBLISHED_FILE, sealed({"source": source, "files": files}))
    try:
        made.rename(model)  # fails where a folder with something in it has appeared meanwhile
    except OSError as error:
        raise InputError(
            f"{model}: could not be put there ({error}); the trained model is kept in {made}: go on with resume=true"
        ) from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
