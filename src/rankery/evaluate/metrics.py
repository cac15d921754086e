"""Ranking metrics, computed by ir-measures (trec_eval's code) on runs with distinct scores.

Contract: graded labels are raw gains (raised when some are negative); MAP, MRR and Recall count grades above `min_label`.
Soft scores give nDCG with the score as gain, and Kendall's tau-b. A query without any relevant document counts 0 in every
metric, as in trec_eval. Rejected: our own formulas for what trec_eval has defined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rankery.evaluate.runs import EvaluationPairs, gains, ranked


def ranking_metrics(
    pairs: EvaluationPairs,
    scores: np.ndarray,
    *,
    min_label: float = 0.0,
    recall_at: Sequence[int] = (10,),
    seed: int = 42,
    relevant_above: float | None = None,
) -> dict[str, float]:
    """Means over queries: "nDCG@10", "MRR@10", "MAP", "Recall@k"; for soft scores "nDCG@10" and "Kendall".

    Args:
        pairs: judged pairs.
        scores: [pairs] what documents are ranked by.
        min_label: the label of what is not relevant.
        recall_at: cut-offs of Recall.
        seed: breaks ties.
        relevant_above: grades above it are relevant; None: min_label.
    """
    table = per_query_metrics(
        pairs, scores, min_label=min_label, recall_at=recall_at, seed=seed, relevant_above=relevant_above
    )
    return {name: float(np.nanmean(values)) if not np.isnan(values).all() else 0.0 for name, values in table.items()}


def per_query_metrics(
    pairs: EvaluationPairs,
    scores: np.ndarray,
    *,
    min_label: float = 0.0,
    recall_at: Sequence[int] = (10,),
    seed: int = 42,
    relevant_above: float | None = None,
) -> dict[str, np.ndarray]:
    """Each metric's value for every query, [queries] in order of query index; NaN where Kendall is not defined."""
    import ir_measures
    from ir_measures import AP, RR, R, nDCG

    whole, soft = gains(pairs.label)
    measures = {"nDCG@10": nDCG @ 10}
    if not soft:
        lowest = min(0.0, float(np.min(pairs.label, initial=0.0)))
        threshold = (min_label if relevant_above is None else relevant_above) - lowest
        relevant = int(np.floor(threshold)) + 1
        measures |= {"MRR@10": RR(rel=relevant) @ 10, "MAP": AP(rel=relevant)}
        measures |= {f"Recall@{k}": R(rel=relevant) @ k for k in recall_at}
    order, values = ranked(pairs, scores, seed)
    run: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for pair, value in zip(order.tolist(), values.tolist(), strict=True):
        name = str(pairs.query[pair])
        run.setdefault(name, {})[str(pair)] = value
        qrels.setdefault(name, {})[str(pair)] = int(whole[pair])
    names = {name: i for i, name in enumerate(qrels)}  # `ranked` goes by query: in order of index
    table = {name: np.zeros(len(names)) for name in measures}
    by_measure = {str(measure): name for name, measure in measures.items()}
    for result in ir_measures.iter_calc(list(measures.values()), qrels, run):
        table[by_measure[str(result.measure)]][names[result.query_id]] = result.value
    if soft:
        table["Kendall"] = _kendall(pairs, np.asarray(scores))
    return table


def _kendall(pairs: EvaluationPairs, scores: np.ndarray) -> np.ndarray:
    """Kendall's tau-b (Kendall 1945) of scores and labels within each query."""
    from scipy.stats import kendalltau

    order = np.argsort(pairs.query, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(pairs.query[order])) + 1)
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                kendalltau(pairs.label[g], scores[g]).statistic if len(np.unique(pairs.label[g])) > 1 else np.nan
                for g in groups
            ]
        )


def bootstrap_interval(
    differences: np.ndarray, seed: int, samples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over queries (Efron 1979); differences is [queries]."""
    random = np.random.Generator(np.random.PCG64(seed))
    means = np.array([random.choice(differences, len(differences)).mean() for _ in range(samples)])
    interval = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(interval[0]), float(interval[1])


def metrics_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Aligned plain text: a row for each system, a column for each metric."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    wide = max(len(name) for name in rows)
    lines = [" " * wide + "".join(f"  {column:>9}" for column in columns)]
    for name, row in rows.items():
        cells = "".join(
            f"  {row[c]:>{max(9, len(c))}.4f}" if c in row else f"  {'':>{max(9, len(c))}}" for c in columns
        )
        lines.append(f"{name:<{wide}}{cells}")
    return "\n".join(lines)
