"""Orders, ties and TREC files: what every tool must agree on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankery.data.files import text_hash
from rankery.data.records import QueryRecord
from rankery.errors import InputError
from rankery.evaluation.runs import (
    MOST_GRADES,
    EvaluationPairs,
    distinct_scores,
    gains,
    mix,
    pairs_of,
    rank,
    write_qrels,
    write_run,
)


def make_pairs(labels: list[float], query: list[int] | None = None) -> EvaluationPairs:
    keys = [text_hash("query", f"document {i}") for i in range(len(labels))]
    return EvaluationPairs(np.array(query or [0] * len(labels)), np.array(labels), np.array(keys, np.uint64))


@given(st.lists(st.floats(allow_nan=False, width=32), max_size=50), st.integers(0, 40))
def test_written_scores_strictly_descend_and_read_back(values: list[float], copies: int) -> None:
    given_scores = np.sort(np.array(values + values[:1] * copies, np.float32))[::-1]
    written = distinct_scores(given_scores)
    assert written.dtype == np.float32
    assert np.isfinite(written).all()
    assert (written[1:] < written[:-1]).all()
    spelled = [float(str(score)) for score in written]  # as a tool with doubles reads them
    assert sorted(set(spelled), reverse=True) == spelled
    assert np.array_equal(np.float32(spelled), written)


def test_scores_that_are_distinct_are_written_unchanged() -> None:
    scores = np.array([3e38, 7.5, 1.0, 1e-30, 0.0, -1e-30, -2.5, -3e38], np.float32)
    assert np.array_equal(distinct_scores(scores), scores)


@pytest.mark.parametrize("value", [0.0, -0.0, np.inf, -np.inf, 1e300, -1e300, 1e-45, 0.5])
def test_all_equal_scores_are_told_apart(value: float) -> None:
    written = distinct_scores(np.full(1000, value))
    assert len(set(written.tolist())) == 1000
    assert not (
        np.abs(written[written != 0]) < np.finfo(np.float32).tiny
    ).any()  # no subnormals: some readers flush them


def test_ties_follow_the_texts_not_the_order_of_the_file() -> None:
    keys = np.array([text_hash("query", f"document {i}") for i in range(200)], np.uint64)
    scores = np.repeat([2.0, 1.0], 100)
    order = keys[rank(scores, keys, seed=1)]
    shuffle = np.random.default_rng(0).permutation(200)
    assert np.array_equal(order, keys[shuffle][rank(scores[shuffle], keys[shuffle], seed=1)])
    assert set(order[:100]) == set(keys[:100])
    assert not np.array_equal(order, keys[rank(scores, keys, seed=2)])
    assert not np.array_equal(order, keys)


def test_every_tied_document_comes_first_equally_often() -> None:
    keys = np.array([text_hash("query", f"document {i}") for i in range(4)], np.uint64)
    first = Counter(int(rank(np.zeros(4), keys, seed)[0]) for seed in range(2000))
    assert all(abs(first[document] - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75) for document in range(4))


def test_mix_is_a_permutation() -> None:
    keys = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(mix(keys, 3))) == len(keys)
    assert not np.array_equal(mix(keys, 3), mix(keys, 4))


def test_exact_duplicates_do_not_favour_what_stands_first() -> None:
    keys = np.array([7, 7, 7], np.uint64)
    assert rank(np.zeros(3), keys, seed=0).tolist() == [2, 1, 0]


def test_queries_stay_together_when_their_pairs_are_apart() -> None:
    query = np.array([1, 0, 1, 0])
    order = rank(np.array([0.1, 0.2, 0.3, 0.4]), np.arange(4, dtype=np.uint64), 0, query)
    assert order.tolist() == [3, 1, 2, 0]


def test_nan_and_wrong_shapes_are_refused() -> None:
    keys = np.arange(3, dtype=np.uint64)
    with pytest.raises(InputError, match="1 of 3 scores are NaN, the first for pair 1"):
        rank(np.array([1.0, np.nan, 2.0]), keys, seed=0)
    with pytest.raises(InputError, match=r"shape \(2,\); expected one score for each of 3 pairs"):
        rank(np.zeros(2), keys, seed=0)


def test_infinite_scores_are_ranked() -> None:
    keys = np.arange(4, dtype=np.uint64)
    assert rank(np.array([0.0, -np.inf, np.inf, 1.0]), keys, seed=0).tolist() == [2, 3, 0, 1]


def test_grades_are_their_own_gains() -> None:
    judged = gains(make_pairs([0, 3, 1, 2]))
    assert (judged.gain.tolist(), judged.is_soft) == ([0, 3, 1, 2], False)


def test_negative_grades_are_raised_by_min_label() -> None:
    assert gains(make_pairs([-20, -1, 2]), min_label=-20).gain.tolist() == [0, 19, 22]
    assert gains(make_pairs([-20, -1, 2]), min_label=0).gain.tolist() == [0, 0, 2]


def test_soft_labels_keep_four_digits() -> None:
    judged = gains(make_pairs([0.0, 0.12345, 0.5]))
    assert judged.is_soft
    assert judged.gain.tolist() == [0, 2469, MOST_GRADES]


def test_huge_integers_are_scores() -> None:
    judged = gains(make_pairs([0, 5_000_000, 10_000_000]))
    assert judged.is_soft
    assert judged.gain.tolist() == [0, 5_000, 10_000]


def test_lines_of_one_pair_are_joined_by_query() -> None:
    def line(query: str, documents: tuple[str, ...], is_pair_line: bool) -> QueryRecord:
        labels = tuple(float(i) for i in range(len(documents)))
        return QueryRecord(query, documents, labels, "file", (1,) * len(documents), is_pair_line)

    pairs = pairs_of([line("a", ("x",), True), line("b", ("y",), True), line("a", ("z",), True)])
    assert pairs.query.tolist() == [0, 1, 0]
    assert pairs.key.tolist() == [text_hash("a", "x"), text_hash("b", "y"), text_hash("a", "z")]
    groups = pairs_of([line("a", ("x", "y"), False), line("a", ("z",), False)])
    assert groups.query.tolist() == [0, 0, 1]  # two groups of one query text are two queries
    assert groups.label.tolist() == [0.0, 1.0, 0.0]


def test_files_hold_every_pair_by_query_and_rank(tmp_path: Path) -> None:
    pairs = make_pairs([1, 0, 0, 2], query=[0, 1, 0, 1])
    write_run(tmp_path / "run.trec", pairs, np.array([0.25, 1.5, 0.75, 1.5]), seed=0)
    rows = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [row[:2] + row[3:4] + row[5:] for row in rows] == [
        ["q0", "Q0", "1", "rankery"],
        ["q0", "Q0", "2", "rankery"],
        ["q1", "Q0", "1", "rankery"],
        ["q1", "Q0", "2", "rankery"],
    ]
    assert [row[2] for row in rows[:2]] == ["d2", "d0"]
    assert {row[2] for row in rows[2:]} == {"d1", "d3"}
    assert [row[4] for row in rows] == ["0.75", "0.25", "1.5", "1.4999999"]
    write_qrels(tmp_path / "qrels.trec", pairs)
    assert (tmp_path / "qrels.trec").read_text() == "q0 0 d0 1\nq1 0 d1 0\nq0 0 d2 0\nq1 0 d3 2\n"
