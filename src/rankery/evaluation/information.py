"""Whether numbers say anything: scores that order nothing, and judgements for which every order is worth the same.

Contract: pure functions. A metric is measured for the best order of the labels and for the worst; where both are equal for every
query, no model can change it. Cost: two measurements of FIRST_QUERIES queries, of all only where these say nothing. Rejected: a
rule for each metric (one candidate, labels all equal, fewer documents than a cut-off, no relevant one), a list that would have to
grow with the metrics.

Shapes: P pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rankery.evaluation.metrics import per_query_metrics
from rankery.evaluation.runs import EvaluationPairs

FIRST_QUERIES = 1_000
NEARLY = 1e-3  # a spread of scores below it orders nothing: see docs/decisions.md


def orders_nothing(scores: np.ndarray, query: np.ndarray) -> bool:
    """Whether documents of one query have (nearly) one score, in 19 of 20 queries; without two documents of any query, all pairs.

    Nearly: they are less than NEARLY apart.

    Args:
        scores: [P] what documents are ranked by.
        query: [P] index of the query.
    """
    spreads = _spreads(np.asarray(scores, np.float64), np.asarray(query))
    return len(spreads) > 0 and float(np.quantile(spreads, 0.95)) < NEARLY


def _spreads(scores: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Highest less lowest score of each query with several documents; of all pairs together where no query has several."""
    order = np.argsort(query, kind="stable")
    starts = np.flatnonzero(np.diff(query[order], prepend=-1)) if len(order) else np.zeros(0, np.int64)
    sizes = np.diff(starts, append=len(order))
    if not (sizes > 1).any():
        return np.ptp(scores, keepdims=True) if len(scores) > 1 else np.zeros(0)
    high, low = (function.reduceat(scores[order], starts) for function in (np.maximum, np.minimum))
    return (high - low)[sizes > 1]


def constant_value(pairs: EvaluationPairs, metric: str, **options: Any) -> float | None:
    """The value of a metric that no order of the documents changes; None: some order does. `options` are those of
    `per_query_metrics`."""
    queries = np.unique(pairs.query)
    if len(queries) > FIRST_QUERIES:
        first = pairs.query < queries[FIRST_QUERIES]
        some = EvaluationPairs(pairs.query[first], pairs.label[first], pairs.key[first])
        if constant_value(some, metric, **options) is None:
            return None
    labels = np.asarray(pairs.label, np.float64)
    best, worst = (per_query_metrics(pairs, scores, **options)[metric] for scores in (labels, -labels))
    return float(np.nanmean(best)) if np.array_equal(best, worst, equal_nan=True) else None


def why_constant(pairs: EvaluationPairs, relevant_above: float) -> str:
    """What the judgements lack for an order of documents to matter, and the way out."""
    _, query, sizes = np.unique(pairs.query, return_inverse=True, return_counts=True)
    relevant = np.bincount(query, np.asarray(pairs.label) > relevant_above)
    return _lacks(sizes, relevant, relevant_above) or "no query has enough documents for it"


def _lacks(sizes: np.ndarray, relevant: np.ndarray, relevant_above: float) -> str:
    """Why no query has both relevant and other documents, of documents and relevant ones of each; empty where some have."""
    others = f"set min_label or relevant_above, which is {relevant_above:g}"
    if sizes.max(initial=0) <= 1:
        return "every query has one document; give each its candidates"
    if (relevant == sizes).all():
        return f"every document has a label above {relevant_above:g} and is relevant; {others}, or add documents that are not"
    if not relevant.any():
        return f"no document has a label above {relevant_above:g} and is relevant; {others}, or add relevant ones"
    if ((relevant == 0) | (relevant == sizes)).all():
        return "no query has both relevant and other documents; give each its candidates"
    return ""


def judgements_note(
    candidates: np.ndarray, relevant: np.ndarray, varied: np.ndarray, relevant_above: float | None
) -> str:
    """What measures cannot say of any system; empty where they can.

    Args:
        candidates: [S, Q] documents of each query in each run.
        relevant: [S, Q] of these, the relevant ones.
        varied: [S, Q] whether they have different labels.
        relevant_above: labels above it are relevant; None: labels are scores, and nothing is.
    """
    queries = candidates.shape[1]
    matter = int(varied.any(0).sum())
    widest = candidates.argmax(0), np.arange(queries)
    why = _lacks(candidates[widest], relevant[widest], 0.0 if relevant_above is None else relevant_above)
    if not matter:
        why = why if relevant_above is not None else "no query has documents with different labels"
        return f"these numbers say nothing of any system, since every order of the documents is worth the same: {why}"
    if relevant_above is not None and why:
        return f"measures of relevant documents (RR, AP, R, P) say nothing of any system: {why}"
    if matter < queries / 2:
        return f"only {matter:,} of {queries:,} queries have documents with different labels; the others count the same whatever the order"
    return ""
