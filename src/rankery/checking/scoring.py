"""Labels that a model doubts: the documents of some queries, scored by it and judged as a teacher's scores are (`doubts`).

Contract: the queries are drawn by their keys, so that the same data gives the same ones; all documents of each are scored, wherever
they stand. Cost: a pass over the data and one forward pass a pair. Memory: the texts of those queries. Rejected: scoring all of
the data, which is what `rankery score` is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rankery.checking.doubts import Doubts
from rankery.checking.places import DOCUMENTS, Files
from rankery.checking.scan import Scan, grades_of
from rankery.checking.texts import keys_of, normalise
from rankery.data.lines import numbered_lines
from rankery.data.records import QueryRecord, parse_line
from rankery.errors import InputError
from rankery.evaluation.information import orders_nothing

if TYPE_CHECKING:
    from rankery.models.reranker import Reranker


def judged(reranker: Reranker, paths: Sequence[Path], scan: Scan, queries: int) -> Doubts:
    """What the model doubts of so many queries' labels."""
    groups: dict[int, list[tuple[str, str, bool, int]]] = {
        key: [] for key in scan.queries.whole()["key"][:queries].tolist()
    }
    files = Files()
    for path in paths:
        files.open(path)
        # What cannot be read, the scan has said.
        with suppress(InputError):
            for number, line in numbered_lines(path):
                with suppress(InputError):
                    record = parse_line(line, str(path), number, scan.labels)
                    group = groups.get(int(keys_of([normalise(record.query)])[0]))
                    if group is not None:
                        group += _labelled(record, files.place(number), scan)
    pairs = [(query, document) for group in groups.values() for query, document, *_ in group]
    if not pairs:
        return Doubts()
    scores = reranker.rank_scores(reranker.compute_score(pairs, show_progress=True)).tolist()
    if orders_nothing(np.array(scores), np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()])):
        warnings.warn(
            "score_with gives all documents of a query (nearly) one score: it can doubt no label", stacklevel=2
        )
    doubts, at = Doubts(), 0
    for group in groups.values():
        part = scores[at : at + len(group)]
        at += len(group)
        doubts.judge(part, [is_relevant for *_, is_relevant, _ in group], [place for *_, place in group])
    return doubts


def _labelled(record: QueryRecord, place: int, scan: Scan) -> list[tuple[str, str, bool, int]]:
    """(query, document, whether it is relevant, its place) of each document."""
    graded = zip(record.documents, grades_of(record, scan.labels), strict=True)
    return [
        (record.query, text, grade > scan.relevant_above, place + min(i, DOCUMENTS - 1))
        for i, (text, grade) in enumerate(graded)
    ]
