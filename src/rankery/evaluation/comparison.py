"""Systems on the same queries, with their differences and how sure these are.

    scores, and runs that are files already --run files--> values of each query --> means, intervals, differences, slices

Contract: every system becomes a TREC run file, and every number comes from such files, so that trec_eval and ir-measures give the
same ones. Cost: about 10 s a million pairs. Rejected: measures from scores in memory, which a run from elsewhere has no part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rankery.data.files import named
from rankery.evaluation.information import judgements_note, orders_nothing
from rankery.evaluation.inputs import Texts
from rankery.evaluation.measures import Measured, measure_runs
from rankery.evaluation.metrics import kendall
from rankery.evaluation.question import Given, Question, same
from rankery.evaluation.runs import gains, write_qrels, write_run
from rankery.evaluation.significance import bootstrap_intervals, holm, randomisation_p
from rankery.evaluation.slices import Slice, dimensions_of, slices
from rankery.evaluation.systems import Scored, System
from rankery.evaluation.trec import TrecFile


@dataclass(frozen=True)
class Difference:
    """A system's mean less the reference's, of one measure."""

    mean: float
    interval: tuple[float, float]  # 95%, by bootstrap over queries
    p: float  # of a paired randomisation test
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
    flat: list[int] = field(default_factory=list)  # systems that give documents of a query (nearly) one score
    judgements_note: str = ""  # what these judgements cannot say
    texts: Texts = field(default_factory=Texts)
    qrels: TrecFile | None = None
    runs: list[TrecFile] = field(default_factory=list)
    judgements_given: bool = False  # the qrels are the user's own file
    min_label: float = 0.0  # the label with relevance 0 in the qrels

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


def compare(
    systems: Sequence[System],
    names: list[str],
    question: Question,
    given: Given,
    scored: dict[int, Scored],
    folder: Path,
) -> Comparison:
    """Writes what is no file yet into `folder`, and measures."""
    level, measures = given.level, given.measures
    qrels = given.qrels
    is_own = qrels is not None and not given.min_label
    if not is_own:
        _write_judgements(folder / "qrels.trec", given)
        qrels = TrecFile.qrels(folder / "qrels.trec")
    assert qrels is not None
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
        texts=given.texts, qrels=qrels, runs=runs, judgements_given=is_own, min_label=given.min_label,
    )  # fmt: skip
    result.flat = [i for i in range(len(systems)) if _is_flat(i, measured, given, scored)]
    result.judgements_note = judgements_note(
        measured.candidates, measured.hits, measured.varied, _relevant_above(question, given) if level else None
    )
    result.unanswered = int((measured.relevant == 0).sum()) if level else 0
    if given.candidates is not None:
        result.kendall = _kendalls(question, given, scored)
    cut = _cut_queries(result, given) if level and given.candidates is not None else {}
    stage = next((i for i, s in enumerate(systems) if s.kind == "run"), None)
    stage = next((i for i, s in enumerate(systems) if s.value == "bm25"), None) if stage is None else stage
    places = {} if stage is None else {names[stage]: measured.place[stage]}
    result.slices = slices(dimensions_of(measured, runs[0], given.texts, cut, places))
    return result


def _is_flat(system: int, measured: Measured, given: Given, scored: dict[int, Scored]) -> bool:
    """Whether a system orders nothing; of a run from elsewhere only equal scores say so, whose scale may be any."""
    if system in scored:
        assert given.candidates is not None
        return orders_nothing(scored[system].scores, given.candidates.pairs.query)
    return bool(measured.flat[system])


def _relevant_above(question: Question, given: Given) -> float:
    return given.min_label if question.relevant_above is None else question.relevant_above


def _write_judgements(file: Path, given: Given) -> None:
    """TREC judgements whose relevance begins at min_label: of JSONL, or of the user's own."""
    if given.qrels is None:
        assert given.candidates is not None
        write_qrels(file, given.candidates.pairs, given.min_label)
        return
    with named(file), file.open("w", encoding="utf-8") as lines:
        for query in given.qrels:
            for document, value in given.qrels[query].items():
                lines.write(f"{query} 0 {document} {max(0, int(value - given.min_label))}\n")


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
            differences[i][m] = Difference(float(less[:, j].mean()), (low, high), p[j], corrected)
    return intervals, differences


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
    gain = gains(pairs, given.min_label).gain if given.qrels is None else pairs.label - given.min_label
    found = {}
    for i, scored in result.scored.items():
        if scored.cut is not None:
            rows = np.unique(pairs.query[scored.cut & (gain >= result.level)])
            found[result.names[i]] = {names.queries[query] for query in rows.tolist()}
    return found
