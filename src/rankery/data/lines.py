"""Lines of files that people hand over: one at a time, numbered, never longer than memory takes, and of the format asked for.

    numbered_lines(path) -> (1, b'{"query": ...}\\n'), ...

Contract: a file of another format (UTF-16, CSV, Parquet, a JSON array, lines that end in CR, ...) is ONE problem that names the
format and the way out, seen on its first line; it is never read by halves. A line longer than LONGEST_LINE is one, too, and what
follows it is not read: the next thing may be two gigabytes that a small gzip file unpacks to. Cost: one look at the first line.
Works on streams, where a reader cannot look ahead further than that. Rejected: reading all formats, each with its own idea of
missing values and types; libraries turn them into JSONL in a line that the message shows.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rankery.errors import InputError

LONGEST_LINE = 1 << 26  # bytes: 64 MiB, some 10,000 long documents
# What lines hold: objects (training data, requests), values (a corpus: objects, strings, lists of strings), texts (objects, or id and
# text with a tab), fields (TREC files).
OBJECTS, VALUES, TEXTS, FIELDS = "objects", "values", "texts", "fields"
EXPECTED = {
    OBJECTS: "JSONL, one object a line",
    VALUES: "JSONL, one document a line",
    TEXTS: "JSONL, one object a line, or id and text with a tab between",
    FIELDS: "lines of a TREC file, with blanks between the columns",
}
# How files that are no text begin, what they are, and how they become text.
PANDAS = "pandas.read_{}(FILE).to_json(NEW, orient='records', lines=True, force_ascii=False)"
ICONV = "iconv -f {} -t UTF-8 FILE > NEW"
MARKS = (
    (b"\xff\xfe\0\0", "UTF-32", ICONV.format("UTF-32")),
    (b"\0\0\xfe\xff", "UTF-32", ICONV.format("UTF-32")),
    (b"\xff\xfe", "UTF-16", ICONV.format("UTF-16")),
    (b"\xfe\xff", "UTF-16", ICONV.format("UTF-16")),
    (b"PAR1", "Parquet", PANDAS.format("parquet")),
    (b"ARROW1", "Arrow", PANDAS.format("feather")),
    (b"ORC", "ORC", PANDAS.format("orc")),
    (b"Obj\x01", "Avro", ""),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or pandas.read_excel"),
    (b"\x1f\x8b", "gzip", "gunzip -c FILE > NEW"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc FILE > NEW"),
    (b"BZh", "bzip2", "bunzip2 -c FILE > NEW"),
    (b"\xfd7zXZ\0", "xz", "xz -dc FILE > NEW"),
    (b"7z\xbc\xaf", "7-Zip", "unpack it"),
    (b"SQLite format 3\0", "an SQLite data base", ""),
    (b"\x89HDF", "HDF5", ""),
    (b"\x93NUMPY", "a NumPy array", ""),
    (b"%PDF", "PDF", ""),
    (b"\x80", "a pickle", ""),
)
CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
INNER_CR = re.compile(rb"\r(?=[^\r\n])")


def numbered_lines(path: Path, holds: str = OBJECTS) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the lines of a file, plain or gzip, that are not blank; a byte order mark at the start is dropped.

    Raises:
        InputError: a file that cannot be read, or is of another format than its lines are to hold (see `EXPECTED`).
    """
    try:
        with path.open("rb") as file:
            yield from filled_lines(unpacked(file), str(path), holds)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}; expected JSONL, plain or gzip") from error


def filled_lines(file: BinaryIO, name: str, holds: str = OBJECTS) -> Iterator[tuple[int, bytes]]:
    """The same of an open file or a stream; may also raise what reading raises."""
    for number, line in enumerate(raw_lines(file, name, holds), 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line


def raw_lines(file: BinaryIO, name: str, holds: str) -> Iterator[bytes]:
    """All lines as they are, with their ends.

    Raises:
        InputError: another format, or a line that is too long.
    """
    number, is_known = 0, False
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if not is_known and line.strip():
            is_known = True
            if problem := foreign(line, holds):
                raise InputError(f"{name}: {problem}")
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{name}:{number}: is longer than {LONGEST_LINE >> 20} MiB, the most that one line may hold; expected "
                f"{EXPECTED[holds]}: cut its documents, or put them into several lines"
            )
        yield line


def unpacked(file: io.BufferedReader) -> BinaryIO:
    """The file, or what is in it where it begins as gzip does, whatever its name."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file  # type: ignore[return-value]


def foreign(line: bytes, holds: str) -> str | None:
    """What is wrong with a file that begins with this line, if it is of another format than its lines are to hold."""
    name, way = (
        _binary(line) or _text(line.removeprefix(b"\xef\xbb\xbf").strip(), line.endswith(b"\n"), holds) or ("", "")
    )
    return f"is {name}; expected {EXPECTED[holds]}, in UTF-8{f': {way}' if way else ''}" if name else None


def _binary(line: bytes) -> tuple[str, str] | None:
    """(name, way out) of what is no text: control characters, or the mark of another encoding."""
    if not CONTROL.search(line, 0, 4096) and line[:1] < b"\x80":
        return None
    for mark, name, way in MARKS:
        if line.startswith(mark):
            return name, way
    half = len(line[:4096]) // 2
    if half and max(line[0:4096:2].count(0), line[1:4096:2].count(0)) > 0.3 * half:
        return "UTF-16 without a byte order mark", ICONV.format("UTF-16LE")
    return ("a binary file", "") if CONTROL.search(line, 0, 4096) else None


def _text(line: bytes, ends: bool, holds: str) -> tuple[str, str] | None:
    """(name, way out) of a text of another form, by its first line."""
    if not ends and INNER_CR.search(line):
        return "a file whose lines end in CR alone", r"tr '\r' '\n' < FILE > NEW"
    first = line[:1]
    if holds == FIELDS:
        if first in (b"{", b"["):
            return "JSON", ""
        return ("CSV", "put blanks or tabs between the columns") if _is_csv(line) and len(line.split()) < 3 else None
    if first == b"[" and not _is_list_of_values(line):
        return "a JSON array", "jq -c '.[]' FILE > NEW"
    if first == b"{":
        spread = line[-1:] in (b"{", b"[", b",", b":") and _parsed(line) is None
        return ("JSON that goes over several lines", "jq -c . FILE > NEW") if spread else None
    if line.startswith((b"<?xml", b"<!", b"<html")):
        return "XML or HTML", ""
    if holds == TEXTS and b"\t" in line:
        return None
    return (
        ("CSV or other text that is no JSON", PANDAS.format("csv")) if _is_csv(line) and _parsed(line) is None else None
    )


def _is_csv(line: bytes) -> bool:
    """Whether a line looks like columns; not a remark."""
    return not line.startswith((b"#", b"//")) and any(mark in line for mark in (b",", b"\t", b";"))


def _is_list_of_values(line: bytes) -> bool:
    values = _parsed(line)
    return isinstance(values, list) and not any(isinstance(value, dict) for value in values)


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
