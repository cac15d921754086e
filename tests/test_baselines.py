"""BM25, cosine and random scores: by hand, by brute force, and on real data where it is present."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, words
from transformers import AutoModel, AutoTokenizer

from rankery.data.records import QueryRecord, read_records
from rankery.errors import InputError
from rankery.evaluation.baselines import bm25_scores, cosine_scores, random_scores
from rankery.evaluation.metrics import ranking_metrics
from rankery.evaluation.retrieval import bm25_neighbours, bm25_tokens, cosine_neighbours, embed
from rankery.evaluation.runs import pairs_of


def record(query: str, *documents: str) -> QueryRecord:
    return QueryRecord(query, documents, (1.0, *[0.0] * (len(documents) - 1)), "file", (1,) * len(documents))


def test_words_and_character_pairs() -> None:
    assert bm25_tokens("The os.path_exists, 2nd CALL") == ["the", "os", "path", "exists", "2nd", "call"]
    assert bm25_tokens("用Python写代码") == ["用", "python", "写", "代", "码", "写代", "代码"]
    assert bm25_tokens("Straße — naïve") == ["straße", "naïve"]
    assert bm25_tokens("?! _") == []


def test_bm25_by_hand() -> None:
    records = [record("sun", "sun moon", "moon"), record("moon", "sun moon", "star star moon")]
    # Corpus: the three distinct documents. Lucene's form: idf below, times tf / (tf + k1 (1 - b + b length / mean)).
    mean = (2 + 1 + 3) / 3

    def weight(containing: int, times: int, length: int) -> float:
        idf = math.log(1 + (3 - containing + 0.5) / (containing + 0.5))
        return idf * times / (times + 1.5 * (1 - 0.75 + 0.75 * length / mean))

    assert bm25_scores(records) == pytest.approx([weight(1, 1, 2), 0.0, weight(3, 1, 2), weight(3, 1, 3)], rel=1e-5)


def test_bm25_takes_texts_without_words() -> None:
    records = [record("?", "sun", ""), record("unseen words", "sun", "..."), record("sun", "", "sun")]
    scores = bm25_scores(records)
    assert scores.dtype == np.float32
    assert (scores[:5] == 0).all()
    assert scores[5] > 0
    assert bm25_scores([record("sun", "", "?")]).tolist() == [0.0, 0.0]
    assert bm25_scores([]).shape == (0,)


def test_bm25_neighbours_are_the_best_in_order() -> None:
    documents = [words(i, 4 + i % 7) for i in range(50)]
    queries = [words(i, 2) for i in range(10)]
    found = bm25_neighbours(queries, documents, 5)
    assert found.shape == (10, 5)
    scores = bm25_scores([record(query, *documents) for query in queries]).reshape(10, 50)
    for row, best in zip(scores, found, strict=True):
        assert row[best].tolist() == sorted(row.tolist(), reverse=True)[:5]
    assert bm25_neighbours(queries, documents[:3], 5).shape == (10, 3)


def test_embeddings_are_means_over_real_tokens(bert: Path) -> None:
    texts = [words(i, 1 + 7 * (i % 6)) for i in range(40)]
    vectors = embed(texts, bert)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    for text, vector in zip(texts[:8], vectors, strict=False):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert embed([], bert).shape == (0, 32)


def test_embedding_does_not_depend_on_the_other_texts_or_on_what_is_cut(bert: Path) -> None:
    texts = [words(i, 1 + i % 30) for i in range(30)]
    assert embed(texts[::-1], bert)[::-1] == pytest.approx(embed(texts, bert), abs=1e-5)
    long = words(1, 90)
    assert embed([long + " sun", long + " moon"], bert, 32)[0] == pytest.approx(embed([long], bert, 32)[0], abs=1e-5)


def test_cosine_scores_are_products_of_embeddings(bert: Path) -> None:
    records = [record("sun moon", "star", "rain snow"), record("star", "star", "")]
    scores = cosine_scores(records, bert)
    query, other, star, rain, nothing = embed(["sun moon", "star", "star", "rain snow", ""], bert)
    assert scores == pytest.approx([query @ star, query @ rain, 1.0, other @ nothing], abs=1e-5)


def test_cosine_neighbours_are_the_best_in_order() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(6, 8)), random.normal(size=(20, 8))
    found = cosine_neighbours(queries, documents, 4)
    products = queries @ documents.T
    assert found.tolist() == [np.argsort(-row)[:4].tolist() for row in products]
    assert cosine_neighbours(queries, documents[:2], 4).shape == (6, 2)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json in it; expected a folder with a Hugging Face encoder"):
        embed(["text"], tmp_path)


def test_random_scores_are_seeded_and_even() -> None:
    records = [record(f"query {i}", *(f"document {i} {j}" for j in range(10))) for i in range(500)]
    scores = random_scores(records, 1)
    assert (scores.shape, scores.dtype) == ((5000,), np.float32)
    assert np.array_equal(scores, random_scores(records, 1))
    assert not np.array_equal(scores, random_scores(records, 2))
    assert scores.reshape(500, 10).mean(0) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(("file", "margin"), [("wikiqa/test.jsonl", 0.1), ("t2ranking_sample/t2rank_100.jsonl", 0.05)])
def test_bm25_beats_random_order_on_real_data(file: str, margin: float) -> None:
    path = SHARED / file
    if not path.is_file():
        pytest.skip(f"needs the shared data set {file}")
    records = list(read_records([path]))
    pairs = pairs_of(records)
    bm25, by_chance = (
        ranking_metrics(pairs, scores)["nDCG@10"] for scores in (bm25_scores(records), random_scores(records))
    )
    assert bm25 > by_chance + margin
