"""Gains begin at min_label: in the metrics, in the loss that follows them, and in evaluations of JSONL and of TREC judgements."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_metrics import make_pairs

import rankery
from rankery import InputError
from rankery.evaluation.metrics import ranking_metrics
from rankery.evaluation.runs import gains
from rankery.losses import lambda_rank

SCORES = np.array([3.0, 2.0, 1.0, 0.0])


def test_labels_from_1_are_worth_what_labels_from_0_are() -> None:
    from_1, from_0 = make_pairs([1, 2, 5, 1]), make_pairs([0, 1, 4, 0])
    expected = ranking_metrics(from_0, SCORES, min_label=0)
    assert ranking_metrics(from_1, SCORES, min_label=1) == expected
    assert expected["nDCG@10"] == pytest.approx((1 / np.log2(3) + 4 / np.log2(4)) / (4 + 1 / np.log2(3)))


@pytest.mark.parametrize(
    ("labels", "min_label", "expected", "is_soft"),
    [
        ([0, 1, 1], 0.5, [0, 10_000, 10_000], False),  # grades above a threshold
        ([0.5, 1.5, 3.5], 0.5, [0, 1, 3], False),  # whole steps
        ([0.2, 0.6, 1.0], 0.2, [0, 5_000, 10_000], True),
    ],
)
def test_a_min_label_that_is_no_integer(
    labels: list[float], min_label: float, expected: list[int], is_soft: bool
) -> None:
    judged = gains(make_pairs(labels), min_label)
    assert (judged.gain.tolist(), judged.is_soft) == (expected, is_soft)


def test_lambda_rank_weighs_what_a_swap_changes_in_the_metric() -> None:
    """The loss is the mean over ordered pairs of softplus(-(s_i - s_j)) times the change of nDCG: here by swapping in the metric."""
    labels, low, high = [1.0, 2.0, 5.0, 1.0], 1.0, 5.0
    pairs = make_pairs(labels)

    def ndcg(scores: np.ndarray) -> float:
        return ranking_metrics(pairs, scores, min_label=low)["nDCG@10"]

    terms = []
    for i, j in itertools.permutations(range(4), 2):
        if labels[i] > labels[j]:
            swapped = SCORES.copy()
            swapped[[i, j]] = swapped[[j, i]]
            terms.append(abs(ndcg(swapped) - ndcg(SCORES)) * np.log1p(np.exp(-(SCORES[i] - SCORES[j]))))
    targets = (torch.tensor(labels) - low) / (high - low)
    total, count = lambda_rank(torch.from_numpy(SCORES), targets, [4])
    assert float(total / count) == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same judgements, labels 1 to 5, as JSONL and as TREC files, with a run."""
    folder = tmp_path_factory.mktemp("graded")
    rows, qrels, run = [], [], []
    for query, labels in enumerate([[1, 2, 5], [4, 1, 2]]):
        rows.append({"query": f"q{query}", "pos": [f"{query} {i}" for i in range(3)], "pos_scores": labels})
        for i, label in enumerate(labels):
            qrels.append(f"q{query} 0 d{3 * query + i} {label}\n")
            run.append(f"q{query} Q0 d{3 * query + i} {i + 1} {3 - i} x\n")
    files = {"data": "".join(json.dumps(row) + "\n" for row in rows), "qrels": "".join(qrels), "run": "".join(run)}
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in files}


MEASURES = ["nDCG@10", "AP", "P(rel=4)@1", "P(rel=4)@3"]


def test_jsonl_and_judgements_alike(graded: dict[str, Path], tmp_path: Path) -> None:
    jsonl = rankery.evaluate(runs=graded["run"], data=graded["data"], min_label=1, measures=MEASURES)
    out = tmp_path / "out"
    trec = rankery.evaluate(runs=graded["run"], qrels=graded["qrels"], min_label=1, measures=MEASURES, output=out)
    expected = ranking_metrics(
        make_pairs([1, 2, 5, 4, 1, 2], query=[0, 0, 0, 1, 1, 1]), np.tile([3.0, 2.0, 1.0], 2), min_label=1
    )
    for found in (jsonl, trec):
        metrics = found.systems["run"].metrics
        assert metrics["nDCG@10"] == pytest.approx(expected["nDCG@10"])
        assert metrics["AP"] == pytest.approx(expected["MAP"])
        assert (metrics["P(rel=4)@1"], metrics["P(rel=4)@3"]) == (0.5, pytest.approx(1 / 3))  # labels from 4: 5 and 4
    # What is written gives other tools the same numbers.
    again = rankery.evaluate(runs=graded["run"], qrels=out / "qrels.trec", measures=MEASURES[:2])
    assert again.systems["run"].metrics["nDCG@10"] == metrics["nDCG@10"]
    assert again.systems["run"].metrics["AP"] == metrics["AP"]


def test_a_grade_that_is_no_relevance(graded: dict[str, Path]) -> None:
    with pytest.raises(
        InputError, match=r"P\(rel=1\)@1.*its grade 1 is a label, and relevance begins above min_label, 1"
    ):
        rankery.evaluate(runs=graded["run"], qrels=graded["qrels"], min_label=1, measures="P(rel=1)@1")
