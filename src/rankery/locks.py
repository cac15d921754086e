"""Who writes into a folder: one process at a time, and the others are told which.

Contract: the lock is the kernel's (flock on FOLDER/.lock), so that it ends with its process however that dies; the file says who
holds it, for people. It is not inherited: workers that are forked close it. Cost: two system calls. Rejected: a file with a process
number alone, which outlives a killed process and means nothing on another machine. Where a file system has no locks, there is none.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from rankery.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_held: set[int] = set()  # descriptors


def _forget() -> None:
    """A forked process holds nothing: the lock stays with the one that took it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class FolderLock:
    """The right to write into a folder; `with FolderLock(folder) as lock: lock.take()` gives it back at the end."""

    def __init__(self, folder: Path):
        self.file = folder / LOCK_FILE
        self.descriptor: int | None = None
        self.is_taken = False  # also where there are no locks

    def take(self) -> None:
        """Takes the lock, in a folder that is there; nothing where it is held already.

        Raises:
            InputError: another process has it.
        """
        while not self.is_taken:
            if fcntl is None:
                self.is_taken = True
                return
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = _owner(descriptor)
                os.close(descriptor)
                raise InputError(
                    f"{self.file.parent}: is in use by {owner}; wait until it has ended, stop it, or choose another folder",
                    shared=True,
                ) from error
            except OSError:  # a file system without locks
                self.file.unlink(missing_ok=True)
                os.close(descriptor)
                self.is_taken = True
                return
            if not _is_at(descriptor, self.file):  # its last owner has just removed it
                os.close(descriptor)
                continue
            self.descriptor, self.is_taken = descriptor, True
            _held.add(descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_self()).encode())

    def release(self) -> None:
        """Gives it back, and removes the file first: whoever opens it later finds it gone, or makes another."""
        self.is_taken = False
        if self.descriptor is None:
            return
        descriptor, self.descriptor = self.descriptor, None
        try:
            if descriptor in _held and _is_at(descriptor, self.file):
                self.file.unlink(missing_ok=True)
        finally:
            if descriptor in _held:  # in a forked process it is not
                _held.discard(descriptor)
                os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def is_abandoned(folder: Path) -> bool:
    """Whether nobody holds a folder that `hold_folder` is for; False where that cannot be told."""
    descriptor = hold_folder(folder)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def hold_folder(folder: Path) -> int | None:
    """A descriptor that marks a folder as in use until it is closed, or its process ends; None: somebody has it, or there are no
    locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _self() -> dict[str, str | int]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _owner(descriptor: int) -> str:
    """The process that holds a lock, in words."""
    try:
        told = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(told['process'])} on {told['host']!s:.80}, since {told['since']!s:.20}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
