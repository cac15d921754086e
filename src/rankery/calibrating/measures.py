"""How good probabilities are, and where to cut them.

Contract: pure functions of probabilities [P] and relevance [P] bool; none depends on the order of pairs, ties included. Cost: a
sort; intervals draw BOOTSTRAP samples of queries. Rejected: bins of equal width, most of which hold nothing where few documents
are relevant.

Shapes: P pairs, Q queries, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
BOOTSTRAP, LEVEL = 10_000, 0.95
DRAWN_AT_ONCE = 10_000_000  # draws held in memory
LEAST = 1e-15  # a probability nearer to 0 or 1 counts as so near: a wrong one costs 34.5 nats


@dataclass(frozen=True)
class Bins:
    """Pairs sorted by probability and cut into parts of equal size (to one pair)."""

    probability: np.ndarray  # [B] mean
    relevant: np.ndarray  # [B] share of relevant ones
    count: np.ndarray  # [B]


def log_loss(probabilities: np.ndarray, relevant: np.ndarray) -> float:
    """Mean of -log p(what is so), nats."""
    p = np.clip(np.where(relevant, probabilities, 1 - probabilities), LEAST, 1.0)
    return float(-np.log(p).mean())


def brier(probabilities: np.ndarray, relevant: np.ndarray) -> float:
    """Mean squared distance from 0 or 1 (Brier 1950)."""
    return float(np.mean((probabilities - relevant) ** 2))


def binned(probabilities: np.ndarray, relevant: np.ndarray, bins: int = BINS) -> Bins:
    """Bins of equal mass; pairs of equal probability share their relevance evenly, so their order does not matter."""
    values, at, count = np.unique(probabilities, return_inverse=True, return_counts=True)
    share = np.bincount(at, relevant.astype(float)) / count
    parts = [part for part in np.array_split(np.sort(at, kind="stable"), min(bins, len(at))) if len(part)]
    return Bins(
        np.array([values[part].mean() for part in parts]),
        np.array([share[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


def expected_calibration_error(bins: Bins) -> float:
    """ECE, the mean over pairs of |mean probability - share of relevant ones| of their bin (Naeini et al. 2015)."""
    return float(np.average(np.abs(bins.probability - bins.relevant), weights=bins.count))


def measured(probabilities: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """All three by name."""
    return {
        "log_loss": log_loss(probabilities, relevant),
        "brier": brier(probabilities, relevant),
        "ece": expected_calibration_error(binned(probabilities, relevant)),
    }


def threshold(wanted: str, least: float, probabilities: np.ndarray, relevant: np.ndarray) -> float | None:
    """The threshold, from which on pairs are taken, that reaches a precision with the most recall, or a recall with the highest threshold.

    It lies half-way to the next lower probability, so that rounding moves nobody across it. None: no threshold reaches it.

    Args:
        wanted: "precision", of the pairs taken the share that is relevant, or "recall", of the relevant the share taken.
        least: what to reach, in (0, 1].
    """
    values, reached = _sweep(probabilities, relevant)
    rows = np.flatnonzero(reached[wanted] >= least)
    if not len(rows):
        return None
    row = int(rows[-1] if wanted == "precision" else rows[0])
    lower = values[row + 1] if row + 1 < len(values) else 0.0
    return float((np.float64(values[row]) + lower) / 2)


def highest_precision(probabilities: np.ndarray, relevant: np.ndarray) -> float:
    """The precision of the best threshold."""
    return float(_sweep(probabilities, relevant)[1]["precision"].max())


def _sweep(probabilities: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(distinct probabilities, falling; precision and recall of what has at least each)."""
    values, at = np.unique(-probabilities, return_inverse=True)
    taken, hits = np.cumsum(np.bincount(at)), np.cumsum(np.bincount(at, relevant.astype(float)))
    return -values, {"precision": hits / taken, "recall": hits / max(hits[-1], 1.0)}


def precision_and_recall(
    taken: np.ndarray, relevant: np.ndarray, query: np.ndarray, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Name -> (value, low, high) of a decision [P] bool over all pairs, with a percentile bootstrap interval (Efron 1979).

    Queries [P] are drawn with replacement, each with all of its pairs. NaN where nothing is taken, or nothing relevant.
    """
    _, at = np.unique(query, return_inverse=True)
    hits, takes, positives = (np.bincount(at, mask.astype(float)) for mask in (taken & relevant, taken, relevant))
    return {"precision": _ratio(hits, takes, seed), "recall": _ratio(hits, positives, seed)}


def _ratio(part: np.ndarray, whole: np.ndarray, seed: int) -> tuple[float, float, float]:
    """(sum of part / sum of whole, low, high) over queries [Q]."""
    if not whole.sum():
        return (float("nan"),) * 3
    random, counts = np.random.default_rng(seed), np.stack([part, whole])
    block = max(1, DRAWN_AT_ONCE // len(part))
    sums = np.concatenate(
        [
            counts[:, random.integers(0, len(part), (min(block, BOOTSTRAP - start), len(part)))].sum(2)
            for start in range(0, BOOTSTRAP, block)
        ],
        axis=1,
    )
    ratios = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]  # a sample without any has no ratio
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(part.sum() / whole.sum()), float(low), float(high)
