"""TREC files and texts by id, read a query at a time: what is held is where things stand, not what stands there.

    TrecFile.qrels("qrels.trec")["q7"] -> {"d3": 1, ...}      TrecFile.run("run.trec")["q7"] -> {"d3": 0.87, ...}
    TextFile("documents.jsonl")["d3"] -> "the text"

Contract: opening reads the whole file once and reports all problems with their lines; after that only what is asked for is read.
Queries may stand in any order, and their lines apart. Cost: about 2 s a million lines; memory grows with the number of queries
(of texts: documents), not of lines. Rejected: whole files as dictionaries, 250 bytes a line.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from rankery.data.lines import FIELDS, TEXTS, raw_lines, unpacked
from rankery.data.records import MAX_COLLECTED, is_text, kind_of, parse_json
from rankery.errors import SHOWN_CHARACTERS, InputError, cut, shown

QRELS, RUN = "query 0 document relevance", "query Q0 document rank score tag"
BEIR = "query-id corpus-id score"  # judgements with a header, and without the column of zeros
HEADER = 1 << 12  # bytes of a first line that may be one
MOST_RELEVANT = 1_000_000  # trec_eval's nDCG keeps a counter for each grade up to the highest
ID_KEYS, TEXT_KEYS = ("id", "_id"), ("text", "contents")


class TrecFile:
    """Values of documents by query; iterates over the queries in the order of their first lines.

    Raises:
        InputError: with all problems of the file.
    """

    def __init__(self, path: Path, form: str, value: Callable[[str], float], expected: str):
        self.path, self._value = path, value
        self._spans: dict[str, list[int]] = {}  # offset and size of each stretch of lines
        self.lines = 0
        self._file = _opened(path, FIELDS)
        self._has_header = form == QRELS and _is_beir(self._file.readline(HEADER))
        self._file.seek(0)
        self._form = BEIR if self._has_header else form
        names = self._form.replace("corpus-id", "document").replace("relevance", "score").split()
        self._columns = names.index("document"), names.index("score")
        self._index(len(names), expected)

    @classmethod
    def qrels(cls, path: Path) -> TrecFile:
        """`query 0 document relevance` lines, or BEIR's `query-id corpus-id score` with a header; relevance is a whole number."""
        return cls(path, QRELS, _relevance, f"a whole number as relevance, below {MOST_RELEVANT:,}")

    @classmethod
    def run(cls, path: Path) -> TrecFile:
        """`query Q0 document rank score tag` lines; documents are ranked by score, whatever their rank says."""
        return cls(path, RUN, _finite, "a finite number as score")

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, query: str) -> bool:
        return query in self._spans

    def __getitem__(self, query: str) -> dict[str, float]:
        """Document -> value; nothing for a query that is not there."""
        document, value = self._columns
        return {fields[document]: self._value(fields[value]) for fields in self._rows(query)}

    def size(self, query: str) -> int:
        """Bytes of its lines."""
        return sum(self._spans.get(query, ())[1::2])

    def _rows(self, query: str) -> Iterator[list[str]]:
        spans = self._spans.get(query, [])
        for offset, size in zip(spans[::2], spans[1::2], strict=True):
            self._file.seek(offset)
            yield from filter(None, map(str.split, self._file.read(size).decode().split("\n")))

    def _index(self, columns: int, expected: str) -> None:
        problems: list[str] = []
        offset, query, documents = 0, "", set[str]()
        of_document, of_value = self._columns
        for number, line in enumerate(_lines(self._file, self.path, FIELDS), 1):
            size = len(line)
            if number == 1 and self._has_header:
                offset += size
                continue
            try:
                fields = line.decode().split()
                if fields and (len(fields) != columns or b"\0" in line):  # C takes zero bytes for the end
                    raise ValueError
                value = self._value(fields[of_value]) if fields else None
            except ValueError:
                if len(problems) < MAX_COLLECTED:
                    got = shown(line[:SHOWN_CHARACTERS].decode(errors="replace").strip())
                    problems.append(f"{self.path}:{number}: is {got}; expected `{self._form}`, with {expected}")
                fields, value = [], None
            if value is not None:
                self.lines += 1
                if fields[0] != query:
                    query, documents = fields[0], set()
                    self._spans.setdefault(query, []).extend((offset, 0))
                document = fields[of_document]
                if document in documents and len(problems) < MAX_COLLECTED:
                    problems.append(
                        f"{self.path}:{number}: names {cut(document)} again for query {cut(query)}; expected it once"
                    )
                documents.add(document)
            if query:
                spans = self._spans[query]
                spans[-1] = offset + size - spans[-2]
            offset += size
        if not self.lines and not problems:
            problems.append(f"{self.path}: is empty; expected lines of `{self._form}`")
        if not problems:
            problems += self._repeated()
        if problems:
            raise InputError(problems)

    def _repeated(self) -> list[str]:
        """What lines that are apart name twice, as those of two files put together may."""
        problems: list[str] = []
        for query in (query for query, spans in self._spans.items() if len(spans) > 2):
            names = [fields[self._columns[0]] for fields in self._rows(query)]
            twice = (
                next(name for name, count in Counter(names).items() if count > 1)
                if len(set(names)) < len(names)
                else None
            )
            if twice is not None and len(problems) < MAX_COLLECTED:
                problems.append(
                    f"{self.path}: names {cut(twice)} again for query {cut(query)}, in lines that are apart; expected it once"
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
        self._file = _opened(path, TEXTS)
        self._places: dict[str, tuple[int, int]] = {}
        self._is_json: bool | None = None
        problems: list[str] = []
        offset = 0
        for number, line in enumerate(_lines(self._file, path, TEXTS), 1):
            if line.strip():
                if self._is_json is None:
                    self._is_json = line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
                try:
                    name, _ = self._parse(line, f"{path}:{number}")
                    if name in self._places:
                        raise InputError(f"{path}:{number}: names {cut(name)} again; expected each id once")
                    self._places[name] = (offset, len(line))
                except InputError as error:
                    problems += error.problems[: MAX_COLLECTED - len(problems)]
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
        return self._parse(self._file.read(size), str(self.path))[1]

    def _parse(self, line: bytes, where: str) -> tuple[str, str]:
        line = line.removeprefix(b"\xef\xbb\xbf")
        if not self._is_json:
            try:
                name, tab, text = line.decode().rstrip("\r\n").partition("\t")
            except UnicodeDecodeError:
                raise InputError(f"{where}: is not UTF-8; expected an id, a tab and a text in UTF-8") from None
            if not tab or not name:
                raise InputError(f"{where}: is {shown(name)}; expected an id, a tab and a text")
            return name, text
        row = parse_json(line, where, 'an object: {"id", "text"}')
        if not isinstance(row, dict):
            raise InputError(f'{where}: is {kind_of(row)}; expected an object: {{"id", "text"}}')
        found = [next((row[key] for key in keys if row.get(key) is not None), None) for keys in (ID_KEYS, TEXT_KEYS)]
        if (
            not isinstance(found[0], str | int)
            or isinstance(found[0], bool)
            or not all(map(is_text, (str(found[0]), found[1])))
        ):
            raise InputError(f'{where}: has the keys {shown(sorted(row))}; expected "id" and "text", both strings')
        title = row.get("title")
        if title is not None and not is_text(title):
            raise InputError(f'{where}: "title" is {kind_of(title)}; expected a string')
        return str(found[0]), f"{title} {found[1]}" if title else str(found[1])

    def get(self, name: str) -> str | None:
        place = self._places.get(name)
        return None if place is None else self[name]


def _is_beir(line: bytes) -> bool:
    """Whether a first line is the header of judgements as BEIR has them, whatever it calls query and document."""
    names = line.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").lower().split()
    return len(names) == 3 and names[2] in ("score", "relevance", "rel", "label")


def _ascii(word: str) -> str:
    """The spelling of a number, as other programs read it too: Python would take 1_000 and digits of all scripts."""
    if "_" in word or not word.isascii():
        raise ValueError
    return word


def _relevance(word: str) -> int:
    value = int(_ascii(word))
    if not -MOST_RELEVANT < value < MOST_RELEVANT:
        raise ValueError
    return value


def _finite(word: str) -> float:
    value = float(_ascii(word))
    if not math.isfinite(value):
        raise ValueError
    return value


def _opened(path: Path, holds: str) -> BinaryIO:
    """The file, unpacked where it is packed: what is read later is found by its place."""
    try:
        file = path.open("rb")
        content = unpacked(file)
        if content is file:
            return file
        plain = tempfile.TemporaryFile()
        with file:
            plain.writelines(raw_lines(content, str(path), holds))
        plain.seek(0)
        return plain  # type: ignore[return-value]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}; expected a file, plain or gzip") from error


def _lines(file: BinaryIO, path: Path, holds: str) -> Iterator[bytes]:
    try:
        yield from raw_lines(file, str(path), holds)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
