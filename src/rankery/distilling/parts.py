"""What `rankery score` keeps beside its output until that is whole: the logits of finished blocks, in a folder OUTPUT.parts.

Contract: whatever moment a run is killed at, the folder says how far it came, and nothing else is left behind. `meta.json` says what
the scores are made of; it is written first and deleted last. The output is put together in the folder too:

    meta.json                             half a run: it goes on
    meta.json says assembled, whole file  the whole file takes the output's name
    meta.json says assembled, no file     the output is in place; the folder has to go

Cost: the logits twice on the disk for a while. Rejected: telling a finished run by an output that is there, which may be an older
one that the run was about to replace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankery.data.files import written_whole
from rankery.errors import InputError

META_FILE, ASSEMBLED = "meta.json", "assembled"
BYTES = 4  # of a pair's logit, float32


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

    def claim(self) -> None:
        """Makes the folder, or takes up one that is there.

        Raises:
            InputError: half a run of something else, or a folder that rankery did not write.
        """
        found = _meta(self.output)
        if found is not None and {**found, ASSEMBLED: None} != {**self.made_of, ASSEMBLED: None}:
            raise InputError(
                f"{self.folder}: holds half a run of other data, teachers, weights or options; delete it to start anew, or choose "
                "another output",
                shared=True,
            )
        if found is None and self.folder.exists() and any(_foreign(self.folder)):
            raise InputError(
                f"{self.folder}: is in the way, and rankery did not write it; move it, or choose another output"
            )
        if found is None or (
            ASSEMBLED in found and not self.is_assembled()
        ):  # somebody has deleted the finished output
            write_whole(self.folder / META_FILE, json.dumps(dict(self.made_of)).encode())

    def stored(self) -> dict[int, int]:
        """Pairs of each block that is finished, by its number."""
        return {int(path.stem): path.stat().st_size // BYTES for path in self.folder.glob("*.f32")}

    def is_assembled(self) -> bool:
        """Whether the output is whole, here or in its place."""
        return ASSEMBLED in (_meta(self.output) or {}) and (self.whole.is_file() or self.output.is_file())

    def mark_assembled(self) -> None:
        """From now on the whole file is the output, or the output is in its place."""
        write_whole(self.folder / META_FILE, json.dumps({**self.made_of, ASSEMBLED: True}).encode())

    def deliver(self) -> None:
        """Gives the output its name and removes what rankery wrote of the folder."""
        if self.whole.is_file():
            self.whole.replace(self.output)
        with suppress(OSError):
            for path in [*self.folder.glob("*.f32"), *self.folder.glob(".tmp-*"), self.folder / META_FILE]:
                path.unlink()
            self.folder.rmdir()


def is_delivered(output: Path) -> bool:
    """Whether a run has put the output into its place, and was killed before its folder was gone."""
    return ASSEMBLED in (_meta(output) or {}) and not _whole(output).is_file()


def _folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def _whole(output: Path) -> Path:
    return _folder(output) / f"whole{output.suffix}"  # with its .gz, which decides how it is written


def _meta(output: Path) -> dict[str, Any] | None:
    file = _folder(output) / META_FILE
    return json.loads(file.read_text()) if file.is_file() else None


def _foreign(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".tmp-")]
