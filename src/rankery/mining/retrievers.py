"""Retrievers over a corpus: BM25, and embedding models of either kind.

Contract: `search` gives the best documents of each query, best first, and the score of the best of some other texts on the same
scale; a document that shares no word with the query is not found by BM25. Cost: see evaluation/retrieval.py; embeddings of the
corpus, one forward pass a document, are most of the time and kept in memory (4 bytes a dimension). Rejected: sentence-transformers
for every encoder, a dependency where the mean of the last hidden states is what the model wants.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rankery.data.finite import check_finite
from rankery.errors import InputError
from rankery.evaluation.retrieval import Bm25, DenseEncoder, top
from rankery.mining.progress import shown
from rankery.mining.select import Found
from rankery.models.folders import CONTRACT_FILE
from rankery.models.loading import loading

BM25 = "bm25"
MODULES_FILE = "modules.json"  # of a sentence-transformers model
EMBEDDED_AT_ONCE = 4096  # texts between two signs of progress
PRODUCTS_AT_ONCE = 1 << 25  # scores of queries and documents in memory


class Retriever(Protocol):
    def search(self, queries: Sequence[str], depth: int, texts: Sequence[Sequence[str]] | None) -> Iterator[Found]:
        """What is found for each query: `depth` documents at most; with `texts`, the best score of each query's own."""
        ...


class Bm25Retriever:
    """BM25 over the corpus."""

    def __init__(self, documents: Sequence[str]):
        self.index = Bm25(shown(documents, len(documents), "indexing", "documents"))

    def search(self, queries: Sequence[str], depth: int, texts: Sequence[Sequence[str]] | None) -> Iterator[Found]:
        for number, query in enumerate(queries):
            scores = self.index.scores(query)
            best = top(scores, depth)
            best = best[scores[best] > 0]
            own = None if texts is None else float(self.index.score_texts(query, texts[number]).max())
            yield Found(best, scores[best], own)


class EmbeddingRetriever:
    """Cosine of embeddings; of a model that was made for it, their dot product.

    Args:
        documents: the corpus.
        encode: texts -> vectors, for (queries, documents).
    """

    def __init__(self, documents: Sequence[str], encoder: Encoder):
        self.encoder = encoder
        starts = range(0, len(documents), EMBEDDED_AT_ONCE)
        parts = [
            encoder.documents(documents[start : start + EMBEDDED_AT_ONCE])
            for start in shown(starts, len(documents), "embedding", "documents", EMBEDDED_AT_ONCE)
        ]
        self.vectors = np.concatenate(parts)

    def search(self, queries: Sequence[str], depth: int, texts: Sequence[Sequence[str]] | None) -> Iterator[Found]:
        vectors = self.encoder.queries(queries)
        own = None if texts is None else self._best_own(vectors, texts)
        at_once = max(1, PRODUCTS_AT_ONCE // len(self.vectors))
        for start in range(0, len(queries), at_once):
            products = vectors[start : start + at_once] @ self.vectors.T
            for number, scores in enumerate(products, start):
                best = top(scores, depth)
                yield Found(best, scores[best], None if own is None else own[number])

    def _best_own(self, vectors: np.ndarray, texts: Sequence[Sequence[str]]) -> list[float]:
        flat = self.encoder.documents([text for row in texts for text in row])
        ends = np.cumsum([len(row) for row in texts])
        return [
            float((flat[end - len(row) : end] @ vector).max())
            for row, end, vector in zip(texts, ends, vectors, strict=True)
        ]


class Encoder:
    """An embedding model: a sentence-transformers model, with its own prompts, or a plain encoder, by the mean of its states.

    Args:
        name: folder, or hub name of a sentence-transformers model.
        query_prefix: put before each query.
        document_prefix: put before each document.
        device: None: the accelerator, if there is one.

    Raises:
        InputError: nothing that can be loaded, or sentence-transformers is needed and not installed.
    """

    def __init__(self, name: str, query_prefix: str = "", document_prefix: str = "", device: str | None = None):
        self.prefixes = query_prefix, document_prefix
        path = Path(os.path.expanduser(name))
        if (path / CONTRACT_FILE).is_file():
            raise InputError(
                f"{name}: holds a reranker, whose states are no embeddings; expected bm25 or an embedding model "
                "(a reranker can be the teacher)"
            )
        self.is_plain = path.is_dir() and not (path / MODULES_FILE).is_file()
        self.model: Any
        with loading(str(path) if path.is_dir() else name):
            if self.is_plain:
                self.model = DenseEncoder(path, device=device)
            else:
                self.model = _sentence_transformer(str(path) if path.is_dir() else name, device)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, hidden] float32."""
        return self._encode([self.prefixes[0] + text for text in texts], "encode_query")

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, hidden] float32."""
        return self._encode([self.prefixes[1] + text for text in texts], "encode_document")

    def _encode(self, texts: list[str], method: str) -> np.ndarray:
        if self.is_plain:
            vectors = self.model.encode(texts)
        else:
            to_length_1 = self.model.similarity_fn_name != "dot"
            vectors = getattr(self.model, method)(texts, show_progress_bar=False, normalize_embeddings=to_length_1)
            vectors = np.asarray(vectors, dtype=np.float32)
        check_finite(vectors, lambda i: f"text {texts[i]!r:.80}", "the retriever")
        return vectors


def _sentence_transformer(name: str, device: str | None) -> Any:
    if not importlib.util.find_spec("sentence_transformers"):
        raise InputError(
            f"{name}: needs sentence-transformers, which is not installed; expected bm25, a folder with a plain Hugging Face "
            'encoder, or: pip install "rankery[embed]"'
        )
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(name, device=device)
