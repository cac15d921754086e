"""What systems are measured on: labelled JSONL, or TREC judgements with candidates and texts.

Contract: both become records in one order of pairs, with the names that TREC files give them, so that models, baselines and
runs meet in TREC files alone. Cost: the texts of all candidates in memory, where something has to score them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rankery.data.files import text_hash
from rankery.data.records import QueryRecord
from rankery.errors import InputError
from rankery.evaluation.runs import EvaluationPairs, Names, pairs_of
from rankery.evaluation.trec import TextFile, TrecFile

MOST_SHOWN = 20  # missing texts that are named


@dataclass(frozen=True)
class Candidates:
    """Q records and their P pairs, to be scored."""

    records: list[QueryRecord]
    pairs: EvaluationPairs
    names: Names

    def texts(self) -> list[tuple[str, str]]:
        """(query, document) of each pair, [P]."""
        return [(record.query, document) for record in self.records for document in record.documents]


Lookup = Callable[[str], "str | None"]


def unknown(name: str) -> None:
    """The look-up that knows no text."""
    return None


@dataclass(frozen=True)
class Texts:
    """Texts of queries and documents by their names in TREC files; None where they are unknown."""

    query: Lookup = unknown
    document: Lookup = unknown


def of_records(records: list[QueryRecord]) -> tuple[Candidates, Texts]:
    """Queries are named q0, q1, ..., the document of pair i is di, as `write_run` names them."""
    pairs = pairs_of(records)
    queries: dict[str, str] = {}
    pair = 0
    for record in records:
        queries[f"q{pairs.query[pair]}"] = record.query
        pair += len(record.documents)
    documents = {f"d{i}": text for i, text in enumerate(text for record in records for text in record.documents)}
    names = Names(list(queries), list(documents))
    return Candidates(records, pairs, names), Texts(queries.get, documents.get)


def of_trec(source: TrecFile, qrels: TrecFile, queries: TextFile, documents: TextFile) -> Candidates:
    """The documents that `source`, a run or the judgements themselves, has for the judged queries.

    Raises:
        InputError: texts that are missing; no query that is judged.
    """
    missing = list(_missing(source, qrels, queries, documents))
    if missing:
        raise InputError(missing)
    records: list[QueryRecord] = []
    labels: list[float] = []
    keys: list[int] = []
    of_pair: list[int] = []
    names: list[str] = []
    chosen = [query for query in source if query in qrels]
    for index, query in enumerate(chosen):
        judged, text = qrels[query], queries[query]
        found = list(source[query])
        texts = tuple(documents[name] for name in found)
        records.append(QueryRecord(text, texts, (0.0,) * len(texts), str(source.path), ()))
        labels += [float(judged.get(name, 0)) for name in found]
        keys += [text_hash(text, document) for document in texts]
        of_pair += [index] * len(found)
        names += found
    if not records:
        raise InputError(f"{source.path}: none of its {len(source)} queries is among those of {qrels.path}")
    pairs = EvaluationPairs(np.array(of_pair, np.int32), np.array(labels), np.array(keys, np.uint64))
    return Candidates(records, pairs, Names(chosen, names))


def _missing(source: TrecFile, qrels: TrecFile, queries: TextFile, documents: TextFile) -> Iterator[str]:
    for query in source:
        if query in qrels:
            if query not in queries:
                yield f"{queries.path}: has no text for query {query} of {source.path}; expected one for each"
            for name in source[query]:
                if name not in documents:
                    yield f"{documents.path}: has no text for document {name} of query {query} in {source.path}; expected one for each"
