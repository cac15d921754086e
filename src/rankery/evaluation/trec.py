"""TREC files and texts by id, read a query at a time: what is held is where things stand, not what stands there.

    TrecFile.qrels("qrels.trec")["q7"] -> {"d3": 1, ...}      TrecFile.run("run.trec")["q7"] -> {"d3": 0.87, ...}
    TextFile("documents.jsonl")["d3"] -> "the text"

Contract: opening reads the whole file once and reports all problems with their lines; after that only what is asked for is read.
Queries may stand in any order, and their lines apart. Cost: about 2 s a million lines; memory grows with the number of queries
(of texts: documents), not of lines. Rejected: whole files as dictionaries, 250 bytes a line.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from rankery.data.files import unpacked
from rankery.data.records import MAX_COLLECTED, is_text
from rankery.errors import InputError

QRELS, RUN = "query 0 document relevance", "query Q0 document rank score tag"
IDS, TEXTS = ("id", "_id"), ("text", "contents")


class TrecFile:
    """Values of documents by query; iterates over the queries in the order of their first lines.

    Raises:
        InputError: with all problems of the file.
    """

    def __init__(self, path: Path, form: str, column: int, value: Callable[[str], float], expected: str):
        self.path, self._column, self._value = path, column, value
        self._spans: dict[str, list[int]] = {}  # offset and size of each stretch of lines
        self.lines = 0
        self._file = _opened(path)
        self._index(len(form.split()), form, expected)

    @classmethod
    def qrels(cls, path: Path) -> TrecFile:
        """`query 0 document relevance` lines; relevance is a whole number."""
        return cls(path, QRELS, 3, int, "a whole number as relevance")

    @classmethod
    def run(cls, path: Path) -> TrecFile:
        """`query Q0 document rank score tag` lines; documents are ranked by score, whatever their rank says."""
        return cls(path, RUN, 4, _finite, "a finite number as score")

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, query: str) -> bool:
        return query in self._spans

    def __getitem__(self, query: str) -> dict[str, float]:
        """Document -> value; nothing for a query that is not there."""
        return {fields[2]: self._value(fields[self._column]) for fields in self._rows(query)}

    def size(self, query: str) -> int:
        """Bytes of its lines."""
        return sum(self._spans.get(query, ())[1::2])

    def _rows(self, query: str) -> Iterator[list[str]]:
        spans = self._spans.get(query, [])
        for offset, size in zip(spans[::2], spans[1::2], strict=True):
            self._file.seek(offset)
            yield from filter(None, map(str.split, self._file.read(size).decode().split("\n")))

    def _index(self, columns: int, form: str, expected: str) -> None:
        problems: list[str] = []
        offset, query, documents = 0, "", set[str]()
        for number, line in enumerate(_lines(self._file, self.path), 1):
            size = len(line)
            try:
                fields = line.decode().split()
                if fields and len(fields) != columns:
                    raise ValueError
                value = self._value(fields[self._column]) if fields else None
            except ValueError:
                if len(problems) < MAX_COLLECTED:
                    shown = line[:60].decode(errors="replace").strip()
                    problems.append(f"{self.path}:{number}: is {shown!r}; expected `{form}`, with {expected}")
                fields, value = [], None
            if value is not None:
                self.lines += 1
                if fields[0] != query:
                    query, documents = fields[0], set()
                    self._spans.setdefault(query, []).extend((offset, 0))
                if fields[2] in documents and len(problems) < MAX_COLLECTED:
                    problems.append(
                        f"{self.path}:{number}: names {fields[2]} again for query {query}; expected it once"
                    )
                documents.add(fields[2])
            if query:
                spans = self._spans[query]
                spans[-1] = offset + size - spans[-2]
            offset += size
        if not self.lines and not problems:
            problems.append(f"{self.path}: is empty; expected lines of `{form}`")
        if not problems:
            problems += self._repeated()
        if problems:
            raise InputError(problems)

    def _repeated(self) -> list[str]:
        """What lines that are apart name twice, as those of two files put together may."""
        problems: list[str] = []
        for query in (query for query, spans in self._spans.items() if len(spans) > 2):
            names = [fields[2] for fields in self._rows(query)]
            twice = (
                next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
            )
            if twice is not None and len(problems) < MAX_COLLECTED:
                problems.append(
                    f"{self.path}: names {twice} again for query {query}, in lines that are apart; expected it once"
                )
        return problems


class TextFile:
    """Texts by id, of JSONL lines `{"id", "text"}` or of tab-separated `id`, `text` lines.

    JSONL may say "_id" and "contents", and a "title", which is put before the text.

    Raises:
        InputError: with all problems of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = _opened(path)
        self._places: dict[str, tuple[int, int]] = {}
        self._is_json: bool | None = None
        problems: list[str] = []
        offset = 0
        for number, line in enumerate(_lines(self._file, path), 1):
            if line.strip():
                if self._is_json is None:
                    self._is_json = line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
                try:
                    name, _ = self._parse(line)
                    if name in self._places:
                        raise ValueError(f"names {name} again; expected each id once")
                    self._places[name] = (offset, len(line))
                except ValueError as error:
                    if len(problems) < MAX_COLLECTED:
                        problems.append(f"{path}:{number}: {error}")
            offset += len(line)
        if not self._places and not problems:
            problems.append(f'{path}: is empty; expected {{"id", "text"}} lines, or id and text with a tab between')
        if problems:
            raise InputError(problems)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> str:
        offset, size = self._places[name]
        self._file.seek(offset)
        return self._parse(self._file.read(size))[1]

    def _parse(self, line: bytes) -> tuple[str, str]:
        try:
            words = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8; expected UTF-8") from None
        if not self._is_json:
            name, tab, text = words.rstrip("\r\n").partition("\t")
            if not tab or not name:
                raise ValueError(f"is {words[:40]!r}; expected an id, a tab and a text")
            return name, text
        try:
            row = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'is not JSON ({error}); expected {{"id", "text"}}') from None
        if not isinstance(row, dict):
            raise ValueError('is no object; expected {"id", "text"}')
        found = [next((row[key] for key in keys if row.get(key) is not None), None) for keys in (IDS, TEXTS)]
        if not isinstance(found[0], str | int) or not is_text(found[1]):
            raise ValueError(f'has the keys {sorted(row)}; expected "id" and "text", both strings')
        title = row.get("title")
        return str(found[0]), f"{title} {found[1]}" if is_text(title) and title else str(found[1])

    def get(self, name: str) -> str | None:
        place = self._places.get(name)
        return None if place is None else self[name]


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError
    return value


def _opened(path: Path) -> BinaryIO:
    """The file, unpacked where it is packed: what is read later is found by its place."""
    try:
        file = path.open("rb")
        content = unpacked(file)
        if content is file:
            return file
        plain = tempfile.TemporaryFile()
        with file:
            shutil.copyfileobj(content, plain)
        plain.seek(0)
        return plain  # type: ignore[return-value]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}; expected a file, plain or gzip") from error


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
