"""What mining reads and writes: queries with their labelled documents, a corpus, and lines of training data.

Contract: a line keeps what it came with (its other keys too), and gets negatives with where each came from. Lines with `hits`, and
pair lines of a query wherever they stand, become one line of `pos` and `neg`. Everything is in memory. Cost: one or two JSON parses
a line. Rejected: taking any key of a corpus line for its text (a corpus of titles would be mined without a word).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankery.data.lines import VALUES, numbered_lines
from rankery.data.records import (
    ANY_LABEL,
    MAX_COLLECTED,
    LabelRange,
    QueryRecord,
    is_text,
    parse_json,
    parse_object,
    parse_row,
)
from rankery.errors import InputError

CORPUS_SHAPES = '{"text"} or {"document"} objects, strings, lists of strings, or lines of training data'
GIVEN = "given"  # where a negative came from that was in the data


@dataclass
class Query:
    """A line to be written, and what it says of its documents."""

    text: str
    row: dict[str, Any]
    relevant: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # labelled, and not relevant


def read_queries(paths: Sequence[Path], min_label: float, relevant_above: float, keep_given: bool) -> list[Query]:
    """The queries of checked data, in order.

    Args:
        paths: JSONL files of any accepted form.
        min_label: the label of `neg` without scores.
        relevant_above: documents with a label above it are relevant.
        keep_given: the others stay in the line.
    """
    labels = LabelRange(min_label, max(1.0, relevant_above + 1, min_label + 1), strict=False)
    queries: list[Query] = []
    pair_lines: dict[str, tuple[Query, list[tuple[str, float]]]] = {}
    for path in paths:
        for number, line in numbered_lines(path):
            row = parse_object(line, f"{path}:{number}")
            record = parse_row(row, str(path), number, labels)
            pairs = list(zip(record.documents, record.labels, strict=True))
            if record.is_pair_line:
                if record.query not in pair_lines:
                    pair_lines[record.query] = Query(record.query, {"query": record.query}), []
                    queries.append(pair_lines[record.query][0])
                pair_lines[record.query][1].extend(pairs)
                continue
            query = Query(record.query, row)
            if "hits" in row:
                del row["hits"]
                _as_lists(query, pairs, relevant_above, keep_given)
            else:
                _as_given(query, record, relevant_above, keep_given)
            queries.append(query)
    for query, pairs in pair_lines.values():
        _as_lists(query, pairs, relevant_above, keep_given)
    return queries


def _as_lists(query: Query, pairs: list[tuple[str, float]], relevant_above: float, keep_given: bool) -> None:
    """Fills the line with pos and neg; with scores, unless the labels are 1 and 0. Without a relevant document, all stay."""
    sides = {
        "pos": [(text, label) for text, label in pairs if label > relevant_above],
        "neg": [(text, label) for text, label in pairs if label <= relevant_above],
    }
    query.relevant, query.others = ([text for text, _ in side] for side in sides.values())
    is_binary = all(label == (name == "pos") for name, side in sides.items() for _, label in side)
    for name, side in sides.items():
        side = side if name == "pos" or keep_given or not query.relevant else []
        query.row[name] = [text for text, _ in side]
        if not is_binary:
            query.row[f"{name}_scores"] = [label for _, label in side]


def _as_given(query: Query, record: QueryRecord, relevant_above: float, keep_given: bool) -> None:
    """Leaves the line as it is, or without its labelled documents that are not relevant; without a relevant one, all stay."""
    is_relevant = [label > relevant_above for label in record.labels]
    for text, relevant in zip(record.documents, is_relevant, strict=True):
        (query.relevant if relevant else query.others).append(text)
    if keep_given or not query.relevant:
        return
    row, split = query.row, len(record.documents) - record.negatives
    for name, kept in (("pos", is_relevant[:split]), ("neg", is_relevant[split:])):
        for key in [key for key in row if key == name or key.startswith(f"{name}_")]:
            if isinstance(row[key], list) and len(row[key]) == len(kept):
                row[key] = [value for value, keep in zip(row[key], kept, strict=True) if keep]


def mined_line(query: Query, documents: Sequence[str], sources: Sequence[str], min_label: float) -> bytes:
    """The line with more negatives, as JSON; `neg_from` says where each of `neg` came from.

    Lists beside `neg` that mining cannot go on with (`neg_ids`, say) are left out, and a teacher's logits, which are of all
    documents or of none.
    """
    row = dict(query.row)
    given, scores, origins = row.pop("neg", None) or [], row.pop("neg_scores", None), row.pop("neg_from", None)
    if not isinstance(origins, list) or len(origins) != len(given):
        origins = [GIVEN] * len(given)
    for key in [
        key for key in row if key.startswith(("neg_", "pos_logits")) and isinstance(row[key], list) and documents
    ]:
        del row[key]
    row["neg"] = [*given, *documents]
    if scores is not None:
        row["neg_scores"] = [*scores, *[min_label] * len(documents)]
    row["neg_from"] = [*origins, *sources]
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_text(text) else json.dumps(row)).encode() + b"\n"


def read_corpus(paths: Sequence[Path]) -> list[str]:
    """The distinct documents of the files that are not blank, in order.

    Raises:
        InputError: with all problems of all files.
    """
    documents: dict[str, None] = {}
    problems: list[str] = []
    for path in paths:
        empty = True
        try:
            for number, line in numbered_lines(path, VALUES):
                empty = False
                try:
                    documents.update(dict.fromkeys(_texts(line, str(path), number)))
                except InputError as error:
                    problems += error.problems[: MAX_COLLECTED - len(problems)]
        except InputError as error:  # of the file, not of a line
            problems += error.problems
            continue
        if empty:
            problems.append(f"{path}: is empty; expected one document a line: {CORPUS_SHAPES}")
    if problems:
        raise InputError(problems)
    return distinct(documents)


def distinct(documents: Sequence[str] | dict[str, None]) -> list[str]:
    """Without repeats and blanks."""
    return [text for text in dict.fromkeys(documents) if text.strip()]


def _texts(line: bytes, path: str, number: int) -> Sequence[str]:
    """The documents of one line of a corpus."""
    where = f"{path}:{number}"
    value = parse_json(line, where, f"one document a line: {CORPUS_SHAPES}")
    if isinstance(value, dict) and not {"text", "document"} & value.keys() and "query" in value:
        return parse_row(value, path, number, ANY_LABEL).documents
    if isinstance(value, dict):
        value = value.get("text", value.get("document"))
    texts = value if isinstance(value, list) else [value]
    if not all(map(is_text, texts)):
        raise InputError(f"{where}: has no text; expected {CORPUS_SHAPES}, in UTF-8")
    return texts
