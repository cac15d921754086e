"""Scores of an evaluation set -> nDCG@10, MRR@10, MAP, Recall@k and rank correlation, by query and on average.

Contract: the numbers are trec_eval's (through ir-measures) on exactly what `write_run` and `write_qrels` write.
Averages go over every query, as trec_eval's and ir-measures' do: a query without any relevant document counts 0 for
every system; `queries_without_relevant` says how many those are. Cost: one sort and one trec_eval pass, under a second
for 100,000 pairs. Rejected: formulas of our own (one more reading of MAP and nDCG), and leaving out queries without
relevant documents (other tools would print other numbers from the same files).

Shapes: P pairs, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankery.errors import InputError
from rankery.evaluation.runs import EvaluationPairs, Gains, gains, rank
from rankery.evaluation.significance import bootstrap_intervals


def ranking_metrics(
    pairs: EvaluationPairs,
    scores: np.ndarray,
    *,
    min_label: float = 0.0,
    recall_at: Sequence[int] = (10,),
    seed: int = 42,
    relevant_above: float | None = None,
) -> dict[str, float]:
    """Averages over queries of `per_query_metrics`; "Kendall" over the queries where it is defined (absent if nowhere).

    Raises:
        InputError: no pairs, NaN scores, bad `recall_at` or `relevant_above`.
    """
    by_query = per_query_metrics(
        pairs, scores, min_label=min_label, recall_at=recall_at, seed=seed, relevant_above=relevant_above
    )
    return {name: float(np.nanmean(values)) for name, values in by_query.items() if not np.isnan(values).all()}


def per_query_metrics(
    pairs: EvaluationPairs,
    scores: np.ndarray,
    *,
    min_label: float = 0.0,
    recall_at: Sequence[int] = (10,),
    seed: int = 42,
    relevant_above: float | None = None,
) -> dict[str, np.ndarray]:
    """Metric name -> value of each query, [Q] float64, in ascending order of query index.

    "nDCG@10" takes `runs.gains` as linear gains (Järvelin and Kekäläinen 2002, log2 discount). "MRR@10", "MAP" and
    "Recall@k" count a document as relevant if its label is above `relevant_above` (default: `min_label`). Where labels
    are scores (some are no integers), these three appear only if `relevant_above` is given, and "Kendall" is added:
    tau-b (Kendall 1945) of scores and labels, NaN for a query whose labels are all equal, 0 where only the scores are.

    Args:
        pairs: judged pairs.
        scores: [P] what documents are ranked by.
        min_label: the label of what is not relevant; gains begin there.
        recall_at: cut-offs of Recall.
        seed: breaks ties.
        relevant_above: labels above it are relevant; None: `min_label`.

    Raises:
        InputError: no pairs, NaN scores, bad `recall_at` or `relevant_above`.
    """
    import ir_measures
    from ir_measures import AP, RR, R, nDCG

    if not len(pairs):
        raise InputError("the evaluation set has no pairs; expected at least one query with one document")
    if bad := [k for k in recall_at if k < 1]:
        raise InputError(f"recall_at holds {bad}; expected ranks from 1")
    judged = gains(pairs, min_label)
    measures = {nDCG @ 10: "nDCG@10"}
    if has_relevant(judged, relevant_above):
        level = relevance_level(judged, min_label if relevant_above is None else relevant_above)
        measures |= {RR(rel=level): "MRR@10", AP(rel=level): "MAP"}
        measures |= {R(rel=level) @ k: f"Recall@{k}" for k in recall_at}
    queries, query = np.unique(pairs.query, return_inverse=True)
    qrels, run = _as_dicts(query, judged.gain, rank(scores, pairs.key, seed, query))
    values = {name: np.zeros(len(queries)) for name in measures.values()}
    for metric in ir_measures.pytrec_eval.evaluator(list(measures), qrels).iter_calc(run):
        values[measures[metric.measure]][int(metric.query_id)] = metric.value
    if "MRR@10" in values:
        values["MRR@10"][values["MRR@10"] < 1 / 10.5] = 0.0  # trec_eval has no cut-off here; 1/11 is beyond rank 10
    if judged.is_soft:
        values["Kendall"] = kendall(query, np.asarray(scores), np.asarray(pairs.label))
    return values


def metric_names(
    pairs: EvaluationPairs,
    *,
    min_label: float = 0.0,
    recall_at: Sequence[int] = (10,),
    relevant_above: float | None = None,
) -> list[str]:
    """What `ranking_metrics` gives for these pairs, whatever their scores are."""
    judged = gains(pairs, min_label)
    names = ["nDCG@10"]
    if has_relevant(judged, relevant_above):
        names += ["MRR@10", "MAP", *(f"Recall@{k}" for k in recall_at)]
    queries, query = np.unique(pairs.query, return_inverse=True)
    lowest, highest = np.full(len(queries), np.inf), np.full(len(queries), -np.inf)
    np.minimum.at(lowest, query, pairs.label)
    np.maximum.at(highest, query, pairs.label)
    return [*names, "Kendall"] if judged.is_soft and (lowest < highest).any() else names


def queries_without_relevant(
    pairs: EvaluationPairs, *, min_label: float = 0.0, relevant_above: float | None = None
) -> int:
    """How many queries have no label above `relevant_above` (default: `min_label`) and so count 0 for every system."""
    relevant = np.asarray(pairs.label) > (min_label if relevant_above is None else relevant_above)
    return len(np.unique(pairs.query)) - len(np.unique(pairs.query[relevant]))


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Aligned plain text: a row for each system, a column for each metric that any has, four decimals."""
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    table = [["", *names]]
    for system, metrics in rows.items():
        table.append([system, *(f"{metrics[name]:.4f}" if name in metrics else "-" for name in names)])
    return aligned(table)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as plain text: the first column flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *cells in table:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def bootstrap_interval(
    differences: np.ndarray, seed: int, samples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of differences [Q], queries drawn with replacement.

    Raises:
        InputError: no differences, or NaN among them.
    """
    low, high = bootstrap_intervals(np.asarray(differences)[:, None], seed, samples, level)[0]
    return float(low), float(high)


def has_relevant(judged: Gains, relevant_above: float | None) -> bool:
    """Whether documents are relevant or not: of scores, only if a threshold is given."""
    return not judged.is_soft or relevant_above is not None


def relevance_level(judged: Gains, above: float) -> int:
    """The lowest gain that counts as relevant."""
    if not judged.shift <= above < np.inf:
        raise InputError(
            f"relevant_above is {above:g}; expected a number, at least {judged.shift:g}, the label with "
            "gain 0: documents without gain cannot be relevant"
        )
    scaled = (above - judged.shift) * judged.scale
    rounded = judged.is_soft or judged.scale != 1  # scaled gains were rounded the same way
    return (round(scaled) if rounded else int(np.floor(scaled))) + 1


Judgements = dict[str, dict[str, int]]
Scores = dict[str, dict[str, float]]


def _as_dicts(query: np.ndarray, gain: np.ndarray, order: np.ndarray) -> tuple[Judgements, Scores]:
    """(qrels, run) by query and pair; a run's scores are minus the place in `order`, so the order is exact."""
    qrels: Judgements = {str(index): {} for index in range(int(query.max()) + 1)}
    run: Scores = {name: {} for name in qrels}
    sizes = np.bincount(query)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    for pair, index, relevance, position in zip(
        order.tolist(), query[order].tolist(), gain[order].tolist(), place.tolist(), strict=True
    ):
        qrels[str(index)][str(pair)] = relevance
        run[str(index)][str(pair)] = -float(position)
    return qrels, run


def kendall(query: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tau-b of each query's scores and labels, [Q]; queries are numbered from 0, [P]. See `per_query_metrics`."""
    from scipy.stats import kendalltau

    groups = np.split(np.argsort(query, kind="stable"), np.cumsum(np.bincount(query))[:-1])
    values = np.full(len(groups), np.nan)
    for index, pairs in enumerate(groups):
        if len(np.unique(labels[pairs])) > 1:
            # The method is that of the p-value, which nobody reads; "asymptotic" divides by zero for two documents.
            tau = kendalltau(scores[pairs], labels[pairs], method="auto").statistic
            values[index] = 0.0 if np.isnan(tau) else tau
    return values
