"""Retrieval from a fixed list of documents: BM25, an encoder's embeddings, and the best of many scores.

Contract: one float32 score a document; equal scores are ordered by index, so a list of neighbours is a function of the texts alone.
Cost: BM25 keeps 8 bytes for each distinct word of each document, and adds up those of a query's words; embeddings are one forward
pass a text. Rejected: sorting all scores of a large corpus (its best are found by a partition), and approximate neighbours (an
index to build and tune, where a product of matrices is exact and takes milliseconds a query at a million documents).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rankery.data.tokens import shortened
from rankery.errors import InputError
from rankery.evaluation.pooling import open_dense, pooled, read_recipe
from rankery.models.quiet import quiet

# Scripts written without spaces, or (Hangul) with particles joined to words: kana, Han with extensions, Hangul; Thai, Lao, Burmese,
# Khmer.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
# Signs inside words that are no letters to Python: accents, points of Hebrew and Arabic, vowels of Indic scripts.
MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
WORDS = re.compile(f"[{UNSPACED}]+|[^\\W_{UNSPACED}]+(?:[{MARKS}]+[^\\W_{UNSPACED}]*)*")
IS_UNSPACED = re.compile(f"[{UNSPACED}]")
K1, B = 1.5, 0.75
TOKENS_AT_ONCE = 8192  # padded tokens in one forward pass of the encoder
TEXTS_AT_ONCE = 16384  # tokenised and sorted together; bounds memory


def bm25_tokens(text: str) -> list[str]:
    """Lower-cased words; of runs without spaces every character and every two neighbouring ones (no dictionary needed)."""
    words = WORDS.findall(text.lower())
    if text.isascii():
        return words
    tokens: list[str] = []
    for word in words:
        tokens += [*word, *map("".join, pairwise(word))] if IS_UNSPACED.match(word) else [word]
    return tokens


class Bm25:
    """BM25 over a fixed corpus (Lucene's form, k1 1.5, b 0.75); texts without words score 0."""

    def __init__(self, documents: Iterable[str]):
        import bm25s

        self.vocabulary: dict[str, int] = {}
        number = self.vocabulary.setdefault
        rows = [array("i", [number(token, len(self.vocabulary)) for token in bm25_tokens(text)]) for text in documents]
        self.size = len(rows)
        self.mean_length = sum(map(len, rows)) / max(self.size, 1)
        index = bm25s.BM25(method="lucene", k1=K1, b=B, csc_backend="scipy")  # sorts nothing: less memory
        if self.vocabulary:
            index.index((rows, self.vocabulary), create_empty_token=False, show_progress=False)
            self.postings, self.weights, self.starts = (index.scores[name] for name in ("indices", "data", "indptr"))

    def scores(self, query: str) -> np.ndarray:
        """Of every document, [documents] float32."""
        scores: np.ndarray = np.zeros(self.size, dtype=np.float32)
        for token in self._known(query):
            at = slice(self.starts[token], self.starts[token + 1])
            scores[self.postings[at]] += self.weights[at]  # a document is there once
        return scores

    def score_texts(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """Of texts that may not be in the corpus, [texts] float32, by the corpus's statistics."""
        known = self._known(query)
        scores: np.ndarray = np.zeros(len(texts), dtype=np.float32)
        for i, text in enumerate(texts):
            tokens = [self.vocabulary.get(token, -1) for token in bm25_tokens(text)]
            norm = K1 * (1 - B + B * len(tokens) / max(self.mean_length, 1e-9))
            for token in known:
                times, containing = tokens.count(token), int(self.starts[token + 1] - self.starts[token])
                idf = np.log(1 + (self.size - containing + 0.5) / (containing + 0.5))
                scores[i] += idf * times / (times + norm) if times else 0.0
        return scores

    def _known(self, query: str) -> list[int]:
        return [self.vocabulary[token] for token in bm25_tokens(query) if token in self.vocabulary]


class DenseEncoder:
    """A Hugging Face encoder whose embedding is what its folder says (`pooling.read_recipe`), scaled to length 1: of a plain encoder the
    mean of the last hidden states over real tokens.

    Args:
        folder: with the model and its tokenizer.
        max_len: tokens of a text at most, where the folder does not say.
        device: None: the accelerator, if there is one.
        dtype: of the model: float32, bfloat16 or float16; None: float32. Pooling is in float32.

    Raises:
        InputError: `folder` is not a folder with a model, or its modules are not known here.
    """

    def __init__(self, folder: str | Path, max_len: int = 256, device: str | None = None, dtype: str | None = None):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.recipe = read_recipe(Path(folder))
        place = self.recipe.transformer
        if not (place / "config.json").is_file():
            raise InputError(
                f"{folder}: no config.json in it; expected a folder with a Hugging Face encoder and its tokenizer"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.after = [None if kind == "Normalize" else open_dense(at).to(self.device) for kind, at in self.recipe.after]
        with quiet():
            self.tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
            opened = AutoModel.from_pretrained(
                str(place), dtype=getattr(torch, dtype or "float32"), trust_remote_code=False
            )
        if opened.config.is_encoder_decoder:
            raise InputError(
                f"{folder}: is a {opened.config.model_type}, of encoder and decoder; score it with sentence-transformers, and compare its "
                "run (--run)"
            )
        self.model = opened.to(self.device).eval()
        self.tokenizer.padding_side = "right"
        if self.recipe.is_plain:
            self.max_len = max_len
        else:
            takes = getattr(opened.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
            self.max_len = self.recipe.max_len or min(takes, self.tokenizer.model_max_length)

    def encode(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """[texts, hidden] float32, of texts behind a prompt. Texts are sorted by length and padded in batches; the result does not
        depend on the batches, to rounding.
        """
        parts: list[np.ndarray] = [np.zeros((0, self.model.config.hidden_size), np.float32)]
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            parts.append(self._encode([prompt + text for text in texts[start : start + TEXTS_AT_ONCE]], prompt))
        return np.concatenate(parts[1:] or parts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode(texts, self.recipe.query_prompt)

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode(texts, self.recipe.document_prompt)

    def _encode(self, texts: list[str], prompt: str) -> np.ndarray:
        import torch

        texts = [text.lower() for text in texts] if self.recipe.lower_case else texts
        if self.tokenizer.is_fast:  # of a text of megabytes, what is kept and little more
            texts = shortened(self.tokenizer, texts, self.max_len)
        ids = self.tokenizer(texts, truncation=True, max_length=self.max_len)["input_ids"]
        # A prompt's tokens without what ends a text.
        skipped = 0 if self.recipe.include_prompt or not prompt else len(self.tokenizer(prompt)["input_ids"]) - 1
        vectors: list[Any] = [None] * len(texts)
        with torch.inference_mode():
            for rows in _length_batches([len(row) for row in ids]):
                batch: Any = self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
                batch = batch.to(self.device)
                states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
                found = pooled(states.last_hidden_state, batch["attention_mask"], self.recipe.modes, skipped)
                for dense in self.after:
                    found = torch.nn.functional.normalize(found, dim=1) if dense is None else dense(found)
                found = torch.nn.functional.normalize(found, dim=1).cpu().numpy()
                for row, vector in zip(rows, found, strict=True):
                    vectors[row] = vector
        return np.stack(vectors)


def embed(texts: Sequence[str], encoder: str | Path, max_len: int = 256) -> np.ndarray:
    """Embeddings of `DenseEncoder`, [texts, hidden] float32.

    Raises:
        InputError: `encoder` is not a folder with a model.
    """
    return DenseEncoder(encoder, max_len).encode(texts)


def bm25_neighbours(queries: Sequence[str], documents: Sequence[str], k: int) -> np.ndarray:
    """Indices of the k best documents for each query by BM25, best first, [Q, min(k, D)]; equal scores by index."""
    index = Bm25(documents)
    k = min(k, len(documents))
    return np.array([top(index.scores(query), k) for query in queries], dtype=np.int64).reshape(len(queries), k)


def cosine_neighbours(query_vectors: np.ndarray, document_vectors: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k documents of highest dot product for each query, best first, [Q, min(k, D)]."""
    k = min(k, len(document_vectors))
    rows = [top(document_vectors @ vector, k) for vector in query_vectors]
    return np.array(rows, dtype=np.int64).reshape(len(query_vectors), k)


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest of [N] scores, best first; equal scores by index."""
    if k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
        above = np.flatnonzero(scores > least)
        chosen = np.concatenate([above, np.flatnonzero(scores == least)[: k - len(above)]])
        chosen.sort()
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows by descending length, cut where a batch padded to its longest would pass TOKENS_AT_ONCE."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(rows):
        count = max(1, TOKENS_AT_ONCE // max(1, lengths[rows[start]]))
        yield rows[start : start + count]
        start += count
