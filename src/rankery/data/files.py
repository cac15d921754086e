"""Data files: which ones a path names, what is in them, and hashes of files and texts that are equal on every machine."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rankery.errors import InputError, cut, option

LONGEST_PATH = 4095  # bytes, on Linux; longer is data that was taken for a name


def expand_paths(spec: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files named by one path, a list of paths, or globs, in a stable order.

    Raises:
        InputError: a path or glob that names no file.
    """
    paths: list[Path] = []
    problems: list[str] = []
    items = [Path(item).expanduser() for item in ([spec] if isinstance(spec, str | Path) else spec)]
    for item in items:
        if "\0" in str(item) or len(str(item)) > LONGEST_PATH:
            problems.append(f"{cut(str(item))}: is no name of a file; expected a .jsonl or .jsonl.gz file")
            continue
        is_pattern = glob.has_magic(str(item)) and not item.is_file()
        matches = sorted(glob.glob(str(item), recursive=True)) if is_pattern else [str(item)]
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            kind = "is a folder" if item.is_dir() else "does not exist"
            problems.append(
                f"{item}: {kind}; expected a .jsonl or .jsonl.gz file, a list of them or a glob such as data/*.jsonl"
            )
        paths += [path for path in found if path not in paths]
    if not items:
        problems.append("no data file is named; expected a .jsonl or .jsonl.gz file, a list of them or a glob")
    if problems:
        raise InputError(problems)
    return paths


def check_new_file(path: Path, overwrite: bool) -> None:
    """Whether a file can be written there.

    Raises:
        InputError: it is there and nobody said to replace it, it is no file, or its folder cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected the name of a file")
    if path.exists() and not path.is_file():  # a device or a pipe, which a rename would replace
        raise InputError(f"{path}: is no file that could be replaced; choose another name")
    if path.exists() and not overwrite:
        raise InputError(f"{path}: is there already; {option('overwrite')} replaces it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{path}: {above} cannot be written to; choose another place")


def check_outside(path: Path, models: Sequence[str | Path]) -> None:
    """Whether a file is to lie outside the folders of models, whose every file is the model's.

    Raises:
        InputError: it is to lie inside one.
    """
    for model in models:
        folder = Path(model).expanduser()
        if folder.is_dir() and folder.resolve() in path.expanduser().resolve().parents:
            raise InputError(f"output is {path}, inside the folder of the model {folder}; choose another place")


def content_digest(paths: Sequence[Path]) -> str:
    """Hex digest of the files' bytes, in order.

    Raises:
        InputError: files that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    problems: list[str] = []
    for path in paths:
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error}; expected JSONL, plain or gzip")
        digest.update(b"\0next file\0")
    if problems:
        raise InputError(problems)
    return digest.hexdigest()


def check_writable(file: Path) -> None:
    """What is there, the file or else the nearest folder above it, must be writable.

    Raises:
        InputError: it is not.
    """
    existing = next(path for path in (file.absolute(), *file.absolute().parents) if path.exists())
    if file.is_dir() or not (file.exists() or existing.is_dir()) or not os.access(existing, os.W_OK):
        raise InputError(f"output is {file}, which cannot be written: check {existing}, or choose another place")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the system inside, such as a full disk, name the file that was being written."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which then takes the name `path`; nothing is left after an error, no folder either. Packed where the name
    ends in .gz.

    Raises:
        InputError: the disk is full or not writable.
    """
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    above = [folder for folder in path.absolute().parents if not folder.exists()]
    is_whole = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # the same bytes whenever it is written
                    yield packed  # type: ignore[misc]
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        is_whole = True
    except OSError as error:
        raise InputError(f"{path}: could not be written: {error}; make room, then start again") from error
    finally:
        aside.unlink(missing_ok=True)
        for folder in [] if is_whole else above:  # that were made for it
            with suppress(OSError):
                folder.rmdir()


def text_hash(*texts: str) -> int:
    """64-bit hash of texts, equal on every machine."""
    joined = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """Seeded permutation of uint64 keys, [P] -> [P]: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    mixed = np.asarray(keys, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (int(seed) + 1) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
