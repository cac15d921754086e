"""Which pairs belong together: every pair alone, or the documents of each query; and which of them an epoch draws.

Contract: a source gives, for an epoch, a `Draw`: examples and their pairs. What is drawn depends on the texts, the seed and the
epoch alone, not on processes, steps or order in the file, so resumption and other cuts see the same documents. Cost: nothing
for single pairs and whole groups (made once); a sort of the pairs an epoch where groups are drawn. Rejected: a random generator
carried through the epochs, which a resumed run would have to rewind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from rankery.data.files import mix

# Shapes: P pairs in the data, D pairs drawn, E examples.


@dataclass(frozen=True, eq=False)
class Draw:
    """The examples of an epoch: example i is `pairs[starts[i]:starts[i + 1]]`."""

    pairs: np.ndarray  # [D] int64
    starts: np.ndarray  # [E + 1] int64
    sizes: np.ndarray  # [E] int64, pairs of each example
    lengths: np.ndarray  # [E] tokens of each example's longest pair

    def __len__(self) -> int:
        return len(self.sizes)

    def of(self, examples: np.ndarray) -> np.ndarray:
        """Pairs of some examples, one example after the other."""
        if len(self.pairs) == len(self):  # one pair each
            return self.pairs[examples]
        return np.concatenate([self.pairs[self.starts[i] : self.starts[i + 1]] for i in examples])


class Examples(Protocol):
    """A source of examples; always the same number of them."""

    def __len__(self) -> int: ...

    def draw(self, epoch: int) -> Draw: ...


def one_each(lengths: np.ndarray, pairs: np.ndarray | None = None) -> Draw:
    """Every pair is an example; `pairs`: only these, [E]. `lengths` are those of all pairs, [P]."""
    pairs = np.arange(len(lengths)) if pairs is None else pairs
    return Draw(pairs, np.arange(len(pairs) + 1), np.ones(len(pairs), dtype=np.int64), lengths[pairs])


@dataclass(frozen=True, eq=False)
class Fixed:
    """The same examples in every epoch."""

    same: Draw

    def __len__(self) -> int:
        return len(self.same)

    def draw(self, epoch: int) -> Draw:
        return self.same


@dataclass(frozen=True, eq=False)
class DrawnGroups:
    """Each query with `size` of its documents, others in each epoch.

    One is a positive: of the documents with the query's highest label, if that is above the lowest possible label. The others
    have lower labels. Both are taken in a seeded order without replacement; when all were used, in another order. A query with
    fewer documents brings what it has.
    """

    order: np.ndarray  # [P] pairs, query after query
    query: np.ndarray  # [P] index of the query of each of them, rising
    is_positive: np.ndarray  # [P]
    key: np.ndarray  # [P] uint64 hash of the two texts
    length: np.ndarray  # [P] tokens
    size: int
    seed: int

    def __len__(self) -> int:
        return int(self.query[-1]) + 1

    def draw(self, epoch: int) -> Draw:
        return _draw_groups(self, epoch)


@lru_cache(maxsize=1)  # every step of an epoch asks for it
def _draw_groups(groups: DrawnGroups, epoch: int) -> Draw:
    kind = 2 * groups.query + groups.is_positive  # a class of documents of a query: they take turns
    available = np.bincount(kind, minlength=2 * len(groups))[kind]
    has_positive = np.bincount(groups.query, weights=groups.is_positive) > 0
    wanted = np.where(groups.is_positive, 1, groups.size - has_positive[groups.query])
    epochs_a_round = -(-available // np.maximum(wanted, 1))
    round_number, turn = np.divmod(epoch, epochs_a_round)
    shuffled = mix(groups.key ^ mix(round_number, groups.seed), groups.seed)
    by_kind = np.lexsort((shuffled, kind))
    firsts = np.flatnonzero(np.diff(kind[by_kind], prepend=-1))
    rank: np.ndarray = np.empty(len(kind), dtype=np.int64)
    rank[by_kind] = np.arange(len(kind)) - np.repeat(firsts, np.diff(firsts, append=len(kind)))
    # The last turn of a round is filled up with the documents that the round began with.
    chosen = (rank - turn * wanted) % available < wanted
    return _grouped(groups.order[chosen], groups.query[chosen], groups.length[chosen])


def query_groups(
    query: np.ndarray,
    label: np.ndarray,
    key: np.ndarray,
    lengths: np.ndarray,
    kept: np.ndarray,
    min_label: float,
    size: int | None,
    seed: int,
) -> Examples:
    """Groups of the data's pairs by query; arrays are [P], `kept` [pairs] are the ones that take part.

    Args:
        query: index of each pair's query.
        label: as in the file.
        key: hash of the two texts.
        lengths: tokens.
        kept: indices of pairs, rising.
        min_label: the lowest possible label, which is never a positive's.
        size: documents drawn of each query and epoch; None: all.
        seed: decides which.
    """
    order = kept[np.argsort(query[kept], kind="stable")]
    _, of_query = np.unique(query[order], return_inverse=True)
    if size is None:
        return Fixed(_grouped(order, of_query, lengths[order]))
    highest = np.full(int(of_query[-1]) + 1, -np.inf)
    np.maximum.at(highest, of_query, label[order])
    is_positive = (label[order] == highest[of_query]) & (label[order] > min_label)
    return DrawnGroups(order, of_query, is_positive, np.asarray(key)[order], lengths[order], size, seed)


@dataclass(frozen=True, eq=False)
class Trunks:
    """How pairs begin where those that begin alike may compute that once."""

    trunk: np.ndarray  # [P] which one a pair begins with; a query's have neighbouring numbers
    head: np.ndarray  # [P] its tokens


def trunks_of(lengths: np.ndarray, heads: np.ndarray, query: np.ndarray) -> Trunks:
    """The trunks of all pairs, as `packing_of` lays them out.

    Args:
        lengths: tokens of each pair, [P].
        heads: of these, tokens before the document: pairs of one query with as many begin alike.
        query: index of each pair's query.
    """
    head = np.minimum(heads, lengths - 1).astype(np.int64)  # a pair keeps a token of its own, the one that is scored
    _, trunk = np.unique(query * (head.max(initial=0) + 1) + head, return_inverse=True)
    return Trunks(trunk, head)


def computed(lengths: np.ndarray, trunks: Trunks | None, pairs: np.ndarray, part: np.ndarray | int = 0) -> np.ndarray:
    """Tokens that each of some pairs adds to its part, [pairs] int64: all of its own, and its trunk's if it is the first of it there.

    Args:
        lengths: tokens of all pairs, [P].
        trunks: what they share; None: nothing.
        pairs: some of them.
        part: which pass through the model each of them goes in.
    """
    tokens = lengths[pairs].astype(np.int64)
    if trunks is not None:
        again: np.ndarray = np.ones(len(pairs), dtype=bool)
        again[np.unique(part * len(lengths) + trunks.trunk[pairs], return_index=True)[1]] = False
        tokens -= trunks.head[pairs] * again
    return tokens


def met(
    layout: str, lengths: np.ndarray, heads: np.ndarray, query: np.ndarray, budget: int, pairs: np.ndarray | None = None
) -> tuple[Draw, Trunks | None]:
    """(the examples of a scoring pass, what they share): pairs alone, or by query where that saves something.

    Args:
        layout: how pairs go through the model; `shared` lets those of a query meet.
        lengths: tokens of each pair, [P].
        heads: of these, tokens that the query's other pairs have too.
        query: index of each pair's query.
        budget: tokens of a part at most.
        pairs: the ones that take part; None: all.
    """
    if layout != "shared":
        return one_each(lengths, pairs), None
    pairs = np.arange(len(lengths)) if pairs is None else pairs
    trunks = trunks_of(lengths, heads, query)
    return query_parts(query, lengths, trunks, pairs, budget), trunks


def query_parts(query: np.ndarray, lengths: np.ndarray, trunks: Trunks, pairs: np.ndarray, budget: int) -> Draw:
    """Pairs by query, in as few parts as a token budget allows; arrays are [P], `pairs` the ones that take part."""
    order = pairs[np.argsort(trunks.trunk[pairs], kind="stable")]
    parts: np.ndarray = np.empty(len(order), dtype=np.int64)
    part, filled, last = -1, 0, None
    columns = (values[order].tolist() for values in (query, trunks.trunk, lengths, trunks.head))
    for i, (of_query, trunk, length, head) in enumerate(zip(*columns, strict=True)):
        adds = length - head if last == (of_query, trunk) else length
        if last is None or of_query != last[0] or filled + adds > budget:
            part, filled, adds = part + 1, 0, length
        filled, last = filled + adds, (of_query, trunk)
        parts[i] = part
    return _grouped(order, parts, lengths[order])


def _grouped(pairs: np.ndarray, query: np.ndarray, length: np.ndarray) -> Draw:
    """The draw of pairs that stand query after query."""
    starts = np.flatnonzero(np.diff(query, prepend=-1, append=query[-1] + 1))
    return Draw(pairs, starts, np.diff(starts), np.maximum.reduceat(length, starts[:-1]))


def false_negatives(query: np.ndarray, label: np.ndarray, is_negative: np.ndarray, margin: float) -> np.ndarray:
    """Which documents are probably relevant though listed as negatives, [P] bool.

    Those that a teacher scores above every positive of their query, less `margin` (the positive-aware filter of NV-Retriever,
    Moreira et al. 2024).

    Args:
        query: index of each pair's query, [P].
        label: teacher scores, [P].
        is_negative: whether the document is listed as a negative, [P].
        margin: how far below the best positive is still too close.
    """
    best = np.full(int(query.max(initial=-1)) + 1, np.inf)
    positive: np.ndarray = ~is_negative.astype(bool)
    best[np.unique(query[positive])] = -np.inf
    np.maximum.at(best, query[positive], label[positive])
    return ~positive & (label > best[query] - margin)


def chunks(draw: Draw, examples: int) -> Sequence[np.ndarray]:
    """Examples in order, so many at a time."""
    return np.split(np.arange(len(draw)), range(examples, len(draw), examples))
