"""Folders that are whole or absent: written aside, synced, renamed.

Contract: nobody ever reads half of one under its name; what a killed process leaves is called `.tmp-NAME-...`, or `.old-NAME-PID`
where it was about to be replaced. Rejected: writing in place behind a marker file, which every reader would have to know.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankery.errors import InputError


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
        raise InputError(
            f"{folder}: could not be saved: {error}; what was saved before is whole: make room, then go on with resume=true"
        ) from error


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
    shutil.rmtree(old, ignore_errors=True)
