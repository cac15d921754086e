"""What `rankery score` keeps beside its output until that is whole: the logits of finished blocks, in a folder OUTPUT.parts.

Contract: whatever moment a run is killed at, the folder says how far it came, and nothing else is left behind. `meta.json`, sealed,
says what the scores are made of; it is written first and deleted last. A block has a digest, and counts only where that and its
size are right and all its logits are numbers: else it is scored again. One process, or one group, works in a folder at a time.
The output is put together in the folder too:

    meta.json                             half a run: it goes on
    meta.json says assembled, whole file  the whole file, if it has the digest that is said, takes the output's name
    meta.json says assembled, no file     the output, if it has that digest, is in place; the folder has to go

Cost: the logits twice on the disk for a while. Rejected: telling a finished run by an output that is there, which may be an older
one that the run was about to replace.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankery.data.files import content_digest, written_whole
from rankery.errors import InputError
from rankery.locks import LOCK_FILE, FolderLock
from rankery.sealed import DIGEST, Schema, read_sealed, sealed

META_FILE, ASSEMBLED = "meta.json", "assembled"
BYTES = 4  # of a pair's logit, float32
DIGEST_BYTES = 16  # behind a block's logits
PART = re.compile(r"[0-9]{8}\.f32")


class Meta(Schema):
    """meta.json: what the scores are made of, and once it is put together, the output's digest."""

    data: str
    assembled: str | None = None


def write_whole(path: Path, content: bytes) -> None:
    """Written aside, synced, renamed: a reader never sees half of it.

    Raises:
        InputError: the disk is full.
    """
    with written_whole(path) as file:
        file.write(content)


@dataclass(frozen=True)
class Parts:
    """The folder of a run that writes `output`; `made_of`: what the output depends on, as JSON holds it."""

    output: Path
    made_of: Mapping[str, Any]
    lock: FolderLock = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lock", FolderLock(self.folder))

    @property
    def folder(self) -> Path:
        return _folder(self.output)

    @property
    def whole(self) -> Path:
        """The output before it has its name."""
        return _whole(self.output)

    def part(self, index: int) -> Path:
        """The file of a block's logits, float32."""
        return self.folder / f"{index:08d}.f32"

    def claim(self, takes: bool = True) -> None:
        """Makes the folder, or takes up one that is there; `takes`: for this process, or for the group that it is the first of.

        Raises:
            InputError: half a run of something else, a folder that rankery did not write, or one that another run works in.
        """
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise InputError(f"{self.folder}: is in the way; move it, or choose another output")
        found = _meta(self.output)
        if found is None and self.folder.exists() and any(_foreign(self.folder)):
            raise InputError(
                f"{self.folder}: is in the way, and rankery did not write it; move it, or choose another output"
            )
        if takes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            found = _meta(self.output)
        if found is not None and {**found, ASSEMBLED: None} != {**sealed_form(self.made_of), ASSEMBLED: None}:
            self.lock.release()
            raise InputError(
                f"{self.folder}: holds half a run of other data, teachers, weights or options; delete it to start anew, or choose "
                "another output",
                shared=True,
            )
        # Somebody has deleted the finished output, or it is damaged.
        again = found is not None and found.get(ASSEMBLED) is not None and not self.is_assembled()
        if takes and (found is None or again):
            write_whole(self.folder / META_FILE, sealed(self.made_of).encode())
        for number in self._numbers() if takes else ():
            if self.read(number) is None:  # damaged: it is scored again
                self.part(number).unlink()

    def write(self, index: int, logits: np.ndarray) -> None:
        """Keeps a block's logits, [pairs] float32."""
        content = logits.astype("<f4").tobytes()
        write_whole(self.part(index), content + _digest(index, content))

    def read(self, index: int) -> np.ndarray | None:
        """A block's logits, [pairs] float32; None where it is not there, or damaged.

        Raises:
            InputError: something that is no file has its name.
        """
        path = self.part(index)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise InputError(f"{path}: is in the way, and no file; move it, then start again")
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        values, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if len(values) % BYTES or digest != _digest(index, values):
            return None
        logits = np.frombuffer(values, dtype="<f4").copy()
        return logits if np.isfinite(logits).all() else None

    def stored(self) -> dict[int, int]:
        """Pairs of each block that is finished, by its number."""
        blocks = {number: self.read(number) for number in self._numbers()}
        return {number: len(logits) for number, logits in blocks.items() if logits is not None}

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.f32") if PART.fullmatch(path.name))

    def is_assembled(self) -> bool:
        """Whether the output is whole, here or in its place."""
        return _assembled(self.output, self.whole if self.whole.exists() else self.output)

    def mark_assembled(self) -> None:
        """From now on the whole file is the output, or the output is in its place."""
        digest = content_digest([self.whole])
        write_whole(self.folder / META_FILE, sealed({**self.made_of, ASSEMBLED: digest}).encode())

    def deliver(self) -> None:
        """Gives the output its name and removes what rankery wrote of the folder."""
        if self.whole.is_file():
            self.whole.replace(self.output)
        with suppress(OSError):
            for path in [*self.folder.glob("*.f32"), *self.folder.glob(".tmp-*"), self.folder / META_FILE]:
                path.unlink()
        self.lock.release()
        with suppress(OSError):
            self.folder.rmdir()


def is_delivered(output: Path) -> bool:
    """Whether a run has put the output into its place, and was killed before its folder was gone."""
    return not _whole(output).exists() and _assembled(output, output)


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _whole(output: Path) -> Path:
    return _folder(output) / f"whole{output.suffix}"  # with its .gz, which decides how it is written


def sealed_form(made_of: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back."""
    plain: dict[str, Any] = json.loads(sealed(made_of))
    del plain[DIGEST]
    return plain


def _assembled(output: Path, file: Path) -> bool:
    """Whether `file` is the output of a run that was put together."""
    digest = (_meta(output) or {}).get(ASSEMBLED)
    return digest is not None and file.is_file() and not file.is_symlink() and content_digest([file]) == digest


def _meta(output: Path) -> dict[str, Any] | None:
    """meta.json; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    file = _folder(output) / META_FILE
    if not file.is_symlink() and not file.exists():
        return None
    try:
        return read_sealed(file, Meta)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: is not what rankery writes there ({error}); delete {file.parent} to start anew", shared=True
        ) from error


def _digest(index: int, content: bytes) -> bytes:
    return hashlib.blake2b(index.to_bytes(8, "little") + content, digest_size=DIGEST_BYTES).digest()


def _foreign(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".tmp-") and path.name != LOCK_FILE]
