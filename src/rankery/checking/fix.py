"""The cleaned file: what is certainly wrong is left out, the rest is as it was.

    lines that cannot be read, empty texts, queries of the other files, documents that come again -> left out
    a document with several labels for one query -> kept with the highest; lines of one query -> one line, where the last was

Contract: needs a scan that kept every text. Lines without a change keep their bytes. What is doubtful (false negatives, nearly
equal texts, queries without a relevant document) stays: it is reported, and for a person to judge. Checking the output finds
nothing of what is mended here, and mending it again changes nothing but the order of lines that could not be joined. Memory: a byte a pair, and the documents of queries that
stand in several lines, HELD_CHARACTERS at most. Rejected: changing the file in place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankery.checking.places import DOCUMENTS, Files
from rankery.checking.scan import Scan, grades_of, pair_keys
from rankery.checking.texts import keys_of, normalise
from rankery.data.files import check_new_file, written_whole
from rankery.data.lines import numbered_lines
from rankery.data.records import QueryRecord, parse_object, parse_row
from rankery.errors import InputError, option

HELD_CHARACTERS = 1 << 27
LOGGED = 100_000  # changes that are listed one by one


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path], overwrite: bool) -> None:
    """Whether the cleaned file and the reports may be written there.

    Raises:
        InputError: one is there and nobody said to replace it, it is one of the inputs, or two are the same.
    """
    for number, output in enumerate(outputs):
        if output.exists() and any(output.samefile(path) for path in inputs):
            raise InputError(f"{output}: is one of the files that are checked; expected a new name")
        if output.resolve() in [other.resolve() for other in outputs[:number]]:
            raise InputError(f"{output}: is to hold two results; expected a name for each")
        check_new_file(output, overwrite)


def check_scan(scan: Scan, against: Scan | None) -> None:
    """Whether a scan knows enough to mend the data.

    Raises:
        InputError: it kept only a sample.
    """
    tables = [scan.queries, scan.pairs, *([against.queries] if against else [])]
    for table in tables:
        table.whole()
    if any(table.scale > 1 for table in tables):
        raise InputError(
            f"fix wants to know all texts, and there are more than {scan.pairs.capacity:,}; expected a larger {option('max_texts')}"
        )


def fix(paths: Sequence[Path], output: Path, scan: Scan, against: Scan | None) -> dict[str, Any]:
    """Writes the cleaned data to `output`, gzip where it ends in .gz; gives "output", "lines", "pairs", "changes" and "log".

    "changes" has the number of each kind of change, "log" the first LOGGED with their lines.

    Raises:
        InputError: the disk is full.
    """
    fixer = Fixer(scan, against)
    with written_whole(output) as file:
        for line in fixer.lines(paths):
            file.write(line)
    return {
        "output": str(output), "lines": fixer.written, "pairs": fixer.pairs, "changes": dict(fixer.changes), "log": fixer.log,
    }  # fmt: skip


class Fixer:
    """What is known of the data, and what has been written of it."""

    def __init__(self, scan: Scan, against: Scan | None):
        self.labels, self.queries, self.table = scan.labels, scan.queries.whole(), scan.pairs.whole()
        self.leaked = against.queries.whole()["key"] if against else np.empty(0, dtype=np.uint64)
        self.is_written: np.ndarray = np.zeros(len(self.table["key"]), dtype=bool)
        self.files = Files()
        self.held: dict[
            int, tuple[dict[str, Any], str]
        ] = {}  # key of a query in several lines -> its row so far, its line
        self.held_characters = 0
        self.written = self.pairs = 0
        self.changes: Counter[str] = Counter()
        self.log: list[str] = []

    def lines(self, paths: Sequence[Path]) -> Iterator[bytes]:
        """The lines of the cleaned file."""
        for path in paths:
            self.files.open(path)
            try:
                for number, line in numbered_lines(path):
                    yield from self._of_line(path, number, line)
            except InputError as error:
                self._note("files left out, from a damaged place on or as a whole", str(error))
        yield from self._released()

    def _of_line(self, path: Path, number: int, line: bytes) -> Iterator[bytes]:
        where, place = f"{path}:{number}", self.files.place(number)
        try:
            row = parse_object(line, where)
            record = parse_row(row, str(path), number, self.labels)
        except InputError:
            self._note("lines left out: cannot be read", where)
            return
        yield from self._of_record(row, record, line, place, where)

    def _of_record(
        self, row: dict[str, Any], record: QueryRecord, line: bytes, place: int, where: str
    ) -> Iterator[bytes]:
        query = normalise(record.query)
        key = keys_of([query])
        if not query or _has(self.leaked, key):
            why = "their query is in the other files" if query else "their query is empty"
            self._note(f"lines left out: {why}", where)
            return
        kept = self._kept(record, key, where)
        if not kept:
            self._note("lines left out: no document is left", where)
            return
        changed = len(kept) < len(record.documents)
        row = with_documents(row, record, kept) if changed else row
        at = int(np.searchsorted(self.queries["key"], key[0]))
        if record.is_pair_line or self.queries["lists"][at] == 1:
            yield self._line(row, None if changed else line, len(kept))
            return
        yield from self._joined(int(key[0]), row, place // DOCUMENTS == self.queries["last"][at] // DOCUMENTS, where)

    def _kept(self, record: QueryRecord, key: np.ndarray, where: str) -> list[int]:
        """Indices of the documents that stay."""
        texts = [normalise(text) for text in record.documents]
        pairs = pair_keys(np.repeat(key, len(texts)), keys_of(texts))
        rows = np.asarray(np.searchsorted(self.table["key"], pairs))
        kept = []
        for index, (text, row, grade) in enumerate(
            zip(texts, rows.tolist(), grades_of(record, self.labels), strict=True)
        ):
            which = f"{where}, document {index + 1}"
            if not text:
                self._note("documents left out: empty", which)
            elif np.float32(grade) < self.table["high"][row]:
                self._note("documents left out: the same query has them with a higher label", which)
            elif self.is_written[row]:
                self._note("documents left out: the same query has them already", which)
            else:
                self.is_written[row] = True
                kept.append(index)
        return kept

    def _joined(self, key: int, row: dict[str, Any], is_last: bool, where: str) -> Iterator[bytes]:
        """A line of a query in several lines: waits for the last of them."""
        if key not in self.held:
            self.held[key] = (row, where)
        else:
            before, first = self.held[key]
            together = joined(before, row)
            if together is None:
                self._note("lines not joined with another of the same query: of another form", f"{where} and {first}")
                yield self._line(before, None, len(_texts(before)))
                self.held_characters -= sum(map(len, _texts(before)))
                self.held[key] = (row, where)
            else:
                self._note("lines joined with another of the same query", f"{where} and {first}")
                self.held[key] = (together, first)
        self.held_characters += sum(map(len, _texts(row)))
        if is_last:
            whole, _ = self.held.pop(key)
            self.held_characters -= sum(map(len, _texts(whole)))
            yield self._line(whole, None, len(_texts(whole)))
        elif self.held_characters > HELD_CHARACTERS:
            self._note("times that queries in many lines were written before their last line", where)
            yield from self._released()

    def _released(self) -> Iterator[bytes]:
        for row, _ in self.held.values():
            yield self._line(row, None, len(_texts(row)))
        self.held.clear()
        self.held_characters = 0

    def _line(self, row: dict[str, Any], as_read: bytes | None, pairs: int) -> bytes:
        self.written += 1
        self.pairs += pairs
        if as_read is not None:
            return as_read.rstrip(b"\r\n") + b"\n"
        try:
            return json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half a character in a key that nobody reads
            return json.dumps(row).encode() + b"\n"

    def _note(self, change: str, where: str) -> None:
        self.changes[change] += 1
        if len(self.log) < LOGGED:
            self.log.append(f"{where}: {change}")


def with_documents(row: dict[str, Any], record: QueryRecord, kept: Sequence[int]) -> dict[str, Any]:
    """A line with some of its documents; lists that go along with "pos" and "neg" (pos_scores, neg_ids, ...) are cut alike."""
    if record.is_pair_line:
        return row
    if "hits" in row:
        return {**row, "hits": [row["hits"][i] for i in kept]}
    positives = len(record.documents) - record.negatives
    chosen = {"pos": [i for i in kept if i < positives], "neg": [i - positives for i in kept if i >= positives]}
    size = {"pos": positives, "neg": record.negatives}
    cut = dict(row)
    for name, value in row.items():
        side = name[:3]
        if isinstance(value, list) and side in chosen and (name == side or name[3] == "_") and len(value) == size[side]:
            cut[name] = [value[i] for i in chosen[side]]
    return cut


def joined(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any] | None:
    """One line of two with the same query, other keys as the left has them; None where one has a list (scores, say) that the other
    lacks.
    """
    if "hits" in left or "hits" in right:
        return {**left, "hits": left["hits"] + right["hits"]} if "hits" in left and "hits" in right else None
    together = {**right, **left}
    for side in ("pos", "neg"):
        lists = [_lists(row, side) for row in (left, right)]
        filled = [row for row in lists if row.get(side)]
        if len(filled) == 2 and filled[0].keys() != filled[1].keys():
            return None
        for name in [name for row in lists for name in row]:
            if not filled or name in filled[0]:
                together[name] = [value for row in filled for value in row[name]]
            elif together[name] == []:  # scores of no documents, say
                del together[name]
    return together


def _lists(row: dict[str, Any], side: str) -> dict[str, list[Any]]:
    size = len(row.get(side) or ())
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, list) and (name == side or name.startswith(f"{side}_")) and len(value) == size
    }


def _texts(row: dict[str, Any]) -> list[str]:
    if "hits" in row:
        return [hit["content"] for hit in row["hits"]]
    return [*(row.get("pos") or ()), *(row.get("neg") or ())]


def _has(keys: np.ndarray, key: np.ndarray) -> bool:
    at = int(np.searchsorted(keys, key[0]))
    return bool(at < len(keys) and keys[at] == key[0])
