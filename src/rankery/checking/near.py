"""Nearly equal texts of a whole data set: candidates while it streams by, compared exactly afterwards.

Contract: a text is a candidate with the earlier text that it shares most keys of its sketch with; at most CANDIDATES of them, a
sample by place, are kept and compared, and counts are scaled to all. Queries of which each has a number or a word that the other
lacks ("2010" and "2011", "flu" and "COPD") ask for different things and are not nearly equal, unless these are spelt alike. Memory: 16 bytes a key, 8 keys a text, bounded like every table; 4 kB a text that is
compared. Rejected: comparing all texts that share a key, which templated data makes quadratic.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from rankery.checking.sketch import BANDS, SIMILAR, band_keys, jaccard, shingles
from rankery.checking.tables import Table
from rankery.checking.texts import normalise
from rankery.data.files import mix, text_hash
from rankery.evaluation.retrieval import UNSPACED

CANDIDATES = 2048
FEWEST_RUNS = 5  # texts with fewer runs of characters are too short to be nearly anything
ABSENT = (1 << 63) - 1
NUMBERS = re.compile(r"\d+")
WORDS = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")  # of scripts without spaces, characters
ALIKE = 0.8  # share of equal letters, of words that only one query has and those that only the other has


@dataclass(frozen=True)
class Kind:
    """How texts are compared: the characters of a run, and whether their numbers and words have to be the same."""

    width: int
    same_words: bool


QUERIES = Kind(3, True)
DOCUMENTS = Kind(5, False)


@dataclass(frozen=True)
class NearPairs:
    """Places of the pairs of nearly equal texts that were found, and how many there are, by estimate where not all were compared."""

    pairs: list[tuple[int, int]]
    count: float
    is_estimate: bool


class Look:
    """What is needed of a text to compare it, without the text."""

    def __init__(self, text: str, kind: Kind):
        text = normalise(text)
        self.key = text_hash(text)
        self.shingles = shingles(text, kind.width)
        self.numbers = NUMBERS.findall(text) if kind.same_words else []
        self.words = dict.fromkeys(WORDS.findall(text) if kind.same_words else ())

    def is_near(self, other: Look) -> bool:
        """Whether the texts differ, but by little."""
        if self.key == other.key or self.numbers != other.numbers:
            return False
        return jaccard(self.shingles, other.shingles) >= SIMILAR and self._has_words_of(other)

    def _has_words_of(self, other: Look) -> bool:
        """Whether one has all words of the other, or those that it lacks in another spelling."""
        ours = "".join(word for word in self.words if word not in other.words)
        theirs = "".join(word for word in other.words if word not in self.words)
        return not ours or not theirs or SequenceMatcher(None, ours, theirs, autojunk=False).ratio() > ALIKE


class Candidates:
    """Pairs of places that may be of nearly equal texts: all, or a sample by place where they are many."""

    def __init__(self) -> None:
        self.pairs: np.ndarray = np.empty((0, 2), dtype=np.int64)
        self.seen = 0

    def note(self, earlier: np.ndarray, later: np.ndarray) -> None:
        """Takes pairs of places, [N] and [N]."""
        self.seen += len(later)
        self.pairs = np.concatenate([self.pairs, np.stack([earlier, later], axis=1)])
        if len(self.pairs) > 2 * CANDIDATES:
            self._thin()

    def _thin(self) -> None:
        order = np.argsort(mix(self.pairs[:, 1].astype(np.uint64), 1), kind="stable")
        self.pairs = self.pairs[order[:CANDIDATES]]

    def places(self) -> list[int]:
        """Places of the texts that `compared` wants a look at."""
        if len(self.pairs) > CANDIDATES:
            self._thin()
        return np.unique(self.pairs).tolist()

    def compared(self, looks: dict[int, Look]) -> NearPairs:
        """The pairs that are nearly equal, not equal, given a look at each of `places()`."""
        pairs = [(int(a), int(b)) for a, b in self.pairs if looks[int(a)].is_near(looks[int(b)])]
        scale = self.seen / max(1, len(self.pairs))
        return NearPairs(sorted(pairs, key=lambda pair: pair[1]), len(pairs) * scale, scale > 1)


class Near:
    """Sketches of texts, and who shares a part of one."""

    def __init__(self, capacity: int, kind: Kind):
        self.kind = kind
        self.table = Table(capacity, {"first": ("int64", np.minimum)})
        self.candidates = Candidates()

    def sketches(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Keys of normal texts, [T, BANDS], and which are long enough to have some, [T] bool."""
        keys, runs = band_keys(texts, self.kind.width)
        return keys, runs >= FEWEST_RUNS

    def add(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Takes the sketches [T, BANDS] of texts at growing places [T], and notes those like an earlier one."""
        self.table.add(keys.ravel(), first=np.repeat(places, BANDS))
        self.look(keys, places, self.candidates)

    def look(self, keys: np.ndarray, places: np.ndarray, candidates: Candidates) -> None:
        """Notes texts like one that was added, without adding them."""
        found = self.table.find(keys.ravel(), "first", ABSENT).reshape(-1, BANDS)
        rows = np.flatnonzero((found < places[:, None]).any(axis=1))
        earlier = [_most_common(found[row][found[row] < places[row]].tolist()) for row in rows]
        candidates.note(np.array(earlier, dtype=np.int64), places[rows])


def opposite(keys: np.ndarray, groups: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents that are not relevant and share a key with a relevant one of their query: index of the one and of the other, [N].

    Args:
        keys: sketches, [D, BANDS] uint64.
        groups: key of each document's query, [D] uint64.
        relevant: [D] bool.
    """
    owner: np.ndarray = np.repeat(np.arange(len(keys)), BANDS)
    shared = mix(keys ^ mix(groups, 2)[:, None], 3).ravel()
    order = np.lexsort((~relevant[owner], shared))
    shared, owner = shared[order], owner[order]
    begins = np.flatnonzero(np.diff(shared, prepend=~shared[:1]))
    first: np.ndarray = np.repeat(owner[begins], np.diff(begins, append=len(owner)))
    meets = relevant[first] & ~relevant[owner]
    pairs = np.unique(np.stack([owner[meets], first[meets]], axis=1), axis=0)
    _, once = np.unique(pairs[:, 0], return_index=True)
    return pairs[once, 1], pairs[once, 0]


def _most_common(values: list[int]) -> int:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
