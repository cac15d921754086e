"""Every accepted JSONL shape -> `QueryRecord(query, documents, labels)`, with errors that name file and line.

Shapes, recognised by their keys (other keys are ignored, unless they are nearly one of the last four of the first):

    {"query", "pos", "neg", "pos_scores", "neg_scores"}   any of the last four may be missing; binary, graded or soft
    {"query", "content", "label"}                         one pair a line
    {"query", "hits": [{"content", "label"}]}             one query a line

Lines of the first may also have "pos_logits" and "neg_logits": a teacher's logit of each document, beside labels or its scores.

"neg_from", which `rankery mine` writes beside "neg", is for people: where each negative came from.

Contract: reading streams, so memory does not grow with the file; `check_records` looks at everything and reports
all problems at once, `read_records` stops at the first. Cost: one JSON parse a line (about 100 MB/s).
Rejected: a schema library for each line; it is several times slower and its messages do not know the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankery.data.files import text_hash
from rankery.data.lines import numbered_lines
from rankery.data.spelling import misspelt
from rankery.errors import InputError, shown

SHAPES = (
    '{"query", "pos", "neg"}, {"query", "pos", "pos_scores"}, {"query", "content", "label"} '
    'or {"query", "hits": [{"content", "label"}]}'
)
LARGEST_LABEL = 10**9
MAX_COLLECTED = 1000  # problems kept in memory when a whole file is wrong


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """A query with its documents; labels are as in the file (without scores: `max_label` for pos, `min_label` for neg)."""

    query: str
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    path: str
    lines: tuple[int, ...]  # line of each document in the file at path
    is_pair_line: bool = False  # one pair a line: the same query may go on in other lines
    has_lists: bool = False  # documents are listed as "pos" and "neg"
    negatives: int = 0  # how many documents at the end are listed as "neg"
    teacher_logits: tuple[float, ...] | None = None  # of each document, where the line has them and labels are strict


@dataclass(frozen=True)
class LabelRange:
    """The labels that a data set may hold; `target` scales them evenly to [0, 1]."""

    min_label: float = 0.0
    max_label: float = 1.0
    strict: bool = True  # False: labels outside are no error, logits are not read (data that nobody learns from)
    needed: bool = True  # False: lines without labels are read too, and no positive has to be among them

    @property
    def missing(self) -> float | None:
        """The label of a pair that has none; None: it has to have one."""
        return None if self.needed else self.min_label


ANY_LABEL = LabelRange(strict=False, needed=False)  # of data that is read for its texts


@dataclass
class DataSummary:
    """What a data set holds, counted in one pass."""

    queries: int = 0
    pairs: int = 0
    fewest_documents: int = 0
    most_documents: int = 0
    largest_label: float = -math.inf


def read_records(paths: Sequence[str | Path], labels: LabelRange | None = None) -> Iterator[QueryRecord]:
    """Records of the files in order.

    Raises:
        InputError: at the first line that cannot be used.
    """
    for path in map(Path, paths):
        for line_number, line in numbered_lines(path):
            yield parse_line(line, str(path), line_number, labels or LabelRange())


def pair_place(records: Sequence[QueryRecord], pair: int) -> str:
    """`file:line, query '...', document '...'` of a pair, by its number among those of all records."""
    for record in records:
        if pair < len(record.documents):
            where = f"{record.path}:{record.lines[pair]}" if record.lines else record.path
            return f"{where}, query {shown(record.query)}, document {shown(record.documents[pair])}"
        pair -= len(record.documents)
    raise AssertionError("no such pair")


def check_records(paths: Sequence[Path], labels: LabelRange | None = None) -> DataSummary:
    """Reads everything once and counts.

    Raises:
        InputError: with all problems of all files; also for files without records or without any positive.
    """
    labels = labels or LabelRange()
    summary = DataSummary()
    problems: list[str] = []
    pair_line_queries: set[int] = set()
    for path in paths:
        empty = True
        try:
            for line_number, line in numbered_lines(path):
                empty = False
                try:
                    record = parse_line(line, str(path), line_number, labels)
                except InputError as error:
                    problems += error.problems[: MAX_COLLECTED - len(problems)]
                    continue
                _count(summary, record, pair_line_queries)
        except InputError as error:  # of the file, not of a line
            problems += error.problems
            continue
        if empty:
            problems.append(f"{path}: is empty; expected one JSON object a line: {SHAPES}")
    summary.queries += len(pair_line_queries)
    if labels.needed and not problems and summary.largest_label <= labels.min_label:
        problems.append(
            f"{', '.join(map(str, paths))}: no positive anywhere: every label is {summary.largest_label:g} or below; "
            f"expected some above min_label ({labels.min_label:g}); check min_label and the labels"
        )
    if problems:
        raise InputError(problems)
    return summary


def _count(summary: DataSummary, record: QueryRecord, pair_line_queries: set[int]) -> None:
    documents = len(record.documents)
    summary.pairs += documents
    summary.largest_label = max(summary.largest_label, *record.labels)
    if record.is_pair_line:
        pair_line_queries.add(text_hash(record.query))
    else:
        summary.queries += 1
    first = summary.pairs == documents
    summary.fewest_documents = documents if first else min(summary.fewest_documents, documents)
    summary.most_documents = max(summary.most_documents, documents)


def parse_line(line: bytes | str, path: str, number: int, labels: LabelRange) -> QueryRecord:
    """One line of JSONL as a record.

    Raises:
        InputError: all problems of this line, each starting with `path:number`.
    """
    return parse_row(parse_object(line, f"{path}:{number}"), path, number, labels)


def parse_object(line: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        InputError: the line holds none; `where` begins the message.
    """
    row = parse_json(line, where, f"one object a line: {SHAPES}")
    if not isinstance(row, dict):
        raise InputError(f"{where}: is {'null' if row is None else kind_of(row)}; expected an object: {SHAPES}")
    return row


