"""Distinct 64-bit keys and what is known of each, in bounded memory.

    add(keys, columns) -> sorted runs, merged as they grow -> [keys, columns] of the distinct keys

Contract: up to `capacity` distinct keys nothing is lost. Beyond it every second key goes, chosen by the key alone, and again
when it is full again; so what is counted on the rest, times `scale`, is an unbiased estimate, and two tables (or two files)
keep the same keys. Cost: 8 bytes a key and those of its columns, twice that while runs merge; O(log n) merges of each.
Rejected: a Python dict (100 bytes a key and more), a Bloom filter (says that a key came again, not where or with which label),
and a database on the disk (as slow as the disk, for figures that a sample gives to a percent).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Columns = Mapping[
    str, tuple[str, np.ufunc]
]  # name -> (dtype, how values of equal keys become one: minimum, maximum, add)


class Table:
    """Distinct uint64 keys, sorted, with columns of one value a key."""

    def __init__(self, capacity: int, columns: Columns):
        self.capacity, self.columns = capacity, dict(columns)
        self.halvings = 0
        self.runs: list[dict[str, np.ndarray]] = []

    @property
    def scale(self) -> int:
        """Keys that each kept key stands for: 1 while all are kept."""
        return 1 << self.halvings

    def kept(self, keys: np.ndarray) -> np.ndarray:
        """Which of some keys are of the part that the table keeps, [K] bool."""
        return keys < _limit(self.halvings) if self.halvings else np.ones(len(keys), dtype=bool)

    def add(self, keys: np.ndarray, **columns: np.ndarray) -> None:
        """Takes keys [K] (uint64, evenly spread), in any order, with a value [K] for each column."""
        kept = self.kept(keys)
        run = {"key": np.asarray(keys)[kept]}
        run |= {name: np.asarray(columns[name], dtype=dtype)[kept] for name, (dtype, _) in self.columns.items()}
        self.runs.append(self._reduced(run))
        while len(self.runs) > 1 and 2 * len(self.runs[-1]["key"]) >= len(self.runs[-2]["key"]):
            self._merge_last_two()
        if len(self.runs[0]["key"]) > self.capacity:
            self.whole()

    def whole(self) -> dict[str, np.ndarray]:
        """ "key" and the columns, [distinct keys kept] each, in the order of the keys."""
        while len(self.runs) > 1:
            self._merge_last_two()
        if not self.runs:
            self.add(np.empty(0, dtype=np.uint64), **{name: np.empty(0) for name in self.columns})
        while len(self.runs[0]["key"]) > self.capacity:
            self.halvings += 1
            end = int(np.searchsorted(self.runs[0]["key"], _limit(self.halvings)))
            self.runs = [{name: values[:end].copy() for name, values in self.runs[0].items()}]
        return self.runs[0]

    def find(self, keys: np.ndarray, column: str, absent: int) -> np.ndarray:
        """A column's value of each key, [K]; `absent` where the table has no such key."""
        dtype, combine = self.columns[column]
        order = np.argsort(keys)  # sorted keys meet the same pages of memory one after the other
        keys = np.asarray(keys)[order]
        found: np.ndarray = np.full(len(keys), absent, dtype=dtype)
        for run in self.runs:
            if len(run["key"]) == 0:
                continue
            at = np.minimum(np.searchsorted(run["key"], keys), len(run["key"]) - 1)
            here = run["key"][at] == keys
            values = run[column][at]
            seen = here & (found != absent)
            found = np.where(seen, combine(found, values), np.where(here, values, found))
        unsorted = np.empty_like(found)
        unsorted[order] = found
        return unsorted

    def _merge_last_two(self) -> None:
        last, before = self.runs.pop(), self.runs.pop()
        joined = {}
        for name in list(last):
            joined[name] = np.concatenate([before.pop(name), last.pop(name)])
        self.runs.append(self._reduced(joined))

    def _reduced(self, run: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        order = np.argsort(run["key"], kind="stable")
        keys = run["key"][order]
        starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        reduced = {"key": keys[starts]}
        for name, (_, combine) in self.columns.items():
            values = run.pop(name)[order]
            reduced[name] = values[starts] if len(starts) == len(keys) else combine.reduceat(values, starts)
        return reduced


def common(left: Table, right: Table) -> tuple[np.ndarray, np.ndarray, int]:
    """Keys that both tables hold: their rows in the one, in the other, and how many keys each stands for."""
    ours, theirs = left.whole()["key"], right.whole()["key"]
    _, at, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    return at, there, max(left.scale, right.scale)


def _limit(halvings: int) -> np.uint64:
    return np.uint64((1 << (64 - halvings)) - 1)
