"""Queries in groups that may be hard in their own ways: by length, by candidates, by what truncation cuts.

Contract: a dimension is a value of each query, [Q] numbers or yes and no; numbers are cut into PARTS parts of about equal size, so
that a slice has enough queries to say something. Dimensions that are equal for all queries are left out. Cost: one more pass
through the first run where texts are known. Rejected: borders that are round numbers (most slices would be empty).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rankery.evaluation.inputs import Texts, unknown
from rankery.evaluation.measures import Measured
from rankery.evaluation.trec import TrecFile

PARTS = 3


@dataclass(frozen=True)
class Slice:
    """Some of the queries."""

    dimension: str
    label: str
    queries: np.ndarray  # [Q] bool


def slices(dimensions: Mapping[str, np.ndarray]) -> list[Slice]:
    """The slices of every dimension; NaN is in none."""
    found: list[Slice] = []
    for name, values in dimensions.items():
        parts = _answers(values) if values.dtype == bool else _parts(values)
        if len(parts) > 1:
            found += [Slice(name, label, mask) for label, mask in parts]
    return found


def dimensions_of(
    measured: Measured, first: TrecFile, texts: Texts, cut: Mapping[str, set[str]], places: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What is known of each query, [Q] each.

    Args:
        measured: all runs.
        first: the first of them, whose candidates are looked at.
        texts: texts by name.
        cut: system -> queries of which it cuts a relevant document.
        places: system -> place of the best relevant document in its ranking, [Q].
    """
    found = {
        "candidates": measured.candidates.max(0).astype(float),
        "relevant documents": measured.relevant.astype(float),
        "query, characters": np.array([_length(texts.query(query)) for query in measured.queries]),
        "documents, characters on average": _document_lengths(measured.queries, first, texts),
    }
    found |= {f"place of the best relevant document in {system}": places_ for system, places_ in places.items()}
    for system, queries in cut.items():
        name = f"relevant document cut by {system}"
        found[name] = np.array([query in queries for query in measured.queries], bool)
    return found


def _document_lengths(queries: list[str], run: TrecFile, texts: Texts) -> np.ndarray:
    values = np.full(len(queries), np.nan)
    if texts.document is unknown:
        return values
    for i, query in enumerate(queries):
        known = [len(text) for name in run[query] if (text := texts.document(name)) is not None]
        if known:
            values[i] = np.mean(known)
    return values


def _length(text: str | None) -> float:
    return float("nan") if text is None else float(len(text))


def _answers(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(label, mask) for label, mask in (("yes", values), ("no", ~values)) if mask.any()]


def _parts(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Up to PARTS parts; equal values stay together, so there may be fewer."""
    known = ~np.isnan(values)
    if not known.any():
        return []
    borders = np.unique(np.quantile(values[known], np.arange(1, PARTS) / PARTS, method="lower"))
    part = np.searchsorted(borders, np.where(known, values, 0.0), side="left")  # a border belongs to the part below
    found = []
    for i in range(len(borders) + 1):
        mask = known & (part == i)
        if mask.any():
            low, high = values[mask].min(), values[mask].max()
            found.append((f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}", mask))
    return found
