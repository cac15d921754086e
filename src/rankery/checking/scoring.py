"""Labels that a model doubts: the documents of some queries, scored by it and judged as a teacher's scores are (`doubts`).

Contract: the queries are drawn by their keys, so that the same data gives the same ones; all documents of each are scored, wherever
they stand. Cost: a pass over the data and one forward pass a pair. Memory: the texts of those queries. Rejected: scoring all of
the data, which is what `rankery score` is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankery.checking.doubts import Doubts
from rankery.checking.places import Files
from rankery.checking.scan import Scan, grades_of
from rankery.checking.texts import keys_of, normalise
from rankery.data.files import numbered_lines
from rankery.data.records import parse_line
from rankery.errors import InputError

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
        for number, line in numbered_lines(path):
            place = files.place(number)
            try:
                record = parse_line(line, str(path), number, scan.labels)
            except InputError:
                continue  # the scan has said so
            group = groups.get(int(keys_of([normalise(record.query)])[0]))
            if group is not None:
                relevant = [grade > scan.relevant_above for grade in grades_of(record)]
                texts = zip(record.documents, relevant, strict=True)
                group += [(record.query, text, is_relevant, place + i) for i, (text, is_relevant) in enumerate(texts)]
    pairs = [(query, document) for group in groups.values() for query, document, *_ in group]
    scores = reranker.rank_scores(reranker.compute_score(pairs, show_progress=True)).tolist()
    doubts, at = Doubts(), 0
    for group in groups.values():
        part = scores[at : at + len(group)]
        at += len(group)
        doubts.judge(part, [is_relevant for *_, is_relevant, _ in group], [place for *_, place in group])
    return doubts
