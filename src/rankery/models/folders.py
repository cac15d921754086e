"""Folders, and files, that are whole or absent: written aside, synced, renamed.

Contract: nobody ever reads half of one under its name; what a killed process leaves is called `.tmp-NAME-...`, or `.old-NAME-...`
where it was about to be replaced or removed. Of these only the files that rankery wrote are deleted: models and checkpoints list
them. Rejected: writing in place behind a marker file, which every reader would have to know.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rankery.errors import InputError

CONTRACT_FILE, STATE_FILE = "rankery.json", "state.json"  # of a model and of a checkpoint; both list its "files"


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of `folder` as a whole; nothing is left after an error.

    Raises:
        InputError: the disk is full or not writable.
    """
    from safetensors import SafetensorError

    try:
        aside = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
        try:
            os.chmod(aside, 0o755)
            yield aside
            sync(aside)
            replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise not_saved(folder, error) from error


def not_saved(path: Path, error: Exception) -> InputError:
    """What a run says when the disk is full or not writable."""
    return InputError(
        f"{path}: could not be saved: {error}; what was saved before is whole: make room, then go on with resume=true"
    )


def write_whole(path: Path, text: str) -> None:
    """A file of UTF-8 text, whole or as it was before: written aside, synced, renamed."""
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:  # a path that is no UTF-8
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Flushes every file and folder below to the disk, so that a rename never shows unwritten bytes."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(aside: Path, folder: Path) -> None:
    """Renames `aside` to `folder`; what was there is moved away first and deleted after."""
    old = folder.with_name(f".old-{folder.name}-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if old.exists():
        dispose(old, folder)


def remove(folder: Path) -> None:
    """Deletes a model or checkpoint so that no half of it is ever seen under its name; what rankery did not write stays there."""
    gone = folder.with_name(f".old-{folder.name}")
    folder.rename(gone)
    dispose(gone, folder)


def dispose(gone: Path, place: Path) -> None:
    """Deletes what rankery wrote of a folder that was moved away from `place`; the rest goes back there."""
    for path in [*_written(gone / "model"), *_written(gone)]:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(gone.rglob("*"), reverse=True):  # what is in a folder before the folder
        back = place / path.relative_to(gone)
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif not back.exists():
                back.parent.mkdir(parents=True, exist_ok=True)
                path.rename(back)
    with suppress(OSError):
        gone.rmdir()


def _written(folder: Path) -> list[Path]:
    """What rankery wrote into a model or checkpoint; the lists of it last, so that a killed deletion can be taken up."""
    names = [path.name for path in folder.glob("optimizer-*-of-*.safetensors")]  # also where the list is damaged
    for listing in (CONTRACT_FILE, STATE_FILE):
        with suppress(OSError, ValueError, KeyError, TypeError):
            names += json.loads((folder / listing).read_text(encoding="utf-8"))["files"]
    paths = [Path(os.path.normpath(folder / name)) for name in names if isinstance(name, str)]
    # A list that names other places is not ours.
    inside = [path for path in paths if Path(os.path.normpath(folder)) in path.parents]
    return [*inside, folder / CONTRACT_FILE, folder / STATE_FILE]
