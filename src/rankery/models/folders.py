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
    """A file of UTF-8 text, whole or as it was before: written aside, synced, renamed.

    Raises:
        OSError: with the file's name, also where the disk is full.
    """
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:  # a path that is no UTF-8
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:  # of a full disk names no file, and others the one aside
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error
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
    if gone.is_symlink():  # what it leads to is not ours
        gone.unlink()
        return
    model = gone / "model"
    for path in [*(() if model.is_symlink() else _written(model)), *_written(gone)]:
        with suppress(OSError):
            path.unlink()
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


def regular_file(folder: Path, name: object) -> Path | None:
    """The file in `folder` that a name read from a file stands for; None where it is no plain name of a regular file inside.

    Whoever wrote the listing may have meant harm: `..`, absolute paths, and links on the way or at its end, lead elsewhere.
    """
    parts = name.split("/") if isinstance(name, str) and "\0" not in name else []
    if not parts or any(part in ("", ".", "..") or os.sep in part or (os.altsep or "/") in part for part in parts):
        return None
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            return None
    return path if path.is_file() else None


def files_in(folder: Path) -> list[str]:
    """Names of the regular files below a folder, relative to it, with `/`; what links lead to is not below it."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in found if regular_file(folder, name))


def _written(folder: Path) -> list[Path]:
    """What rankery wrote into a model or checkpoint; the lists of it last, so that a killed deletion can be taken up."""
    optimizer = folder.glob("optimizer-*-of-*.safetensors")  # also where the list is damaged
    names: list[object] = [path.name for path in optimizer]
    listings = [path for path in (folder / CONTRACT_FILE, folder / STATE_FILE) if regular_file(folder, path.name)]
    for listing in listings:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            for name in json.loads(listing.read_text(encoding="utf-8"))["files"]:
                names += [name, *_below(folder, name)]
    paths = [path for name in names if (path := regular_file(folder, name)) is not None and path not in listings]
    return [*paths, *listings]


def _below(folder: Path, name: object) -> list[str]:
    """Files of a folder that is listed by its own name, as older rankeries did with tokenizers' additional_chat_templates."""
    if not isinstance(name, str) or "/" in name or name in ("", ".", "..") or (folder / name).is_symlink():
        return []
    return [f"{name}/{file}" for file in files_in(folder / name)]
