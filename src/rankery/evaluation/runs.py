"""Scores -> one agreed order, and TREC run and qrels files that make every tool see that order.

Contract: equal scores are ordered by a seeded hash of the two texts, so neither the order in the file nor the tool
decides (files list relevant documents first, and trec_eval breaks ties by document id); written scores strictly descend
in float32, the precision trec_eval reads. Cost: one sort. Rejected: breaking ties by position (flatters a constant
scorer) and adding random noise to the scores (changes the order of near ties).

Shapes: P pairs, n documents of one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankery.data.encoding import EncodedPairs
from rankery.data.files import mix, named, text_hash
from rankery.data.records import QueryRecord
from rankery.errors import InputError

# trec_eval's nDCG keeps a counter for each grade of each query; also the resolution of soft scores.
MOST_GRADES = 10_000
FIRST_NORMAL = 0x00800000  # bits of the smallest normal float32
LARGEST = 0x7F7FFFFF  # bits of the largest finite float32


@dataclass(frozen=True)
class EvaluationPairs:
    """Judged (query, document) pairs; those of one query need not be adjacent."""

    query: np.ndarray  # [P] int, index of the query
    label: np.ndarray  # [P] float, as in the file
    key: np.ndarray  # [P] uint64, `text_hash(query, document)`

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True)
class Gains:
    """Integer gains of pairs, as qrels hold them: `round(scale * max(0, label - shift))`."""

    gain: np.ndarray  # [P] int64, from 0
    shift: float  # min_label, the label with gain 0
    scale: float  # 1 for grades
    is_soft: bool  # the labels are scores, not grades


class Numbered:
    """q0, q1, ...: names by number."""

    def __init__(self, letter: str):
        self.letter = letter

    def __getitem__(self, index: int) -> str:
        return f"{self.letter}{index}"


@dataclass(frozen=True)
class Names:
    """What TREC files call queries, by their index, and pairs, by theirs (the document's name)."""

    queries: Sequence[str] | Numbered
    pairs: Sequence[str] | Numbered


def pairs_of(records: Iterable[QueryRecord]) -> EvaluationPairs:
    """Flat arrays of records, pairs in their order; files of one pair a line are grouped by the query's text."""
    query: list[int] = []
    label: list[float] = []
    key: list[int] = []
    of_text: dict[int, int] = {}  # pair lines: hash of the query -> its index
    queries = 0
    for record in records:
        index = of_text.setdefault(text_hash(record.query), queries) if record.is_pair_line else queries
        queries = max(queries, index + 1)
        query += [index] * len(record.documents)
        label += record.labels
        key += [text_hash(record.query, document) for document in record.documents]
    return EvaluationPairs(np.array(query, np.int32), np.array(label, np.float64), np.array(key, np.uint64))


def encoded_pairs(data: EncodedPairs) -> EvaluationPairs:
    """The same of tokenised data."""
    return EvaluationPairs(*(np.asarray(data.arrays[name]) for name in ("pair_query", "label", "key")))


def rank(scores: np.ndarray, keys: np.ndarray, seed: int, query: np.ndarray | None = None) -> np.ndarray:
    """Indices of pairs by descending score, ties by mixed key, [P]; with `query` [P], one query after the other.

    Exact duplicates (same texts, same score) stand in reverse order of the file, which lists relevant documents first:
    the order that flatters nobody.

    Raises:
        InputError: scores of another shape than the keys, or NaN.
    """
    scores = np.asarray(scores)
    if scores.shape != np.shape(keys):
        raise InputError(f"got scores of shape {scores.shape}; expected one score for each of {len(keys)} pairs")
    if np.isnan(scores).any():
        nan = np.flatnonzero(np.isnan(scores))
        raise InputError(
            f"{len(nan)} of {len(scores)} scores are NaN, the first for pair {nan[0]}; expected numbers; "
            "check the model's weights and precision"
        )
    sort_by = [-np.arange(len(scores)), mix(keys, seed), -scores.astype(np.float64)]  # lexsort: the last counts most
    return np.lexsort(sort_by if query is None else [*sort_by, query])


def distinct_scores(sorted_scores: np.ndarray) -> np.ndarray:
    """Strictly descending finite float32 scores, each the nearest at or below the given descending one, [n] -> [n].

    Works on the place of each value among the normal float32 numbers, where the next smaller number is one less:
    subnormals count as 0 (some readers flush them), infinities as the largest numbers.
    """
    assert not np.isnan(sorted_scores).any()
    with np.errstate(over="ignore"):
        bits = np.asarray(sorted_scores).astype(np.float32).view(np.int32).astype(np.int64)
    size = np.maximum((bits & 0x7FFFFFFF) - (FIRST_NORMAL - 1), 0)
    place = np.where(bits < 0, -size, size)
    largest, steps = LARGEST - (FIRST_NORMAL - 1), np.arange(len(bits))
    place = np.clip(place, -largest + len(bits), largest)  # leaves room below for all that share the lowest value
    place = np.minimum.accumulate(place + steps) - steps
    magnitude = np.where(place == 0, 0, np.abs(place) + (FIRST_NORMAL - 1)).astype(np.int32).view(np.float32)
    return np.where(place < 0, -magnitude, magnitude)


def gains(pairs: EvaluationPairs, min_label: float = 0.0) -> Gains:
    """Integer gains for qrels, nDCG and thresholds.

    Gains begin at `min_label`: labels 1 to 5 with a min_label of 1 are worth what 0 to 4 are with 0, as in `lambda_rank`;
    labels below it have gain 0 too, as trec_eval treats negative grades. Grades (integers up to MOST_GRADES above it)
    keep their steps. Others are scores: scaled so that the largest has gain MOST_GRADES, a resolution of 0.01% of it,
    as are grades above a `min_label` that is no integer; nDCG does not change with scale.
    """
    shift, labels = float(min_label), np.asarray(pairs.label, dtype=np.float64)
    shifted = np.maximum(labels - shift, 0.0)
    largest = float(shifted.max(initial=0.0))
    steps_are_whole = largest <= MOST_GRADES and bool((shifted == np.rint(shifted)).all())
    are_grades = largest <= MOST_GRADES and bool((labels == np.rint(labels))[shifted > 0].all())
    scale = 1.0 if steps_are_whole else MOST_GRADES / largest
    return Gains(np.rint(shifted * scale).astype(np.int64), shift, scale, not (steps_are_whole or are_grades))


def write_run(
    path: Path,
    pairs: EvaluationPairs,
    scores: np.ndarray,
    seed: int = 42,
    tag: str = "rankery",
    names: Names | None = None,
) -> None:
    """TREC run file, `q0 Q0 d3 1 0.87 rankery` a line: query, pair index, rank from 1, score; scores strictly descend.

    `names` gives queries and pairs other names.

    Raises:
        InputError: NaN among the scores.
    """
    scores = np.asarray(scores)
    names = names or Names(Numbered("q"), Numbered("d"))
    order = rank(scores, pairs.key, seed, pairs.query)
    with named(path), path.open("w", encoding="utf-8") as file:
        for query, of_query in _by_query(pairs.query, order):
            written = distinct_scores(scores[of_query])
            for position, (pair, score) in enumerate(zip(of_query.tolist(), written, strict=True), 1):
                # float32's shortest exact spelling
                file.write(f"{names.queries[query]} Q0 {names.pairs[pair]} {position} {score!s} {tag}\n")


def write_qrels(path: Path, pairs: EvaluationPairs, min_label: float = 0.0) -> None:
    """TREC qrels file, `q0 0 d3 1` a line, with `gains` as relevance, so that it counts from 1; every pair is judged."""
    gain = gains(pairs, min_label).gain
    with named(path), path.open("w", encoding="ascii") as file:
        for pair, (query, relevance) in enumerate(zip(pairs.query.tolist(), gain.tolist(), strict=True)):
            file.write(f"q{query} 0 d{pair} {relevance}\n")


def _by_query(query: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(query, its pairs in order) of an order that keeps queries together."""
    ordered = np.asarray(query)[order]
    for of_query in np.split(order, np.flatnonzero(np.diff(ordered)) + 1):
        if len(of_query):
            yield int(query[of_query[0]]), of_query
