"""What a calibration is worth: plain values, which the contract keeps, and text.

Contract: every figure is of queries that the calibration, or threshold, has not seen, but for those that say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankery.calibrating.fit import FOLDS, held_out_losses
from rankery.calibrating.measures import BINS, BOOTSTRAP, LEVEL, measured

TITLES = {"before": "sigmoid of the score", "after": "calibrated", "base_rate": "the same for all: the base rate"}
FEW_QUERIES = 20  # an interval from fewer hardly says anything
NAMES = {"temperature": "temperature scaling", "platt": "Platt scaling", "isotonic": "isotonic regression"}


@dataclass(frozen=True)
class Judged:
    """What a calibration is fitted on, and what it says: arrays of one value a pair, [P]."""

    scores: np.ndarray
    relevant: np.ndarray  # bool
    query: np.ndarray  # the texts
    fold: np.ndarray
    before: np.ndarray  # the probability that a plain sigmoid would claim
    after: np.ndarray  # held out


@dataclass(frozen=True)
class Calibrated:
    """A calibration and what it is worth; as text, what the command prints.

    held_out: log_loss, brier and ece of the plain sigmoid ("before"), of the calibration ("after") and of the same probability for all
        ("base_rate"), on queries that neither a fit nor the choice of its kind has seen.
    thresholds: of each that was wanted {"wanted", "least", "at", "pairs", "queries", "there", "held_out"}: the probability from which on
        documents are taken, how many pairs of how many queries those are, and (value, low, high) of "precision" and "recall" on the
        queries that chose it ("there") and on others ("held_out"). Where none reaches what is wanted, "at" is None, and "most" the
        highest precision.
    """

    kind: str  # temperature, platt or isotonic
    parameters: Mapping[str, Any]
    relevant_above: float  # documents with labels above it were taken as relevant
    data: list[str]  # names of the files
    queries: int
    pairs: int
    relevant: int  # pairs
    held_out: dict[str, dict[str, float]]
    log_loss_by_kind: dict[str, float]  # held out; the kind of the least was taken
    thresholds: list[dict[str, Any]]

    def __str__(self) -> str:
        return report(self)


@dataclass(frozen=True)
class Cut:
    """A threshold for a wanted precision or recall."""

    wanted: str
    least: float
    at: float | None  # chosen on all queries; None: no threshold reaches it
    most: float  # the highest precision of any threshold
    taken: tuple[int, int]  # pairs that it takes, and of how many queries
    there: Mapping[str, tuple[float, float, float]]  # precision and recall of it, with intervals
    held_out: Mapping[
        str, tuple[float, float, float]
    ]  # of thresholds that were chosen without the query that they judge


def summary(judged: Judged, cuts: Sequence[Cut], files: Sequence[str]) -> dict[str, Any]:
    """What a contract keeps about a calibration: the fields of `Calibrated` from `data` on."""
    base: np.ndarray = np.empty(len(judged.relevant))
    for held in np.unique(judged.fold):
        base[judged.fold == held] = judged.relevant[judged.fold != held].mean()
    rows = {"before": judged.before, "after": judged.after, "base_rate": base}
    return {
        "data": list(files),
        "queries": len(np.unique(judged.query)),
        "pairs": len(judged.relevant),
        "relevant": int(judged.relevant.sum()),
        "held_out": {name: measured(probabilities, judged.relevant) for name, probabilities in rows.items()},
        "log_loss_by_kind": held_out_losses(judged.scores, judged.relevant, judged.fold),
        "thresholds": [_plain(cut) for cut in cuts],
    }


def _plain(cut: Cut) -> dict[str, Any]:
    wanted = {"wanted": cut.wanted, "least": cut.least}
    if cut.at is None:
        return {**wanted, "at": None, "most": cut.most}
    pairs, queries = cut.taken
    return {
        **wanted,
        "at": cut.at,
        "pairs": pairs,
        "queries": queries,
        "there": _finite(cut.there),
        "held_out": _finite(cut.held_out),
    }


def _finite(rows: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    return {name: [None if np.isnan(value) else value for value in row] for name, row in rows.items()}


def report(result: Calibrated) -> str:
    """The summary of a calibration, for people."""
    losses = ", ".join(f"{NAMES[kind]} {loss:.4f}" for kind, loss in result.log_loss_by_kind.items())
    lines = [
        f"{result.queries} queries, {result.pairs} pairs, {result.relevant / result.pairs:.1%} of them relevant (label above "
        f"{result.relevant_above:g}); {FOLDS} folds of whole queries",
        f"held-out log-loss: {losses}",
        f"chosen: {described(result)}",
        "",
        *_table(result.held_out),
        *judgement(result.held_out),
    ]
    for cut in result.thresholds:
        lines += ["", *_threshold(cut)]
    return "\n".join(lines)


def described(result: Calibrated) -> str:
    """Kind and parameters."""
    values = result.parameters
    if result.kind == "isotonic":
        return f"{NAMES['isotonic']} ({len(values['scores'])} points)"
    return f"{NAMES[result.kind]} ({', '.join(f'{name} {value:.4g}' for name, value in values.items())})"


def _table(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    width = max(map(len, TITLES.values()))
    head = f"{'held out':{width}}  {'log-loss':>8}  {'Brier':>6}  ECE ({BINS} bins of equal mass)"
    return [
        head,
        *(
            f"{title:{width}}  {rows[key]['log_loss']:8.4f}  {rows[key]['brier']:6.4f}  {rows[key]['ece']:.4f}"
            for key, title in TITLES.items()
        ),
    ]


def judgement(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the table means, where that is bad news."""
    said = []
    if rows["after"]["log_loss"] >= rows["base_rate"]["log_loss"]:
        said.append(
            "The probabilities are NO better than the base rate for all: more data, or a better model, is needed."
        )
    if rows["after"]["log_loss"] >= rows["before"]["log_loss"]:
        said.append(
            "The plain sigmoid did as well on held-out queries: the scores were calibrated, or the data is small."
        )
    return said


def _threshold(cut: Mapping[str, Any]) -> list[str]:
    wanted = f"{cut['wanted']} {cut['least']:g}"
    if cut["at"] is None:
        return [f"no threshold reaches {wanted} on this data: the most is {cut['most']:.3f}"]
    there, held = (
        ", ".join(f"{name} {interval(row)}" for name, row in cut[key].items()) for key in ("there", "held_out")
    )
    few = "; few queries: the intervals say little" if cut["queries"] < FEW_QUERIES else ""
    return [
        f"threshold {cut['at']:.6g} for {wanted}, chosen on all queries; it takes {cut['pairs']} pairs of {cut['queries']} "
        f"queries{few}",
        f"  value [{LEVEL:.0%} interval, {BOOTSTRAP:,} bootstrap samples of queries]",
        f"  of this threshold on the queries that chose it: {there}",
        f"  of thresholds chosen without the query that they judge: {held}",
    ]


def interval(row: Sequence[float | None]) -> str:
    """A value with its interval."""
    return "undefined (nothing taken)" if row[0] is None else f"{row[0]:.3f} [{row[1]:.3f}, {row[2]:.3f}]"
