"""What a reranker must beat: random order, BM25, and cosine of an encoder's embeddings; and neighbours by the last two.

Contract: each baseline takes records and gives one float32 score a pair, in pair order, ready for `ranking_metrics`.
Cost: BM25 scores every distinct document for each query (1 ms a query at 100,000 documents); cosine is one forward pass
a distinct text. Rejected: BM25 statistics from each query's own candidates (twenty documents say nothing of how rare a
word is), and sentence-transformers for the embeddings (a dependency for one mean).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rankery.data.records import QueryRecord
from rankery.errors import InputError

# Scripts written without spaces, or (Hangul) with particles joined to words: kana, Han with extensions, Hangul.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
WORDS = re.compile(f"[{CJK}]+|[^\\W_{CJK}]+")
IS_CJK = re.compile(f"[{CJK}]")
TOKENS_AT_ONCE = 8192  # padded tokens in one forward pass of the encoder


def bm25_tokens(text: str) -> list[str]:
    """Lower-cased words; of CJK runs every character and every two neighbouring ones (no dictionary needed)."""
    tokens: list[str] = []
    for word in WORDS.findall(text.lower()):
        tokens += [*word, *map("".join, pairwise(word))] if IS_CJK.match(word) else [word]
    return tokens


def random_scores(records: Sequence[QueryRecord], seed: int = 0) -> np.ndarray:
    """Uniform random scores in [0, 1), [P]."""
    return np.random.default_rng(seed).random(sum(len(record.documents) for record in records), dtype=np.float32)


def bm25_scores(records: Sequence[QueryRecord]) -> np.ndarray:
    """BM25 [P] with document frequencies from all distinct documents of the records (Lucene's form, k1 1.5, b 0.75)."""
    position, documents = _distinct(text for record in records for text in record.documents)
    index = _Bm25(list(documents))
    scores: np.ndarray = np.zeros(len(position), dtype=np.float32)
    rows: dict[str, list[int]] = {}  # query -> its pairs: files of one pair a line repeat a query
    for pair, query in enumerate(record.query for record in records for _ in record.documents):
        rows.setdefault(query, []).append(pair)
    for query, pairs in rows.items():
        scores[pairs] = index.scores(query)[position[pairs]]
    return scores


def cosine_scores(records: Sequence[QueryRecord], encoder: str | Path, max_len: int = 256) -> np.ndarray:
    """Cosine [P] of query and document embeddings (`embed`).

    Raises:
        InputError: `encoder` is not a folder with a model.
    """
    position, texts = _distinct(
        text for record in records for document in record.documents for text in (record.query, document)
    )
    vectors = embed(texts, encoder, max_len)
    return np.einsum("pd,pd->p", vectors[position[0::2]], vectors[position[1::2]])


def embed(texts: Sequence[str], encoder: str | Path, max_len: int = 256) -> np.ndarray:
    """Mean of the last hidden states over real tokens, scaled to length 1, [texts, hidden] float32 (Sentence-BERT,
    Reimers and Gurevych 2019). Texts are sorted by length and padded in batches; the result does not depend on the
    batches, to rounding.

    Raises:
        InputError: `encoder` is not a folder with a model.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # one for loading weights, of no use to anybody
    if not (Path(encoder) / "config.json").is_file():
        raise InputError(
            f"{encoder}: no config.json in it; expected a folder with a Hugging Face encoder and its tokenizer"
        )
    tokenizer = AutoTokenizer.from_pretrained(str(encoder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = AutoModel.from_pretrained(str(encoder), dtype=torch.float32).to(device).eval()
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    ids = tokenizer(list(texts), truncation=True, max_length=max_len)["input_ids"] if len(texts) else []
    with torch.inference_mode():
        for rows in _length_batches([len(row) for row in ids]):
            batch: Any = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(device)
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)  # no token at all: zeros, cosine 0
            vectors[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
    return vectors


def bm25_neighbours(queries: Sequence[str], documents: Sequence[str], k: int) -> np.ndarray:
    """Indices of the k best documents for each query by BM25, best first, [Q, min(k, D)]; equal scores by index."""
    index = _Bm25(documents)
    k = min(k, len(documents))
    return np.array([_top(index.scores(query), k) for query in queries], dtype=np.int64).reshape(len(queries), k)


def cosine_neighbours(query_vectors: np.ndarray, document_vectors: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k documents of highest dot product for each query, best first, [Q, min(k, D)]."""
    k = min(k, len(document_vectors))
    rows = [_top(document_vectors @ vector, k) for vector in query_vectors]
    return np.array(rows, dtype=np.int64).reshape(len(query_vectors), k)


class _Bm25:
    """BM25 over a fixed corpus; texts without words score 0."""

    def __init__(self, documents: Sequence[str]):
        import bm25s

        tokens = [bm25_tokens(document) for document in documents]
        self.size = len(tokens)
        self.vocabulary = {token for row in tokens for token in row}
        self.index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        if self.vocabulary:
            self.index.index(tokens, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """[documents] float32."""
        known = [token for token in bm25_tokens(query) if token in self.vocabulary]
        return self.index.get_scores(known) if known else np.zeros(self.size, dtype=np.float32)


def _distinct(texts: Iterator[str]) -> tuple[np.ndarray, list[str]]:
    """(index of each text among the distinct ones [texts], the distinct ones)."""
    seen: dict[str, int] = {}
    position = np.array([seen.setdefault(text, len(seen)) for text in texts], dtype=np.int64)
    return position, list(seen)


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:k]


def _length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows by descending length, cut where a batch padded to its longest would pass TOKENS_AT_ONCE."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(rows):
        count = max(1, TOKENS_AT_ONCE // max(1, lengths[rows[start]]))
        yield rows[start : start + count]
        start += count
