"""Where a text stands, in one number; and back to the text.

A place is (lines of the files before + line number) * 65,536 + index of the document in its line, so it grows along the data and
two places of one line are neighbours. Contract: `visit` reads again only what is asked for, one line at a time. Cost: 8 bytes a
place; a pass over the bytes. Rejected: byte offsets, which compressed files lack.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

from rankery.data.lines import numbered_lines
from rankery.data.records import LabelRange, QueryRecord, parse_line
from rankery.errors import InputError

DOCUMENTS = 1 << 16  # of one line; the ones after share the last place


class Files:
    """Files in the order in which they are read."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.starts: list[int] = []  # lines before each file
        self.lines = 0

    def open(self, path: Path) -> None:
        """The lines that follow are of this file."""
        self.paths.append(path)
        self.starts.append(self.lines)

    def place(self, line: int, document: int = 0) -> int:
        """Place of a document in the file opened last."""
        self.lines = self.starts[-1] + line
        return self.lines * DOCUMENTS + min(document, DOCUMENTS - 1)

    def where(self, place: int) -> tuple[str, int]:
        """(file, line number) of a place."""
        line = place // DOCUMENTS
        file = bisect_right(self.starts, line - 1) - 1
        return str(self.paths[file]), line - self.starts[file]

    def visit(self, places: Iterable[int], labels: LabelRange) -> Iterator[tuple[int, QueryRecord, int]]:
        """(place, its record, index of its document) of each place, in their order, each once."""
        wanted: dict[int, list[int]] = {}
        for place in sorted(set(places)):
            wanted.setdefault(place // DOCUMENTS, []).append(place)
        for path, start, end in zip(self.paths, self.starts, [*self.starts[1:], self.lines], strict=True):
            left = sum(start < line <= end for line in wanted)
            if not left:
                continue
            try:
                for number, line in numbered_lines(path):
                    if found := wanted.get(start + number):
                        record = parse_line(line, str(path), number, labels)
                        yield from ((place, record, place % DOCUMENTS) for place in found)
                        left -= 1
                        if not left:
                            break
            except InputError as error:
                raise InputError(f"{error}; it was read before: expected a file that stays as it is") from error


class Tally:
    """How often something was seen, and the first places of it."""

    def __init__(self, shown: int = 5):
        self.count, self.shown = 0, shown
        self.places: list[int] = []

    def note(self, place: int) -> None:
        self.count += 1
        if len(self.places) < self.shown:
            self.places.append(place)
