"""Metrics against values worked out by hand, and against ir-measures reading the files we write."""

from __future__ import annotations

import math
import time
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, R, nDCG
from scipy.stats import kendalltau
from test_runs import make_pairs

from rankery.errors import InputError
from rankery.evaluation.metrics import (
    bootstrap_interval,
    metric_names,
    metrics_table,
    per_query_metrics,
    queries_without_relevant,
    ranking_metrics,
)
from rankery.evaluation.runs import EvaluationPairs, write_qrels, write_run


def random_pairs(
    queries: int, documents: int, labels: list[float], seed: int = 0
) -> tuple[EvaluationPairs, np.ndarray]:
    """Pairs in random order and scores with many ties."""
    random = np.random.default_rng(seed)
    count = queries * documents
    query = random.permutation(np.repeat(np.arange(queries), documents))
    pairs = EvaluationPairs(query, random.choice(labels, count), random.integers(0, 2**63, count).astype(np.uint64))
    return pairs, random.integers(-3, 4, count).astype(np.float32)


def test_binary_by_hand() -> None:
    pairs = make_pairs([1, 0, 1, 0])  # ranked 1, 3, 0, 2: relevant documents at ranks 3 and 4
    metrics = ranking_metrics(pairs, np.array([0.2, 0.9, 0.1, 0.8]), min_label=0, recall_at=[3, 10])
    ideal = 1 + 1 / math.log2(3)
    assert metrics == pytest.approx(
        {
            "nDCG@10": (1 / math.log2(4) + 1 / math.log2(5)) / ideal,
            "MRR@10": 1 / 3,
            "MAP": (1 / 3 + 2 / 4) / 2,
            "Recall@3": 0.5,
            "Recall@10": 1.0,
        }
    )