def parse_json(line: bytes | str, where: str, expected: str) -> Any:
    """The value of one line of JSON in UTF-8.

    Raises:
        InputError: it is none, or says a key twice, of which Python would keep the last; `where` begins the message.
    """
    try:
        return DECODER.decode(line if isinstance(line, str) else line.decode())
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: is not UTF-8 ({error.reason} at byte {error.start + 1}); expected {expected}; iconv -f ENCODING -t UTF-8 "
            "makes it so"
        ) from None
    except RecursionError:
        raise InputError(f"{where}: is not JSON (too many brackets); expected {expected}") from None
    except ValueError as error:  # bad JSON, a number of thousands of digits
        raise InputError(f"{where}: is not JSON ({error}); expected {expected}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it has the key {shown(twice)} twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once)  # json.loads would make one for each line


def parse_row(row: dict[str, Any], path: str, number: int, labels: LabelRange) -> QueryRecord:
    """One JSON object as a record.

    Raises:
        InputError: all problems of this line, each starting with `path:number`.
    """
    where = f"{path}:{number}"
    problems: list[str] = []
    logits: list[Any] | None = None
    has_lists = False
    if not is_text(row.get("query")):
        problems.append(f'{where}: "query" is {kind_of(row.get("query"))}; expected a string')
    if ("content" in row) + ("hits" in row) + ("pos" in row or "neg" in row) > 1:
        problems.append(f"{where}: has keys of several forms: {shown(sorted(row))}; expected one of {SHAPES}")
    if "content" in row:
        pairs: Pairs = [(row["content"], row.get("label", labels.missing), '"content"', '"label"')]
    elif "hits" in row:
        pairs = _hits(row["hits"], labels, where, problems)
    elif "pos" in row or "neg" in row:
        has_lists = True
        problems += misspelt(row, where)
        pairs = _lists(row, labels, where, problems)
        logits = _logits(row, where, problems) if labels.strict else None
    elif "documents" in row and not labels.needed:
        pairs = _documents(row["documents"], labels, where, problems)
    else:
        raise InputError([*problems, f"{where}: has the keys {shown(sorted(row))}; expected {SHAPES}"])
    for text, label, text_name, label_name in pairs:
        if not is_text(text):
            problems.append(f"{where}: {text_name} is {kind_of(text)}; expected a string")
        problems += _label_problems(label, label_name, labels, where)
    if not pairs and not problems:
        problems.append(f"{where}: has no documents; expected at least one")
    if problems:
        raise InputError(problems)
    return QueryRecord(
        query=row["query"],
        documents=tuple(text for text, *_ in pairs),
        labels=tuple(float(label) for _, label, *_ in pairs),
        path=path,
        lines=(number,) * len(pairs),
        is_pair_line="content" in row,
        has_lists=has_lists,
        negatives=len(row.get("neg") or ()) if has_lists else 0,
        teacher_logits=None if logits is None else tuple(map(float, logits)),
    )


Pairs = list[tuple[Any, Any, str, str]]  # text, label, and what to call each in a message


def _hits(hits: Any, labels: LabelRange, where: str, problems: list[str]) -> Pairs:
    if not isinstance(hits, list) or not all(isinstance(hit, dict) for hit in hits):
        problems.append(f'{where}: "hits" is {kind_of(hits)}; expected a list of {{"content", "label"}} objects')
        return []
    return [
        (hit.get("content"), hit.get("label", labels.missing), f'"content" of hit {i}', f'"label" of hit {i}')
        for i, hit in enumerate(hits, 1)
    ]


def _documents(texts: Any, labels: LabelRange, where: str, problems: list[str]) -> Pairs:
    if not isinstance(texts, list):
        problems.append(f'{where}: "documents" is {kind_of(texts)}; expected a list of strings')
        return []
    return [(text, labels.max_label, f'document {i} of "documents"', "") for i, text in enumerate(texts, 1)]


def _lists(row: dict[str, Any], labels: LabelRange, where: str, problems: list[str]) -> Pairs:
    pairs: Pairs = []
    for name, default in (("pos", labels.max_label), ("neg", labels.min_label)):
        texts = row.get(name, [])
        if not isinstance(texts, list):
            got = "null" if texts is None else kind_of(texts)
            problems.append(f'{where}: "{name}" is {got}; expected a list of strings, or no such key')
            continue
        scores = _beside(row, name, texts, "scores", where, problems) or [default] * len(texts)
        for i, (text, score) in enumerate(zip(texts, scores, strict=True), 1):
            pairs.append((text, score, f'document {i} of "{name}"', f'score {i} of "{name}_scores"'))
    return pairs


def _logits(row: dict[str, Any], where: str, problems: list[str]) -> list[Any] | None:
    """A teacher's logits of the documents of pos and neg; None where the line has none."""
    lists = {name: row.get(name) or [] for name in ("pos", "neg")}
    given = [name for name in lists if row.get(f"{name}_logits") is not None]
    if not given or not all(isinstance(texts, list) for texts in lists.values()):
        return None
    found: list[Any] = []
    for name, texts in lists.items():
        if texts and name not in given:
            problems.append(
                f'{where}: has "{given[0]}_logits" but no "{name}_logits"; expected a logit for each document of both, or none'
            )
        for i, logit in enumerate(_beside(row, name, texts, "logits", where, problems) or [], 1):
            problems += _number_problems(logit, f'logit {i} of "{name}_logits"', where)
            found.append(logit)
    return found


def _beside(
    row: dict[str, Any], name: str, texts: list[Any], kind: str, where: str, problems: list[str]
) -> list[Any] | None:
    """The numbers beside "pos" or "neg", one for each document: "pos_scores", say; None where there are none."""
    values = row.get(f"{name}_{kind}")
    if values is None:
        return None
    if not isinstance(values, list):
        problems.append(f'{where}: "{name}_{kind}" is {kind_of(values)}; expected a list of numbers')
        return None
    if len(values) != len(texts):
        problems.append(
            f'{where}: "{name}" has {len(texts)} documents but "{name}_{kind}" has {len(values)} {kind}; '
            f"expected one {kind.removesuffix('s')} for each document"
        )
        return None
    return values


def _label_problems(label: Any, name: str, labels: LabelRange, where: str) -> list[str]:
    problems = _number_problems(label, name, where)
    if not problems and labels.strict and not labels.min_label <= label <= labels.max_label:
        return [
            f"{where}: {name} is {label:g}; expected a number from min_label ({labels.min_label:g}) to max_label "
            f"({labels.max_label:g}); set min_label and max_label to the range of your labels"
        ]
    return problems


def _number_problems(value: Any, name: str, where: str) -> list[str]:
    if isinstance(value, int | float) and LARGEST_LABEL < abs(value) < math.inf:
        return [f"{where}: {name} is larger than {LARGEST_LABEL:g}; expected a smaller number"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return [f"{where}: {name} is {kind_of(value)}; expected a finite number"]
    return []


def is_text(value: Any) -> bool:
    """A string that UTF-8 can hold: JSON escapes can spell lone surrogates, which no tokenizer takes."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """What a value of JSON is, for messages."""
    if value is None:
        return "missing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return f"the string {shown(value)}" if is_text(value) else "a string with a lone surrogate (half a character)"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
