"""`rankery evaluate`: models, baselines and runs on the same queries, with their differences and how sure these are.

    JSONL, or TREC judgements + runs --candidates--> scores --run files--> values of each query --> table, files, page

Contract: every system becomes a TREC run file, and every number comes from such files, so that trec_eval and ir-measures give the
same ones. Nothing is written before all input has been read. Cost: scoring; beside it about 10 s a million pairs. Rejected: measures
from scores in memory, which a run from elsewhere has no part in.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankery.errors import InputError
from rankery.evaluate.inputs import Texts
from rankery.evaluate.measures import DEFAULT, Measured, measure_runs, wanted
from rankery.evaluate.metrics import has_relevant, kendall, relevance_level
from rankery.evaluate.question import Given, Question, check_question, read_input, same
from rankery.evaluate.runs import gains, write_qrels, write_run
from rankery.evaluate.significance import bootstrap_intervals, holm, randomisation_p
from rankery.evaluate.slices import Slice, dimensions_of, slices
from rankery.evaluate.systems import Scored, System, names_of, score_system
from rankery.evaluate.trec import TrecFile
from rankery.processes import Group


@dataclass(frozen=True)
class Difference:
    """A system's mean less the reference's, of one measure."""

    mean: float
    low: float
    high: float
    p: float
    p_holm: float  # corrected for the number of systems


@dataclass
class Comparison:
    """S systems beside each other on Q queries; rows are systems, columns measures."""

    names: list[str]
    systems: list[System]
    reference: int
    measures: list[str]
    measured: Measured
    intervals: np.ndarray  # [S, M, 2] of means
    differences: list[list[Difference | None]]  # [S][M]; None for the reference itself
    level: int  # relevance from which on documents count as relevant; 0: none do, labels are scores
    scored: dict[int, Scored] = field(default_factory=dict)  # of systems that are no run
    kendall: dict[int, float] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    unanswered: int = 0  # queries without a relevant document
    texts: Texts = field(default_factory=Texts)
    qrels: TrecFile | None = None
    runs: list[TrecFile] = field(default_factory=list)
    judgements_given: bool = False  # the qrels are the user's own file

    def means(self) -> dict[str, dict[str, float]]:
        """System -> measure -> mean over queries."""
        found = {}
        for i, name in enumerate(self.names):
            row = dict(zip(self.measures, self.measured.values[i].mean(1).tolist(), strict=True))
            found[name] = row | ({"Kendall": self.kendall[i]} if i in self.kendall else {})
        return found

    def pairs_per_second(self, system: int) -> float | None:
        """Speed of scoring; None for runs, which others scored, and for the random order, which nobody waits for."""
        scored = self.scored.get(system)
        if scored is None or self.systems[system].value == "random":
            return None
        return len(scored.scores) / max(scored.seconds, 1e-9)


def evaluate_systems(
    systems: Sequence[System],
    question: Question,
    *,
    output: Path | None = None,
    group: Group | None = None,
    **options: Any,
) -> str:
    """Measures systems; returns the table, on the first process of a group, and writes files to `output` where that is given.

    `output` then holds metrics.json, queries.csv, report.html, qrels.trec (not where judgements were given) and run.trec; with several
    systems, a file in runs/ for each that is no run.

    Args:
        systems: what to compare; differences are to the first, or to `question.reference`.
        question: the data and the measures.
        output: a folder; files of an earlier call there are replaced.
        group: the processes that share the scoring.
        options: device, dtype, prompt, batch_size, max_length of models.

    Raises:
        InputError: input that cannot be used, all that can be seen before models are opened at once.
    """
    from rankery.evaluate.output import check_output, comparison_text, write_output

    group = group or Group()
    names = names_of(systems)
    try:
        check_question(systems, question, names)
        if output is not None and group.process == 0:
            check_output(output, systems, names, question)
        given = read_input(systems, question)
    except InputError as error:
        raise InputError(error.problems, shared=True) from None  # all processes see the same
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scored = {
            i: score_system(system, given.candidates, group, seed=question.seed, options=options)
            for i, system in enumerate(systems)
            if system.kind != "run" and given.candidates is not None
        }
        if group.process:
            return ""
        result = compare(systems, names, question, given, scored, folder)
        if output is not None:
            write_output(output, result)
        return comparison_text(result)


def compare(
    systems: Sequence[System],
    names: list[str],
    question: Question,
    given: Given,
    scored: dict[int, Scored],
    folder: Path,
) -> Comparison:
    """Writes what is no file yet into `folder`, and measures."""
    level = _level(question, given)
    measures = wanted(_measure_names(question, level), max(level, 1))
    qrels = given.qrels
    if qrels is None:
        assert given.candidates is not None
        write_qrels(folder / "qrels.trec", given.candidates.pairs, given.min_label)
        qrels = TrecFile.qrels(folder / "qrels.trec")
    runs = []
    for i in range(len(systems)):
        if i in scored:
            assert given.candidates is not None
            path = folder / f"{i}.trec"
            write_run(path, given.candidates.pairs, scored[i].scores, question.seed, names=given.candidates.names)
            given.runs[i] = TrecFile.run(path)
        runs.append(given.runs[i])
    measured = measure_runs(qrels, runs, measures, level or 2**62)
    reference = 0 if question.reference is None else same(question.reference, systems, names)[0]
    intervals, differences = _statistics(measured.values, reference, question.seed)
    result = Comparison(
        names, list(systems), reference, list(measures), measured, intervals, differences, level, scored,
        texts=given.texts, qrels=qrels, runs=runs, judgements_given=given.qrels is not None,
    )  # fmt: skip
    result.unanswered = int((measured.relevant == 0).sum()) if level else 0
    if given.candidates is not None:
        result.kendall = _kendalls(question, given, scored)
    cut = _cut_queries(result, given) if level and given.candidates is not None else {}
    result.slices = slices(dimensions_of(measured, runs[0], given.texts, cut))
    return result


def _statistics(values: np.ndarray, reference: int, seed: int) -> tuple[np.ndarray, list[list[Difference | None]]]:
    """Intervals [S, M, 2] of means and differences [S][M] to the reference, of values [S, M, Q]."""
    systems, measures, _ = values.shape
    intervals = np.zeros((systems, measures, 2))
    differences: list[list[Difference | None]] = [[None] * measures for _ in range(systems)]
    others = [i for i in range(systems) if i != reference]
    for m in range(measures):
        columns = values[:, m].T  # [Q, S]
        less = columns[:, others] - columns[:, [reference]]
        found = bootstrap_intervals(np.concatenate([columns, less], 1), seed)
        intervals[:, m] = found[:systems]
        p = [randomisation_p(less[:, j], seed) for j in range(len(others))]
        for j, (i, corrected) in enumerate(zip(others, holm(p), strict=True)):
            low, high = found[systems + j].tolist()
            differences[i][m] = Difference(float(less[:, j].mean()), low, high, p[j], corrected)
    return intervals, differences


def _level(question: Question, given: Given) -> int:
    """The lowest relevance in the qrels that counts as relevant; 0 where labels are scores and no threshold is given."""
    if given.qrels is not None or given.candidates is None:
        return 1 if question.relevant_above is None else math.floor(question.relevant_above) + 1
    judged = gains(given.candidates.pairs, given.min_label)
    if not has_relevant(judged, question.relevant_above):
        return 0
    above = question.relevant_above
    return relevance_level(judged, given.min_label if above is None else above)


def _measure_names(question: Question, level: int) -> list[str]:
    if question.measures:
        return list(question.measures)
    recall = [f"Recall@{k}" for k in question.recall_at]
    return [*DEFAULT, *recall] if level else list(DEFAULT[:1])


def _kendalls(question: Question, given: Given, scored: dict[int, Scored]) -> dict[int, float]:
    """Mean rank correlation with labels that are scores, where no measures are asked for by name."""
    assert given.candidates is not None
    pairs = given.candidates.pairs
    if question.measures or given.qrels is not None or not gains(pairs, given.min_label).is_soft:
        return {}
    _, query = np.unique(pairs.query, return_inverse=True)
    values = {i: kendall(query, found.scores, pairs.label) for i, found in scored.items()}
    return {i: float(np.nanmean(v)) for i, v in values.items() if not np.isnan(v).all()}


def _cut_queries(result: Comparison, given: Given) -> dict[str, set[str]]:
    """System -> queries of which it cuts a relevant document."""
    assert given.candidates is not None
    pairs, names = given.candidates.pairs, given.candidates.names
    gain = gains(pairs, given.min_label).gain if given.qrels is None else pairs.label
    found = {}
    for i, scored in result.scored.items():
        if scored.cut is not None:
            rows = np.unique(pairs.query[scored.cut & (gain >= result.level)])
            found[result.names[i]] = {names.queries[query] for query in rows.tolist()}
    return found
