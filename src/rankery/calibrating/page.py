"""What a calibration is worth, as a page: measures, reliability before and after, thresholds with their intervals.

Contract: the figures are those of the text (report.py). Cost: two charts of BINS marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rankery.calibrating.fit import FOLDS
from rankery.calibrating.measures import BINS, BOOTSTRAP, LEVEL, binned
from rankery.calibrating.report import FEW_QUERIES, NAMES, TITLES, Calibrated, Judged, described, interval, judgement
from rankery.report.charts import reliability
from rankery.report.page import Html, Section, facts, join, page, paragraph, table


def calibration_page(model: str, result: Calibrated, judged: Judged) -> str:
    """The whole file."""
    sections = [
        Section("summary", "Summary", join(_facts(result), _measures(result))),
        Section("reliability", "Reliability", _reliability(judged)),
    ]
    if result.thresholds:
        sections.append(Section("thresholds", "Thresholds", _thresholds(result.thresholds)))
    return page(
        f"Calibration of {model}", sections, lead="What a score says of the probability that a document is relevant."
    )


def reliability_diagram(title: str, rows: Mapping[str, np.ndarray], relevant: np.ndarray) -> Html:
    """Probabilities by name, [P] each, against the relevance [P] bool of the same pairs, in BINS bins of equal mass."""
    bins = {name: binned(probabilities, relevant) for name, probabilities in rows.items()}
    marks = {
        name: list(zip(b.probability.tolist(), b.relevant.tolist(), b.count.tolist(), strict=True))
        for name, b in bins.items()
    }
    return reliability(
        title,
        f"{len(relevant):,} pairs in {BINS} bins of equal mass; on the dashed diagonal, probabilities are what they say.",
        marks,
        "mean probability",
        "share that is relevant",
    )


def _facts(result: Calibrated) -> Html:
    return facts(
        [
            ("calibration", described(result)),
            ("data", ", ".join(result.data)),
            ("queries", result.queries),
            ("pairs", result.pairs),
            ("relevant", f"{result.relevant / result.pairs:.1%} (label above {result.relevant_above:g})"),
        ]
    )


def _measures(result: Calibrated) -> Html:
    held, losses = result.held_out, result.log_loss_by_kind
    return join(
        table(
            f"Held-out queries, {FOLDS} folds",
            ["", "log-loss", "Brier", f"ECE ({BINS} bins of equal mass)"],
            [[title, *(held[key][name] for name in ("log_loss", "brier", "ece"))] for key, title in TITLES.items()],
        ),
        *map(paragraph, judgement(held)),
        table(
            "Held-out log-loss of each kind; the lowest was taken",
            ["", "log-loss"],
            [[NAMES[kind], loss] for kind, loss in losses.items()],
        ),
    )


def _reliability(judged: Judged) -> Html:
    rows = {"sigmoid of the score": judged.before, "calibrated": judged.after}
    return reliability_diagram("Before and after, on held-out queries", rows, judged.relevant)


def _thresholds(cuts: Sequence[Mapping[str, Any]]) -> Html:
    rows: list[list[object]] = []
    for cut in cuts:
        wanted = f"{cut['wanted']} {cut['least']:g}"
        if cut["at"] is None:
            rows.append([wanted, f"none: the most is {cut['most']:.3f}", None, None, None, None])
            continue
        for key, where in (("there", "the queries that chose it"), ("held_out", "held out")):
            values = [interval(cut[key][name]) for name in ("precision", "recall")]
            rows.append([wanted, f"{cut['at']:.6g}", f"{cut['pairs']:,} / {cut['queries']:,}", where, *values])
    note = (
        f"Precision and recall over all pairs, with {LEVEL:.0%} intervals ({BOOTSTRAP:,} bootstrap samples of queries). Held out: of "
        "thresholds chosen in the same way without the query that they judge. "
        f"Below {FEW_QUERIES} queries taken, intervals say little."
    )
    head = ["wanted", "threshold", "takes pairs / of queries", "measured on", "precision", "recall"]
    return join(table("Thresholds of the probability", head, rows), paragraph(note, note=True))
