"""Systems of a distillation on the held-out queries: their numbers, and the table of them.

Contract: every system is measured on the same queries; speeds are those of one scoring each, here and now. Cost: one forward pass
a pair. Rejected: speeds that are kept with models, which
would be of other machines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankery.data.records import QueryRecord
from rankery.distilling.students import STUDENTS
from rankery.distilling.teacher import Teacher, combined_logits
from rankery.evaluation.information import orders_nothing
from rankery.evaluation.metrics import bootstrap_interval, metrics_table, per_query_metrics
from rankery.evaluation.runs import pairs_of

KEPT = "nDCG@10"  # the metric that the share kept is told in


@dataclass(frozen=True)
class HeldOut:
    """The queries that systems are compared on, and which of their labels count as relevant."""

    records: Sequence[QueryRecord]
    min_label: float
    relevant_above: float | None

    def by_query(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of scores [P]: name -> value of each query, [Q]."""
        return per_query_metrics(
            pairs_of(self.records), scores, min_label=self.min_label, relevant_above=self.relevant_above
        )


@dataclass(frozen=True)
class Measured:
    """One system on the held-out queries."""

    metrics: Mapping[str, np.ndarray]  # name -> value of each query, [Q]
    parameters: int = 0
    pairs_per_second: float = 0.0
    is_flat: bool = False  # documents of a query have (nearly) one score


def measure(rerankers: Sequence[Teacher], held_out: HeldOut) -> Measured:
    """Quality on the queries, size, and speed of one reranker, or of several together (the first few pairs warm up)."""
    pairs = [(record.query, document) for record in held_out.records for document in record.documents]
    for one in rerankers:
        one.reranker.compute_score(pairs[:32])
    begun = time.perf_counter()
    logits = [one.reranker.compute_score(pairs, show_progress=sys.stderr.isatty()).numpy() for one in rerankers]
    rate = len(pairs) / (time.perf_counter() - begun)
    parameters = sum(parameter.numel() for one in rerankers for parameter in one.reranker.model.parameters())
    scores = combined_logits(rerankers, logits)
    is_flat = orders_nothing(scores, pairs_of(held_out.records).query)
    return Measured(held_out.by_query(scores), parameters, rate, is_flat)


def comparison(rows: Mapping[str, Measured]) -> str:
    """The table, and what it says of the distilled student, as text."""
    means = {
        name: {key: float(np.nanmean(values)) for key, values in row.metrics.items()} for name, row in rows.items()
    }
    lines = [metrics_table(means), ""]
    for name, row in rows.items():
        if row.parameters:
            lines.append(f"{name}: {row.parameters / 1e6:.1f} M parameters, {row.pairs_per_second:.0f} pairs/s here")
        if row.is_flat:
            lines.append(f"{name} orders NOTHING: it gives all documents of a query (nearly) one score")
    labelled, distilled = (rows[name] for name in STUDENTS.values())
    if "teacher" in rows:
        teacher, whole = rows["teacher"], means["teacher"][KEPT]
        share = (
            f"{means[STUDENTS['distilled']][KEPT] / whole:.1%}"
            if whole
            else f"{means[STUDENTS['distilled']][KEPT]:.4f} to 0"
        )
        lines.append(
            f"\nthe distilled student keeps {share} of the teacher's {KEPT}, with 1/{teacher.parameters / distilled.parameters:.1f} "
            f"of its parameters, at {distilled.pairs_per_second / teacher.pairs_per_second:.1f} times its speed"
        )
    for key in (KEPT, "MAP"):
        if key in distilled.metrics:
            difference = distilled.metrics[key] - labelled.metrics[key]
            low, high = bootstrap_interval(difference, 0)
            lines.append(
                f"distilled - labels: {key} {difference.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f} (bootstrap over queries)"
            )
    return "\n".join(lines)


def plain(rows: Mapping[str, Measured]) -> dict[str, Any]:
    return {
        name: {
            "metrics": {key: float(np.nanmean(values)) for key, values in row.metrics.items()},
            "parameters": row.parameters,
            "pairs_per_second": row.pairs_per_second,
        }
        for name, row in rows.items()
    }
