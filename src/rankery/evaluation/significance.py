"""Whether a difference between two systems is more than chance: randomisation test, Holm's correction, bootstrap intervals.

Contract: pure functions of per-query values, the same on every machine for the same seed. Cost: at most DRAWS random draws a call.
Rejected: the t-test (assumes a normal distribution, which per-query measures have not) and the sign and Wilcoxon tests, which
Smucker, Allan and Carterette (2007) found to disagree with the others.

Shapes: Q queries, K columns (systems or differences).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rankery.errors import InputError

SAMPLES = 10_000
DRAWS = 300_000_000  # of many queries fewer samples are drawn, and needed
BLOCK = 2_000_000  # draws held in memory at once
TIE = 1e-12  # relative; sums in another order round differently


def randomisation_p(differences: np.ndarray, seed: int, samples: int = SAMPLES) -> float:
    """Two-sided p-value of the paired randomisation test (Fisher 1935; Smucker et al. 2007) of a mean difference, [Q] -> p.

    Under the hypothesis that the systems are exchangeable, each query's difference could as well have had the other sign. All
    signs are enumerated where they are at most `samples`; else so many are drawn, and the observed one is counted among them.

    Raises:
        InputError: no differences, or NaN among them.
    """
    values = _checked(differences)
    values = values[values != 0]  # their signs change nothing
    observed = abs(values.sum()) * (1 - TIE)
    if 2 ** len(values) <= samples:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    random = np.random.default_rng(seed)
    samples = _samples(len(values), samples)
    extreme, rows = 0, max(1, BLOCK // len(values))
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        bits = np.frombuffer(random.bytes(count * -(-len(values) // 8)), np.uint8).reshape(count, -1)
        kept = np.unpackbits(bits, axis=1, count=len(values)).astype(np.float64) @ values
        extreme += int((np.abs(2 * kept - values.sum()) >= observed).sum())
    return (extreme + 1) / (samples + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the same order."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * (len(p) - np.arange(len(p)))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]


def bootstrap_intervals(values: np.ndarray, seed: int, samples: int = SAMPLES, level: float = 0.95) -> np.ndarray:
    """Percentile bootstrap intervals (Efron 1979) of column means, [Q, K] -> [K, 2]; queries are drawn with replacement.

    Raises:
        InputError: no values, or NaN among them.
    """
    values = _checked(values)
    random = np.random.default_rng(seed)
    size = len(values)
    samples = _samples(size, samples)
    means, rows = np.empty((samples, values.shape[1])), max(1, BLOCK // size)
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        drawn = random.integers(0, size, (count, size)) + size * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        means[start : start + count] = times @ values / size
    interval: np.ndarray = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return interval.T


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or np.isnan(values).any():
        raise InputError(f"got {len(values)} differences, NaN or none; expected a number for each query")
    return values


def _samples(size: int, wanted: int) -> int:
    return min(wanted, max(1000, DRAWS // size))
