"""Runs and qrels in TREC terms, as flat arrays and as files.

Contract: equal scores are ordered by a seeded hash of the texts, never by input order (data files put relevant documents
first), and runs are written with distinct descending scores, so that every tool sees the same ranking.
Rejected: leaving ties to the tools, which break them by document id, by input order, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankery.data.records import QueryRecord, text_hash
from rankery.errors import InputError


@dataclass(frozen=True)
class EvaluationPairs:
    """Judged pairs; those of one query need not be adjacent. All arrays are [pairs]."""

    query: np.ndarray  # int, index of the query
    label: np.ndarray  # float, as in the data
    key: np.ndarray  # uint64, hash of the pair's texts


def pairs_of(records: Sequence[QueryRecord]) -> EvaluationPairs:
    """The judged pairs of records in order; lines that hold one pair each are joined by equal query."""
    seen: dict[str, int] = {}
    query: list[int] = []
    count = 0
    for record in records:
        index = seen.get(record.query) if record.is_pair_line else None
        if index is None:
            index, count = count, count + 1
            if record.is_pair_line:
                seen[record.query] = index
        query += [index] * len(record.documents)
    label = [label for record in records for label in record.labels]
    key = [text_hash(record.query, document) for record in records for document in record.documents]
    return EvaluationPairs(np.array(query, dtype=np.int64), np.array(label), np.array(key, dtype=np.uint64))


def mix(keys: np.ndarray, seed: int) -> np.ndarray:
    """Seeded order of hashes: splitmix64's finaliser (Steele, Lea and Flood 2014) of key + seed."""
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def ranked(pairs: EvaluationPairs, scores: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, scores): pair indices by query, then from best to worst; distinct descending float32 scores in that order.

    Raises:
        InputError: a score that is not a number.
    """
    scores = np.asarray(scores, dtype=np.float32)
    if np.isnan(scores).any():
        raise InputError(
            f"score {int(np.isnan(scores).argmax())} is not a number; expected finite scores: check the model"
        )
    order = np.lexsort((mix(pairs.key, seed), -scores, pairs.query))
    values, queries = scores[order], pairs.query[order]
    lowest = np.float32(-np.inf)
    for i in range(1, len(values)):
        if queries[i] == queries[i - 1] and values[i] >= values[i - 1]:
            values[i] = np.nextafter(values[i - 1], lowest)
    return order, values


def gains(labels: np.ndarray) -> tuple[np.ndarray, bool]:
    """(integer gains, whether the labels are soft).

    Integer labels are their own gains, raised so that none is negative. Soft scores are counted in millionths, since
    evaluation tools want integers; nDCG does not change when all gains are multiplied by one number.
    """
    labels = np.asarray(labels, dtype=np.float64)
    labels = labels - min(0.0, labels.min(initial=0.0))
    soft = bool((labels != np.round(labels)).any())
    return np.round(labels * (1e6 if soft else 1)).astype(np.int64), soft


def write_run(path: Path, pairs: EvaluationPairs, scores: np.ndarray, seed: int, tag: str = "rankery") -> None:
    """TREC run: query Q0 document rank score tag. Queries are q0, q1 ..., documents d0, d1 ... (the pair's index)."""
    order, values = ranked(pairs, scores, seed)
    rank, previous = 0, None
    with path.open("w") as file:
        for pair, value in zip(order, values, strict=True):
            query = pairs.query[pair]
            rank = rank + 1 if query == previous else 1
            previous = query
            file.write(f"q{query} Q0 d{pair} {rank} {value:.9g} {tag}\n")


def write_qrels(path: Path, pairs: EvaluationPairs) -> None:
    """TREC qrels: query 0 document gain."""
    whole, _ = gains(pairs.label)
    with path.open("w") as file:
        file.writelines(
            f"q{query} 0 d{i} {gain}\n" for i, (query, gain) in enumerate(zip(pairs.query, whole, strict=True))
        )
