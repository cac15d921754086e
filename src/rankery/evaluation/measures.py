"""Measures by ir-measures' names, on TREC files, a query at a time: what every run is worth for every query.

    wanted(["nDCG@10", "RR@10", "P(rel=2)@5"]) + qrels + runs -> values [runs, measures, queries]

Contract: the numbers are ir-measures' on the same files (and so mostly trec_eval's); a query that a run lacks counts 0, one that
qrels lack is left out. Cost: about 8 s for a run of a million lines; memory grows with the number of queries. Rejected: whole
runs in memory, and formulas of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Any

import numpy as np

from rankery.data.files import mix, text_hash
from rankery.errors import InputError, cut, shown
from rankery.evaluation.trec import MOST_RELEVANT, TrecFile

AT_ONCE = 2_000_000  # bytes of lines, of judgements and of a run, that trec_eval is given at once
MOST_SAMPLED = 200_000  # pairs of a run that distributions are drawn from
MOST_DOCUMENTS = 2**31 - 1  # that trec_eval counts
# What ir-measures raises for names that it, or a program that it calls, does not know.
UNKNOWN = (
    *(
        ValueError,
        NameError,
        KeyError,
        TypeError,
        AttributeError,
        AssertionError,
        RuntimeError,
        ArithmeticError,
        StopIteration,
    ),
    *(OSError, RecursionError, SyntaxError, MemoryError, SubprocessError),
)
DEFAULT = ("nDCG@10", "MRR@10", "MAP")


@dataclass
class Measured:
    """Runs beside judgements; S runs, M measures, Q queries in the order of the qrels file."""

    queries: list[str]
    values: np.ndarray  # [S, M, Q]
    candidates: np.ndarray  # [S, Q] documents in the run
    relevant: np.ndarray  # [Q] documents judged relevant
    place: np.ndarray  # [S, Q] of the best relevant document in the run; NaN where it has none
    tied: np.ndarray  # [S] queries with scores that are equal in float32, as trec_eval reads them
    sample: list[tuple[np.ndarray, np.ndarray]]  # of each run (scores, whether relevant) of some pairs
    hits: np.ndarray  # [S, Q] relevant documents in the run
    varied: np.ndarray  # [S, Q] whether its documents differ in relevance, so that their order matters
    flat: np.ndarray  # [S] whether all queries with several documents have one score, in float32


def wanted(names: Sequence[str], level: int = 1, min_label: float = 0.0) -> dict[str, Any]:
    """Name -> ir-measures' measure; documents count as relevant from `level` on, where a name does not say its own `rel`.

    Args:
        names: by ir-measures.
        level: the lowest relevance in the qrels that counts.
        min_label: the label that has relevance 0 there; a name's own `rel` is a label.

    Raises:
        InputError: names that ir-measures does not know, measures that are no mean over queries, a `rel` that no relevance is.
    """
    import ir_measures
    from ir_measures import MeanAgg

    found: dict[str, Any] = {}
    problems: list[str] = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            if not isinstance(measure.aggregator(), MeanAgg):
                raise ValueError("a count, which has no mean over queries")
            if "rel" in measure.SUPPORTED_PARAMS and "rel" not in measure.params and level != 1:
                measure = measure(rel=level)
            elif "rel" in measure.params and min_label:
                measure = measure(rel=_above(measure.params["rel"], min_label))
            _check_numbers(measure)
            tried = ir_measures.evaluator([measure], {"q": {"d": 1, "e": 0}})
            next(iter(tried.iter_calc({"q": {"d": 1.0, "e": 0.5}})))  # by another program, which may not be there
            found[name] = measure
        except UNKNOWN as error:
            why = cut(" ".join(str(error).split()))
            problems.append(
                f"measure {shown(name)}: {why}; expected names such as nDCG@10, RR@10, AP, P(rel=2)@5 or R@20"
            )
    if problems:
        raise InputError(problems)
    return found


def _check_numbers(measure: Any) -> None:
    """
    Raises:
        ValueError: numbers that trec_eval would end the process at.
    """
    cutoff, recall = measure.params.get("cutoff"), measure.params.get("recall")
    gains = measure.params.get("gains") or {}
    if isinstance(cutoff, int | float) and not 1 <= cutoff <= MOST_DOCUMENTS:
        raise ValueError(f"its cutoff is {cutoff}; expected 1 or more")
    if isinstance(recall, int | float) and not 0 <= recall <= 1:
        raise ValueError(f"its recall is {recall}; expected 0 to 1")
    if not all(isinstance(gain, int) and abs(gain) < MOST_RELEVANT for pair in gains.items() for gain in pair):
        raise ValueError(f"its gains are {shown(gains)}; expected whole numbers")


def _above(grade: int, min_label: float) -> int:
    """The relevance, counted from `min_label`, of a measure's own grade."""
    if min_label != round(min_label) or grade <= min_label:
        raise ValueError(f"its grade {grade} is a label, and relevance begins above min_label, {min_label:g}")
    return grade - round(min_label)


