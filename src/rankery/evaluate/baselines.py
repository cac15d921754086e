"""What a reranker has to beat: random order, BM25, and the cosine of a base encoder's embeddings.

Contract: each gives one score a pair, flat float32 arrays in the order of `pairs_of`. BM25 is bm25s over the distinct
documents of the set, Chinese and Japanese and Korean text by characters and their bigrams, other text by lower-cased words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankery.data.records import QueryRecord, text_hash
from rankery.evaluate.runs import EvaluationPairs, mix

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
TOKENS = re.compile(rf"[{CJK}]+|[^\W_{CJK}]+")
EMBEDDED_TOKENS = 256  # all-MiniLM-L6-v2 was trained on no more
TOKENS_A_BATCH = 4096


def pairs_of(records: Sequence[QueryRecord]) -> EvaluationPairs:
    """The judged pairs of records; lines that hold one pair are joined by equal query."""
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


def random_scores(records: Sequence[QueryRecord], seed: int) -> np.ndarray:
    """Scores that a seed and the texts decide."""
    return (mix(pairs_of(records).key, seed) >> np.uint64(40)).astype(np.float32) / 2**24


def bm25_tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for word in TOKENS.findall(text.lower()):
        is_cjk = re.match(f"[{CJK}]", word)
        tokens += [*word, *(a + b for a, b in zip(word, word[1:], strict=False))] if is_cjk else [word]
    return tokens


def bm25_index(documents: Sequence[str]) -> Any:
    """bm25s index with its default parameters (Lucene's variant, k1 1.5, b 0.75)."""
    import bm25s

    index = bm25s.BM25()
    index.index([bm25_tokens(text) for text in documents], show_progress=False)
    return index


def bm25_all(index: Any, query: str, documents: int) -> np.ndarray:
    """Scores of all indexed documents, [documents]."""
    known = [token for token in bm25_tokens(query) if token in index.vocab_dict]
    return index.get_scores(known) if known else np.zeros(documents, dtype=np.float32)


def bm25_scores(records: Sequence[QueryRecord]) -> np.ndarray:
    documents = list(dict.fromkeys(text for record in records for text in record.documents))
    position = {text: i for i, text in enumerate(documents)}
    index = bm25_index(documents)
    rows = [
        bm25_all(index, record.query, len(documents))[[position[text] for text in record.documents]] for record in records
    ]
    return np.concatenate(rows).astype(np.float32)


def embed(texts: Sequence[str], base_model: str | Path) -> np.ndarray:
    """Mean-pooled, normalised embeddings of a Hugging Face encoder, [texts, width] float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from rankery.data.collate import pad
    from rankery.data.plan import deal

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModel.from_pretrained(base_model).eval()
    encoded = tokenizer(list(texts), truncation=True, max_length=EMBEDDED_TOKENS)["input_ids"]
    rows = [(np.array(ids), None) for ids in encoded]
    lengths = np.array([len(ids) for ids in encoded])
    (batches,) = deal(np.arange(len(rows)), np.ones_like(lengths), lengths, 1, TOKENS_A_BATCH)
    out = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for batch in batches:
            ids, mask, _ = pad([rows[i] for i in batch.examples], tokenizer.pad_token_id)
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            out[batch.examples] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return out


def cosine_scores(records: Sequence[QueryRecord], base_model: str | Path) -> np.ndarray:
    texts = list(dict.fromkeys(text for record in records for text in (record.query, *record.documents)))
    position = {text: i for i, text in enumerate(texts)}
    vectors = embed(texts, base_model)
    rows = [vectors[[position[text] for text in record.documents]] @ vectors[position[record.query]] for record in records]
    return np.concatenate(rows)
