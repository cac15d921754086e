"""What a reranker must beat: random order, BM25, and cosine of an encoder's embeddings.

Contract: each baseline takes records and gives one float32 score a pair, in pair order, ready for `ranking_metrics`.
Cost: BM25 scores every distinct document for each query (1 ms a query at 100,000 documents); cosine is one forward pass
a distinct text. Rejected: BM25 statistics from each query's own candidates (twenty documents say nothing of how rare a
word is), and sentence-transformers for the embeddings (a dependency for one mean).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rankery.data.records import QueryRecord
from rankery.evaluation.retrieval import Bm25, DenseEncoder


def random_scores(records: Sequence[QueryRecord], seed: int = 0) -> np.ndarray:
    """Uniform random scores in [0, 1), [P]."""
    return np.random.default_rng(seed).random(sum(len(record.documents) for record in records), dtype=np.float32)


def bm25_scores(records: Sequence[QueryRecord]) -> np.ndarray:
    """BM25 [P] with document frequencies from all distinct documents of the records (Lucene's form, k1 1.5, b 0.75)."""
    position, documents = _distinct(text for record in records for text in record.documents)
    index = Bm25(documents)
    scores: np.ndarray = np.zeros(len(position), dtype=np.float32)
    rows: dict[str, list[int]] = {}  # query -> its pairs: files of one pair a line repeat a query
    for pair, query in enumerate(record.query for record in records for _ in record.documents):
        rows.setdefault(query, []).append(pair)
    for query, pairs in rows.items():
        scores[pairs] = index.scores(query)[position[pairs]]
    return scores


def cosine_scores(records: Sequence[QueryRecord], encoder: str | Path | DenseEncoder, max_len: int = 256) -> np.ndarray:
    """Cosine [P] of query and document embeddings by `encoder`, a folder (cut at max_len tokens, where it
    does not say) or one that is open.

    Raises:
        InputError: `encoder` is not a folder with a model.
    """
    opened = encoder if isinstance(encoder, DenseEncoder) else DenseEncoder(encoder, max_len)
    of_query, queries = _distinct(record.query for record in records for _ in record.documents)
    of_document, documents = _distinct(text for record in records for text in record.documents)
    vectors = opened.encode_queries(queries), opened.encode_documents(documents)
    return np.einsum("pd,pd->p", vectors[0][of_query], vectors[1][of_document])


def _distinct(texts: Iterator[str]) -> tuple[np.ndarray, list[str]]:
    """(index of each text among the distinct ones [texts], the distinct ones)."""
    seen: dict[str, int] = {}
    position = np.array([seen.setdefault(text, len(seen)) for text in texts], dtype=np.int64)
    return position, list(seen)