def measure_runs(qrels: TrecFile, runs: Sequence[TrecFile], measures: dict[str, Any], level: int = 1) -> Measured:
    """Every measure of every run for every query of the qrels."""
    import ir_measures

    queries = list(qrels)
    place = {query: i for i, query in enumerate(queries)}
    columns: dict[Any, list[int]] = {}  # two names may mean one measure
    for i, measure in enumerate(measures.values()):
        columns.setdefault(measure, []).append(i)
    values = np.zeros((len(runs), len(measures), len(queries)))
    candidates: np.ndarray = np.zeros((len(runs), len(queries)), np.int64)
    relevant: np.ndarray = np.zeros(len(queries), np.int64)
    places = np.full((len(runs), len(queries)), np.nan)
    hits, varied = np.zeros_like(candidates), np.zeros(candidates.shape, bool)
    flat: np.ndarray = np.ones(len(runs), bool)
    tied: np.ndarray = np.zeros(len(runs), np.int64)
    samples = [_Sample(run.lines) for run in runs]
    for judged in _chunks(qrels, runs):
        evaluator = ir_measures.evaluator(list(columns), judged)
        for query, judgements in judged.items():
            relevant[place[query]] = sum(value >= level for value in judgements.values())
        for i, run in enumerate(runs):
            ranked = {query: run[query] for query in judged if query in run}
            for metric in evaluator.iter_calc(ranked):
                values[i, columns[metric.measure], place[metric.query_id]] = metric.value
            for query, scores in ranked.items():
                candidates[i, place[query]] = len(scores)
                places[i, place[query]] = _place(scores, judged[query], level)
                grades = [judged[query].get(document, 0) for document in scores]
                hits[i, place[query]] = sum(grade >= level for grade in grades)
                varied[i, place[query]] = len({max(grade, 0) for grade in grades}) > 1
                single = _single(scores)
                tied[i] += single < len(scores)
                flat[i] &= single == 1
                samples[i].add(query, scores, judged[query], level)
    flat &= candidates.max(1, initial=0) > 1
    sampled = [sample.arrays() for sample in samples]
    return Measured(queries, values, candidates, relevant, places, tied, sampled, hits, varied, flat)


def _chunks(qrels: TrecFile, runs: Sequence[TrecFile]) -> Iterator[dict[str, dict[str, int]]]:
    """Judgements of some queries at a time; few may be judged of what a run has."""
    chunk: dict[str, dict[str, int]] = {}
    size = 0
    for query in qrels:
        chunk[query] = {document: int(value) for document, value in qrels[query].items()}
        size += qrels.size(query) + max(run.size(query) for run in runs)
        if size >= AT_ONCE:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk


def _single(scores: dict[str, float]) -> int:
    """How many scores are different."""
    with np.errstate(over="ignore"):
        return len(np.unique(np.array(list(scores.values())).astype(np.float32)))


def _place(scores: dict[str, float], judged: dict[str, int], level: int) -> float:
    """Place of the best relevant document, ties as trec_eval breaks them."""
    best = max(((score, name) for name, score in scores.items() if judged.get(name, 0) >= level), default=None)
    return float("nan") if best is None else float(sum((score, name) >= best for name, score in scores.items()))


class _Sample:
    """Pairs of whole queries, chosen by a hash of their names: all of a small run, about MOST_SAMPLED of a large one."""

    def __init__(self, lines: int):
        self.share = min(1.0, MOST_SAMPLED / max(lines, 1))
        self.scores: list[float] = []
        self.relevant: list[bool] = []

    def add(self, query: str, scores: dict[str, float], judged: dict[str, int], level: int) -> None:
        if self.share == 1 or float(mix(np.array([text_hash(query)], np.uint64), 0)[0]) < self.share * 2.0**64:
            self.scores += scores.values()
            self.relevant += [judged.get(document, 0) >= level for document in scores]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.scores, np.float64), np.array(self.relevant, bool)