def test_grades_are_linear_gains_and_relevant_above_min_label() -> None:
    pairs = make_pairs([1, 3, 2])  # labels 1 to 3: 1 is not relevant, and has gain 0
    metrics = ranking_metrics(pairs, np.array([3.0, 2.0, 1.0]), min_label=1)
    gained = 0 + 2 / math.log2(3) + 1 / math.log2(4)
    assert metrics["nDCG@10"] == pytest.approx(gained / (2 + 1 / math.log2(3) + 0 / math.log2(4)))
    assert metrics["MRR@10"] == pytest.approx(1 / 2)
    assert metrics["MAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    only_three = ranking_metrics(pairs, np.array([3.0, 1.0, 2.0]), min_label=1, relevant_above=2)
    assert only_three["MAP"] == pytest.approx(1 / 3)
    assert only_three["nDCG@10"] == ranking_metrics(pairs, np.array([3.0, 1.0, 2.0]), min_label=1)["nDCG@10"]


def test_negative_labels_are_raised() -> None:
    pairs = make_pairs([-1, 1, 0])
    metrics = ranking_metrics(pairs, np.array([3.0, 1.0, 2.0]), min_label=-1)
    assert metrics == ranking_metrics(make_pairs([0, 2, 1]), np.array([3.0, 1.0, 2.0]), min_label=0)
    assert metrics["MAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_what_lies_beyond_rank_ten_does_not_count() -> None:
    for place, value in ((10, 0.1), (11, 0.0)):
        pairs = make_pairs([float(i + 1 == place) for i in range(30)])
        metrics = ranking_metrics(pairs, -np.arange(30.0), min_label=0)
        assert metrics["MRR@10"] == pytest.approx(value)
        assert metrics["Recall@10"] == float(place == 10)
        assert metrics["MAP"] == pytest.approx(1 / place)


def test_queries_without_relevant_documents_count_zero() -> None:
    pairs = make_pairs([1, 0, 0, 0], query=[0, 0, 1, 1])
    scores = np.array([2.0, 1.0, 2.0, 1.0])
    assert per_query_metrics(pairs, scores, min_label=0)["MAP"].tolist() == [1.0, 0.0]
    assert ranking_metrics(pairs, scores, min_label=0)["nDCG@10"] == 0.5
    assert queries_without_relevant(pairs, min_label=0) == 1


def test_soft_labels_give_gain_and_rank_correlation() -> None:
    labels, scores = [0.9, 0.1, 0.5, 0.3, 0.3, 0.3], np.array([1.0, 2.0, 3.0, 1.0, 5.0, 2.0])
    pairs = make_pairs(labels, query=[0, 0, 0, 1, 1, 1])  # the second query has no order to be right about
    metrics = ranking_metrics(pairs, scores, min_label=0)
    assert set(metrics) == {"nDCG@10", "Kendall"}
    gained = 0.5 + 0.1 / math.log2(3) + 0.9 / math.log2(4)
    ideal = 0.9 + 0.5 / math.log2(3) + 0.1 / math.log2(4)
    assert metrics["nDCG@10"] == pytest.approx((gained / ideal + 1) / 2, abs=1e-4)
    assert metrics["Kendall"] == pytest.approx(-1 / 3)  # one of three pairs is in order
    by_query = per_query_metrics(pairs, scores, min_label=0)["Kendall"]
    assert np.isnan(by_query).tolist() == [False, True]
    assert by_query[0] == pytest.approx(kendalltau(scores[:3], labels[:3]).statistic)
    told = ranking_metrics(pairs, scores, min_label=0, relevant_above=0.4)
    assert told["MRR@10"] == pytest.approx((1 + 0) / 2)
    assert told["MAP"] == pytest.approx((1 + 2 / 3) / 2 / 2)


@pytest.mark.parametrize("above", [None, 0.4])
@pytest.mark.parametrize(
    ("labels", "min_label"),
    [
        ([0, 1, 1, 0], 0),
        ([0.2, 0.7, 0.5, 0.5], 0),
        ([0.5, 0.5, 0.7, 0.7], 0),  # no query with an order
        ([0.5, -0.5, 1.5, 0.5], -0.5),  # grades, once the lowest is 0
        ([0, 20_000, 1, 0], 0),  # too many to be grades
    ],
)
def test_names_are_those_of_the_metrics(labels: list[float], min_label: float, above: float | None) -> None:
    pairs, options = make_pairs(labels, query=[0, 0, 1, 1]), {"min_label": min_label, "relevant_above": above}
    found = ranking_metrics(pairs, np.arange(4.0), recall_at=[1, 5], **options)
    assert set(metric_names(pairs, recall_at=[1, 5], **options)) == set(found)


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0.2, 0.7], [1.0, 2.0], 1.0),
        ([0.2, 0.7], [2.0, 1.0], -1.0),
        ([0.2, 0.7], [1.0, 1.0], 0.0),
        # Of six pairs of documents four are in order and one in reverse; labels tie once, scores never: 3 / sqrt(5 * 6).
        ([0.1, 0.5, 0.5, 0.9], [1.0, 2.0, 4.0, 3.0], 3 / math.sqrt(5 * 6)),
        # Both tie once, elsewhere: four pairs count, all in order.
        ([0.1, 0.5, 0.5, 0.9], [1.0, 1.0, 2.0, 3.0], 4 / math.sqrt(5 * 5)),
    ],
)
def test_kendall_of_two_documents_and_of_ties(labels: list[float], scores: list[float], expected: float) -> None:
    metrics = ranking_metrics(make_pairs(labels), np.array(scores), min_label=0)
    assert metrics["Kendall"] == pytest.approx(expected)


def test_constant_scores_correlate_with_nothing() -> None:
    metrics = ranking_metrics(make_pairs([0.9, 0.1, 0.5]), np.zeros(3), min_label=0)
    assert metrics["Kendall"] == 0.0
    assert "Kendall" not in ranking_metrics(make_pairs([0.5, 0.5]), np.zeros(2), min_label=0)


