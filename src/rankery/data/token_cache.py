"""Folders of tokenised data on the disk: whole or made again, and never read where they have changed.

Contract: meta.json, sealed, has the size and BLAKE2b digest of every file; a process checks them once before it reads (1 GB/s), and
again only where a file is not the one it has checked. Token ids stay in files that are read by position, so that a cache deleted
during a run costs nothing, and one cut short an error; the rest (51 bytes a pair) is held in memory. What killed processes leave
goes when the next one tokenises. Rejected: memory-mapped files, whose pages kill the process (SIGBUS) when the file is cut short.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from rankery.data.files import written_whole
from rankery.errors import InputError
from rankery.locks import is_abandoned
from rankery.sealed import Schema, read_sealed, sealed

META_FILE = "meta.json"
ASIDE = re.compile(r"\.[0-9a-f]{32}-\w{8}")  # a folder that is being written
YOUNG_S = 60.0  # a folder so new may not have been taken hold of yet
Stamp = tuple[tuple[int, int, int], ...]
_whole: dict[Path, Stamp] = {}  # folders that this process has checked


class CachedFile(Schema):
    """One file of a cache."""

    bytes: NonNegativeInt
    digest: str


class Meta(Schema):
    """meta.json of a cache folder."""

    version: PositiveInt
    token_type: Literal["uint16", "uint32"]
    files: dict[str, CachedFile]


class Tokens:
    """Token ids of all texts in a row, in a file that stays open; `tokens[start:stop]` reads a piece, read-only."""

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype = path, np.dtype(dtype)
        self.file = path.open("rb", buffering=0)

    def __len__(self) -> int:
        return os.fstat(self.file.fileno()).st_size // self.dtype.itemsize

    def __getitem__(self, piece: slice) -> np.ndarray:
        start, stop = int(piece.start or 0), len(self) if piece.stop is None else int(piece.stop)
        count = max(0, stop - start) * self.dtype.itemsize
        read = os.pread(self.file.fileno(), count, start * self.dtype.itemsize)
        if len(read) != count:
            raise InputError(
                f"{self.path}: was cut short while it was being read; start again, with resume=true: it is made again"
            )
        return np.frombuffer(read, self.dtype)

    def __reduce__(self) -> tuple[type[Tokens], tuple[Path, str]]:
        return Tokens, (self.path, self.dtype.name)  # for processes that are not forked

    def tobytes(self) -> bytes:
        return self[:].tobytes()


def write_meta(folder: Path, version: int, token_type: str, names: Collection[str]) -> None:
    """Says what a folder is made of, when that is written."""
    files = {name: {"bytes": (folder / name).stat().st_size, "digest": _file_digest(folder / name)} for name in names}
    with written_whole(folder / META_FILE) as file:
        file.write(sealed({"version": version, "token_type": token_type, "files": files}).encode())


def read_meta(folder: Path, version: int, names: Collection[str]) -> dict[str, Any] | None:
    """meta.json of a folder that is whole; None where it is not."""
    try:
        meta = read_sealed(folder / META_FILE, Meta)
        if meta["version"] != version or set(meta["files"]) != set(names):
            return None
        paths = [folder / META_FILE, *(folder / name for name in names)]
        if folder.is_symlink() or any(path.is_symlink() or not path.is_file() for path in paths):
            return None
        stats = [path.stat() for path in paths]
        stamp = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)
        if _whole.get(folder) == stamp:
            return meta
        for name, expected in meta["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or _file_digest(path) != expected["digest"]:
                return None
    except (OSError, ValueError):
        return None
    _whole[folder] = stamp
    return meta


def delete(folder: Path) -> None:
    """Deletes a cache folder: the files that rankery writes there, no others, and nothing through a link.

    Raises:
        OSError: it holds something else.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    for path in [*folder.glob("*.bin"), *folder.glob(f".tmp-{META_FILE}-*"), folder / META_FILE]:
        if path.is_symlink() or path.is_file():
            path.unlink()
    folder.rmdir()


def clear_abandoned(cache: Path) -> None:
    """Deletes what killed processes have left of folders that they were writing."""
    for folder in cache.iterdir() if cache.is_dir() else ():
        if not ASIDE.fullmatch(folder.name) or folder.is_symlink():
            continue
        try:
            if time.time() - folder.stat().st_mtime > YOUNG_S and is_abandoned(folder):
                delete(folder)
        except OSError:
            pass  # another process has just done so, or it holds somebody's files


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
