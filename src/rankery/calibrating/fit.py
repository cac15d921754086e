"""Scores and relevance -> a calibration; and what it says of queries that it was not fitted on.

Contract: folds are made of whole queries, so a query's documents are never on both sides; the kind is chosen by log-loss on
held-out folds, and what is held out is held out of that choice too (nested cross-validation), so measured losses are not those of
the lucky winner. A fit depends on scores and labels alone. Cost: FOLDS x FOLDS x 3 fits of two numbers or of one sorted pass,
under a second for 100,000 pairs. Rejected: one split (a small dev set has few relevant documents to spare), and scikit-learn (a
dependency for two small fits that scipy has).

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankery.calibrating.measures import log_loss
from rankery.data.files import mix, text_hash
from rankery.errors import InputError
from rankery.models.calibration import PARAMETERS, Calibration

FOLDS = 5
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Calibration]  # of scores, relevance and folds, [P] each


def fit(kind: str, scores: np.ndarray, relevant: np.ndarray) -> Calibration:
    """The calibration of a kind that explains the relevance best.

    All kinds are fitted to Platt's targets (1999): (n + 1) / (n + 2) for each of n relevant pairs and 1 / (m + 2) for each of m
    others, in place of 1 and 0. So data that scores separate have a finite fit, and no isotonic step is 0 or 1.

    Args:
        kind: temperature, platt or isotonic; see `Calibration`.
        scores: [P].
        relevant: [P] bool.
    """
    positives = int(relevant.sum())
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (len(relevant) - positives + 2))
    if kind == "isotonic":
        return Calibration(kind, _isotonic(scores, targets))
    slope, intercept = _logistic(scores, targets, with_intercept=kind == "platt")
    if kind == "temperature":
        return Calibration(kind, {"temperature": 1 / max(slope, np.finfo(float).tiny)})
    return Calibration(kind, {"slope": slope, "intercept": intercept})


def _logistic(scores: np.ndarray, targets: np.ndarray, with_intercept: bool) -> tuple[float, float]:
    """(slope from 0, intercept) of the least cross-entropy: convex, by L-BFGS-B on scores of standard deviation 1."""
    from scipy.optimize import minimize
    from scipy.special import expit

    scale = float(scores.std()) or 1.0
    x = scores / scale

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = weights[0] * x + weights[1]
        wrong = expit(z) - targets
        return float(np.mean(np.logaddexp(0.0, z) - targets * z)), np.array([np.mean(wrong * x), np.mean(wrong)])

    bounds = [(0.0, None), (None, None) if with_intercept else (0.0, 0.0)]
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    slope, intercept = minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    ).x
    return float(slope) / scale, float(intercept)


def _isotonic(scores: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    """The ends of each step of the least-squares rising fit (Barlow et al. 1972); equal scores are one point."""
    from scipy.optimize import isotonic_regression

    x, at, count = np.unique(scores, return_inverse=True, return_counts=True)
    y = isotonic_regression(np.bincount(at, targets) / count, weights=count).x
    inner = np.concatenate([[False], (y[1:-1] == y[:-2]) & (y[1:-1] == y[2:]), [False]])[: len(y)]
    return {"scores": x[~inner].tolist(), "probabilities": y[~inner].tolist()}


def folds_of(queries: Sequence[str], seed: int) -> np.ndarray:
    """Fold of each pair [P], by the text of its query; a seeded hash decides, not the order of the file.

    Raises:
        InputError: fewer than FOLDS queries.
    """
    texts, at = np.unique(np.array(queries, dtype=object), return_inverse=True)
    if len(texts) < FOLDS:
        raise InputError(
            f"the data has {len(texts)} queries; expected at least {FOLDS}, better hundreds: calibrations are compared on queries "
            "that they were not fitted on"
        )
    order = np.argsort(mix(np.array([text_hash(text) for text in texts], np.uint64), seed), kind="stable")
    fold: np.ndarray = np.empty(len(texts), dtype=np.int64)
    fold[order] = np.arange(len(texts)) % FOLDS
    return fold[at]


def fitted_without(make: Fit, scores: np.ndarray, relevant: np.ndarray, fold: np.ndarray) -> dict[int, Calibration]:
    """Fold -> the calibration of all pairs outside it."""
    return {
        int(held): make(scores[fold != held], relevant[fold != held], fold[fold != held]) for held in np.unique(fold)
    }


def held_out(fits: dict[int, Calibration], scores: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The probability of each pair [P] by the calibration that has not seen its query."""
    out: np.ndarray = np.empty(len(scores))
    for held, calibration in fits.items():
        out[fold == held] = calibration.probabilities(scores[fold == held])
    return out


def held_out_losses(scores: np.ndarray, relevant: np.ndarray, fold: np.ndarray) -> dict[str, float]:
    """Kind -> log-loss on held-out folds, the simplest kind first."""
    return {
        kind: log_loss(held_out(fitted_without(_of_kind(kind), scores, relevant, fold), scores, fold), relevant)
        for kind in PARAMETERS
    }


def best_fit(scores: np.ndarray, relevant: np.ndarray, fold: np.ndarray) -> Calibration:
    """The calibration whose kind has the least held-out log-loss, fitted on all pairs."""
    losses = held_out_losses(scores, relevant, fold)
    return fit(min(losses, key=losses.__getitem__), scores, relevant)


def _of_kind(kind: str) -> Fit:
    return lambda scores, relevant, fold: fit(kind, scores, relevant)