@pytest.mark.parametrize(
    ("labels", "min_label"), [([0, 1], 0), ([0, 1, 2, 3], 0), ([-2, -1, 0, 1], -2), ([1, 2, 3], 1)]
)
def test_equals_ir_measures_on_our_files(tmp_path: Path, labels: list[float], min_label: int) -> None:
    pairs, scores = random_pairs(40, 25, labels)
    run, qrels = tmp_path / "run.trec", tmp_path / "qrels.trec"
    write_run(run, pairs, scores, seed=5)
    write_qrels(qrels, pairs, min_label)
    level = 1
    measures = {nDCG @ 10: "nDCG@10", RR(rel=level) @ 10: "MRR@10", AP(rel=level): "MAP", R(rel=level) @ 5: "Recall@5"}
    read = ir_measures.calc_aggregate(
        list(measures), list(ir_measures.read_trec_qrels(str(qrels))), list(ir_measures.read_trec_run(str(run)))
    )
    ours = ranking_metrics(pairs, scores, min_label=min_label, recall_at=[5], seed=5)
    assert ours == pytest.approx({name: read[measure] for measure, name in measures.items()}, abs=1e-9)
    other_ties = ranking_metrics(pairs, scores, min_label=min_label, recall_at=[5], seed=6)
    assert other_ties != ours  # the seed decides, so the equality above is about ties too


def test_order_of_the_file_does_not_matter() -> None:
    pairs, scores = random_pairs(30, 20, [0, 1, 2])
    shuffle = np.random.default_rng(1).permutation(len(pairs))
    shuffled = EvaluationPairs(pairs.query[shuffle], pairs.label[shuffle], pairs.key[shuffle])
    assert ranking_metrics(shuffled, scores[shuffle], min_label=0) == pytest.approx(
        ranking_metrics(pairs, scores, min_label=0), abs=1e-12
    )


def test_a_constant_scorer_gains_nothing_from_files_with_relevant_documents_first() -> None:
    random = np.random.default_rng(0)
    pairs = EvaluationPairs(
        np.repeat(np.arange(2000), 10),
        np.tile([1.0] + [0.0] * 9, 2000),
        random.integers(0, 2**63, 20_000).astype(np.uint64),
    )
    by_chance = np.mean([1 / rank for rank in range(1, 11)])
    assert ranking_metrics(pairs, np.zeros(20_000), min_label=0)["MRR@10"] == pytest.approx(by_chance, abs=0.03)


def test_query_indices_may_have_gaps() -> None:
    pairs = make_pairs([1, 0, 0, 1], query=[7, 7, 3, 3])
    values = per_query_metrics(pairs, np.array([2.0, 1.0, 2.0, 1.0]), min_label=0)["MRR@10"]
    assert values.tolist() == [0.5, 1.0]


def test_a_hundred_thousand_pairs_take_seconds() -> None:
    pairs, scores = random_pairs(5000, 20, [0, 1, 2, 3])
    begun = time.perf_counter()
    ranking_metrics(pairs, scores, min_label=0)
    assert time.perf_counter() - begun < 10  # half a second alone on a core


def test_bad_input_is_named() -> None:
    nothing = EvaluationPairs(np.zeros(0, int), np.zeros(0), np.zeros(0, np.uint64))
    with pytest.raises(InputError, match="no pairs"):
        ranking_metrics(nothing, np.zeros(0), min_label=0)
    with pytest.raises(InputError, match=r"recall_at holds \[0\]"):
        ranking_metrics(make_pairs([1]), np.zeros(1), min_label=0, recall_at=[0, 10])
    for above in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match=f"relevant_above is {above}; expected a number, at least 0"):
            ranking_metrics(make_pairs([1]), np.zeros(1), min_label=0, relevant_above=above)
    with pytest.raises(InputError, match="NaN"):
        ranking_metrics(make_pairs([1]), np.array([np.nan]), min_label=0)


def test_table_is_aligned() -> None:
    table = metrics_table({"random": {"MAP": 0.25, "Recall@10": 1.0}, "fine-tuned": {"MAP": 0.5}})
    assert table == ("               MAP  Recall@10\nrandom      0.2500     1.0000\nfine-tuned  0.5000          -")


def test_bootstrap_interval_is_that_of_a_mean() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = bootstrap_interval(differences, seed=1)
    error = differences.std() / math.sqrt(400)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
    assert (low, high) == bootstrap_interval(differences, seed=1)
    assert bootstrap_interval(np.full(5, 0.25), seed=0) == (0.25, 0.25)
    with pytest.raises(InputError, match="expected a number for each query"):
        bootstrap_interval(np.array([0.1, np.nan]), seed=0)
