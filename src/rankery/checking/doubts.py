"""Labels that a teacher doubts: negatives it scores above every positive, positives it scores below the median negative.

Contract: a line is judged by its own documents. Scores are "pos_logits" and "neg_logits" where a line has them, else "pos_scores" and
"neg_scores" of a line with both lists; relevance is by list, or by whole-number labels beside logits. Source: the positive-aware
filter of NV-Retriever (Moreira et al. 2024), as `false_negative_margin=0` applies it in training; a positive below the median
negative is its mirror, and wants three negatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from rankery.checking.places import DOCUMENTS, Tally
from rankery.data.records import QueryRecord

FEWEST_NEGATIVES = 3


class Doubts:
    """Counts of what a teacher doubts."""

    def __init__(self) -> None:
        self.negatives, self.positives = Tally(), Tally()
        self.judged = {"negatives": 0, "positives": 0}

    def add(self, record: QueryRecord, row: dict[str, Any], place: int, relevant: Sequence[bool]) -> None:
        """A record, the JSON object that it was read from, the place of its line, the relevance of its documents."""
        scores = teacher_scores(record, row)
        if scores is not None:
            self.judge(scores, relevant, [place + min(i, DOCUMENTS - 1) for i in range(len(scores))])

    def judge(self, scores: Sequence[float], relevant: Sequence[bool], places: Sequence[int]) -> None:
        """One query's documents: a teacher's scores, their relevance, their places, [documents] each."""
        positives = [score for score, is_relevant in zip(scores, relevant, strict=True) if is_relevant]
        negatives = [score for score, is_relevant in zip(scores, relevant, strict=True) if not is_relevant]
        if not positives or not negatives:
            return
        best = max(positives)
        middle = median(negatives) if len(negatives) >= FEWEST_NEGATIVES else None
        self.judged["negatives"] += len(negatives)
        self.judged["positives"] += len(positives) if middle is not None else 0
        for score, is_relevant, place in zip(scores, relevant, places, strict=True):
            if not is_relevant and score > best:
                self.negatives.note(place)
            if is_relevant and middle is not None and score < middle:
                self.positives.note(place)


def teacher_scores(record: QueryRecord, row: dict[str, Any]) -> list[float] | None:
    """A teacher's score of each document of a line, [documents]; None where it has none beside its labels."""
    logits = [*_numbers(row.get("pos_logits")), *_numbers(row.get("neg_logits"))]
    if logits and len(logits) == len(record.documents) and _has_labels(record):
        return logits
    both = row.get("pos_scores") is not None and row.get("neg_scores") is not None
    return list(record.labels) if both and record.negatives else None


def _has_labels(record: QueryRecord) -> bool:
    return bool(record.negatives) or all(label.is_integer() for label in record.labels)


def _numbers(values: Any) -> list[float]:
    whole = isinstance(values, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return [float(value) for value in values] if whole and all(map(math.isfinite, values)) else []
