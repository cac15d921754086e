"""Texts that are nearly the same: MinHash over runs of characters.

    letters and digits -> runs of `width` characters -> 24 smallest hashes -> 8 keys; nearly equal texts share some of them

Contract: two texts of Jaccard similarity .8 share a key with a probability of .997, of .7 with .965, of .3 with .2 (8 bands of 3,
Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4); who shares one is compared exactly (`shingles`, `jaccard`).
Cost: some 70 ns a character. Rejected: datasketch and rensa, by measurement (docs/decisions.md); words instead of characters,
which Chinese and Japanese do not mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rankery.checking.texts import Characters, characters
from rankery.data.files import mix

BANDS, ROWS = 8, 3
SIMILAR = 0.7  # of the runs of both texts together, how many both have
KEPT_SHINGLES = 1024  # of a text, the smallest: exact below, and to about .014 above
CHARACTERS_AT_ONCE = 1 << 16  # stay in the cache
_random = np.random.Generator(np.random.PCG64(20240229))
_MULTIPLIERS = _random.integers(0, 1 << 31, BANDS * ROWS).astype(np.uint32) * np.uint32(2) + np.uint32(1)
_MASKS = _random.integers(0, 1 << 32, BANDS * ROWS).astype(np.uint32)


def band_keys(texts: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of texts, [texts, BANDS] uint64, and how many runs of characters each is made of, [texts].

    Args:
        texts: normal texts.
        width: characters of a run; texts with fewer letters and digits have no run, and keys that mean nothing.
    """
    keys: np.ndarray = np.zeros((len(texts), BANDS), dtype=np.uint64)
    runs: np.ndarray = np.zeros(len(texts), dtype=np.int64)
    for first, last in _blocks(texts):
        hashes, counts = _runs(characters(texts[first:last]), width)
        runs[first:last] = counts
        has = np.flatnonzero(counts)
        if len(has):
            keys[first + has] = _banded(hashes, np.cumsum(counts[has]) - counts[has])
    return keys, runs


def shingles(text: str, width: int) -> np.ndarray:
    """The smallest distinct hashes of a normal text's runs of characters, sorted, uint32."""
    hashes, _ = _runs(characters([text]), width)
    return np.unique(hashes)[:KEPT_SHINGLES]


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Jaccard similarity of two texts' runs, from `shingles`; of long texts an estimate (bottom-k, Broder 1997)."""
    both = np.union1d(left, right)[:KEPT_SHINGLES]
    shared = np.isin(both, left, assume_unique=True) & np.isin(both, right, assume_unique=True)
    return float(shared.mean()) if len(both) else 0.0


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    first, size = 0, 0
    for last, text in enumerate(texts, 1):
        size += len(text)
        if size >= CHARACTERS_AT_ONCE or last == len(texts):
            yield first, last
            first, size = last, 0


def _runs(found: Characters, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of letters and digits, text after text, uint32, and how many each text has, [texts]."""
    letters = found.scripts > 0
    codes, owner = found.codes[letters], found.text[letters]
    starts = max(0, len(codes) - width + 1)
    hashes: np.ndarray = np.zeros(starts, dtype=np.uint32)
    for i in range(width):
        hashes = hashes * np.uint32(0x9E3779B1) + codes[i : i + starts]
    # The finaliser of MurmurHash3 (Appleby): neighbouring runs differ in all bits.
    hashes = (hashes ^ (hashes >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    hashes = (hashes ^ (hashes >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    whole = owner[:starts] == owner[len(owner) - starts :]
    return hashes[whole], np.bincount(owner[:starts][whole], minlength=found.texts)


def _banded(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    keys: np.ndarray = np.empty((len(starts), BANDS), dtype=np.uint64)
    for band in range(BANDS):
        key: np.ndarray = np.full(len(starts), band, dtype=np.uint64)
        for row in range(band * ROWS, (band + 1) * ROWS):
            least = np.minimum.reduceat((hashes ^ _MASKS[row]) * _MULTIPLIERS[row], starts)
            key = mix(key ^ least.astype(np.uint64), 0)
        keys[:, band] = key
    return keys
