"""Examples, seed, batch and budget -> which meet in which step, process and micro-batch. Pure; numpy only.

Contract: an *example* is a list of pairs that belong together (one pair for pointwise losses, a query's group for others).
Every example comes once an epoch. Which examples form a step depends on seed, epoch and effective batch size alone.
How a step is cut (by length, under a token budget, over processes) never changes what is learnt: processes get equal
numbers of micro-batches and of passes in each, short ones get weight-0 repeats, and the loss is divided by the step's global
count. An example that fits the budget is never split; one that does not has a micro-batch for itself, in several passes.

Padded micro-batches compute their longest pair times their number of pairs, packed ones (data/packing.py) their tokens. By length,
a group of several lengths is cut into a pass for each.

Cost: a permutation of n an epoch; a cut is O(examples x largest micro-batch) numpy work, well under a millisecond for 32.
Rejected: bucketing by length over the whole epoch (steps then see one length only, which biases training), and a plain
"fill up to the budget" (pads up to twice as much as the optimal cut below).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from rankery.data.examples import Draw, Examples, Trunks, computed

MICRO_BATCH_OVERHEAD = 64  # fixed cost of a micro-batch, in tokens: what starting its kernels would have computed
CUT_WINDOW = 4096  # examples cut at once; longer lists are cut window by window, in order of length


# Pairs as rows padded to one length; only pairs of one length together, without padding; end to end; end to end with what the
# documents of a query have in common computed once.
Layout = Literal["padded", "by_length", "packed", "shared"]


@dataclass(frozen=True)
class MicroBatch:
    """Examples whose loss is computed together; weight 0 keeps processes in step and adds nothing."""

    pairs: np.ndarray  # [pairs] indices, example after example
    sizes: tuple[int, ...]  # pairs of each example
    weight: float = 1.0
    cuts: tuple[int, ...] = ()  # where pairs are cut into passes through the model
    passes: int = 1  # of this micro-batch on all processes; those beyond its own repeat the last and add nothing

    @property
    def pieces(self) -> list[np.ndarray]:
        """The pairs of each pass."""
        return np.split(self.pairs, self.cuts)


@dataclass(frozen=True)
class Step:
    """One optimiser update: `micro_batches[process]` are what each process runs, equally many for all."""

    number: int  # counts from 0 over the whole training
    epoch: int
    pairs: np.ndarray  # [pairs] all pairs of the step, example after example in drawing order
    sizes: tuple[int, ...]  # pairs of each example
    micro_batches: tuple[tuple[MicroBatch, ...], ...]


@dataclass(frozen=True)
class Plan:
    """The steps of a training, computed when asked for.

    Args:
        examples: what belongs together.
        lengths: tokens of each pair of the data, [P].
        batch: examples a step: batch_size x gradient_accumulation_steps x processes.
        budget: tokens a pass computes at most, padding included; a longer pair runs alone.
        layout: of the pairs of a pass; see `Layout`.
        trunks: what pairs share, of layout `shared`.
    """

    examples: Examples
    lengths: np.ndarray
    seed: int
    batch: int
    processes: int
    budget: int
    layout: Layout = "padded"
    trunks: Trunks | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch)

    def pairs(self, number: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """(all pairs of step `number`, example after example in drawing order; pairs of each example)."""
        examples, draw = self._drawn(number)
        return draw.of(examples), tuple(draw.sizes[examples].tolist())

    def step(self, number: int) -> Step:
        """Step `number`, cut and dealt."""
        examples, draw = self._drawn(number)
        dealt = deal(examples, draw, self.lengths, self.processes, self.budget, self.layout, self.trunks)
        return Step(number, number // self.steps_per_epoch, *self.pairs(number), dealt)

    def _drawn(self, number: int) -> tuple[np.ndarray, Draw]:
        """(examples of step `number`, the epoch's draw that they index)."""
        epoch, within = divmod(number, self.steps_per_epoch)
        order = epoch_order(len(self.examples), self.seed, epoch)
        return order[within * self.batch : (within + 1) * self.batch], self.examples.draw(epoch)


@lru_cache(maxsize=1)  # every step of an epoch asks for it
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch draws its examples; read-only."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(examples)
    order.setflags(write=False)
    return order


def deal(
    examples: np.ndarray,
    draw: Draw,
    lengths: np.ndarray,
    processes: int,
    budget: int,
    layout: Layout = "padded",
    trunks: Trunks | None = None,
) -> tuple[tuple[MicroBatch, ...], ...]:
    """Cuts examples of a draw into micro-batches and deals them to processes, longest first, equally many to each."""

    def cost(block: np.ndarray) -> int:
        return pass_tokens(draw.of(block), lengths, layout, trunks)

    by_length = examples[np.argsort(-draw.lengths[examples], kind="stable")]
    blocks: list[np.ndarray] = []
    for start in range(0, len(by_length), CUT_WINDOW):
        window = by_length[start : start + CUT_WINDOW]
        if layout == "by_length":
            points = length_points(*_length_range(window, draw, lengths), draw.sizes[window], budget)
        elif layout != "padded":
            points = fill_points(example_tokens(window, draw, lengths, layout, trunks), budget)
        else:
            points = cut_points(draw.sizes[window], draw.lengths[window], budget)
        blocks += np.split(window, points)
    costs = [cost(block) for block in blocks]
    while len(blocks) % processes and max(map(len, blocks)) > 1:
        widest = max((i for i in range(len(blocks)) if len(blocks[i]) > 1), key=costs.__getitem__)
        halves = np.array_split(blocks[widest], 2)
        blocks[widest : widest + 1] = halves
        costs[widest : widest + 1] = [cost(half) for half in halves]
    order = sorted(range(len(blocks)), key=lambda i: -costs[i])
    micro_batches = [_micro_batch(blocks[i], draw, lengths, budget, layout, trunks, costs[i]) for i in order]
    while len(micro_batches) % processes:
        micro_batches.append(MicroBatch(draw.of(by_length[-1:])[:1], (1,), weight=0.0))
    rounds = [micro_batches[i : i + processes] for i in range(0, len(micro_batches), processes)]
    # Every other round is dealt backwards, so that no process gets the costliest of each round.
    rounds = [_in_step(row[::-1] if i % 2 else row) for i, row in enumerate(rounds)]
    return tuple(tuple(row[process] for row in rounds) for process in range(processes))


def _micro_batch(
    block: np.ndarray,
    draw: Draw,
    lengths: np.ndarray,
    budget: int,
    layout: Layout,
    trunks: Trunks | None,
    cost: int,
) -> MicroBatch:
    """Examples as one micro-batch; a single one that is over the budget is cut by length."""
    pairs, sizes = draw.of(block), tuple(draw.sizes[block].tolist())
    one_pass = layout != "by_length" or np.ptp(lengths[pairs]) == 0
    if len(block) > 1 or len(pairs) == 1 or (cost <= budget and one_pass):
        return MicroBatch(pairs, sizes)
    pairs = pairs[np.argsort(-lengths[pairs], kind="stable")]
    if layout == "by_length":
        cuts = length_points(lengths[pairs], lengths[pairs], np.ones(len(pairs), dtype=np.int64), budget)
    elif layout == "padded":
        cuts = cut_points(np.ones(len(pairs), dtype=np.int64), lengths[pairs], budget)
    elif trunks is None:
        cuts = fill_points(lengths[pairs], budget)
    else:  # a part that begins amid a trunk computes it again
        pairs = pairs[np.argsort(trunks.trunk[pairs], kind="stable")]
        tokens = computed(lengths, trunks, pairs)
        cuts = fill_points(tokens, budget, lengths[pairs] - tokens)
    return MicroBatch(pairs, sizes, cuts=tuple(cuts))


def _in_step(row: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Micro-batches that processes run at the same time, with as many passes each: sharded models meet in every pass."""
    passes = max(len(micro_batch.cuts) + 1 for micro_batch in row)
    return [replace(micro_batch, passes=passes) if passes > 1 else micro_batch for micro_batch in row]


def cut_points(sizes: np.ndarray, lengths: np.ndarray, budget: int) -> Sequence[int]:
    """Where to cut examples, sorted by falling length, so that computed tokens plus overheads are fewest.

    Exact, by dynamic programming from the end: best[i] = min over j of width(i) * pairs(i..j) + overhead + best[j].
    """
    count = len(lengths)
    pairs = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    best = np.zeros(count + 1)
    following: np.ndarray = np.zeros(count, dtype=np.int64)
    for i in range(count - 1, -1, -1):
        width = int(lengths[i])
        # The last j within the budget; an example that is over it goes alone.
        stop = int(np.searchsorted(pairs, pairs[i] + budget // max(width, 1), side="right")) - 1
        ends = slice(i + 1, max(stop, i + 1) + 1)
        costs = width * (pairs[ends] - pairs[i]) + MICRO_BATCH_OVERHEAD + best[ends]
        choice = int(np.argmin(costs))
        best[i], following[i] = costs[choice], i + 1 + choice
    points: list[int] = []
    at = int(following[0]) if count else 0
    while at < count:
        points.append(at)
        at = int(following[at])
    return points


def _length_range(examples: np.ndarray, draw: Draw, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of the shortest, of the longest pair of each example)."""
    sizes = draw.sizes[examples]
    shortest = np.minimum.reduceat(lengths[draw.of(examples)], np.cumsum(sizes) - sizes)
    return shortest, draw.lengths[examples]


def length_points(shortest: np.ndarray, longest: np.ndarray, sizes: np.ndarray, budget: int) -> Sequence[int]:
    """Where to cut examples, sorted by falling length, so that each part has pairs of one length within the budget, or one example."""
    points: list[int] = []
    pairs, length = 0, -1
    for i, (low, high, size) in enumerate(zip(shortest.tolist(), longest.tolist(), sizes.tolist(), strict=True)):
        joins = low == high == length and (pairs + size) * high <= budget
        if i and not joins:
            points.append(i)
        pairs = pairs + size if joins else size
        length = high if low == high else -1
    return points


def fill_points(tokens: np.ndarray, budget: int, first: np.ndarray | None = None) -> Sequence[int]:
    """Where to cut a list of examples of so many tokens: few parts within the budget, about equally full.

    Args:
        tokens: of each example, [n].
        budget: tokens of a part at most; a larger example is a part of its own.
        first: tokens more that each costs as the first of a part; None: nothing.
    """
    first = np.zeros_like(tokens) if first is None else first
    more = int(first.max())
    parts = max(-(-(int(tokens.sum()) - more) // max(budget - more, 1)), 1)
    goal = (int(tokens.sum()) + (parts - 1) * more) / parts
    points: list[int] = []
    filled = 0.0
    for i, (count, extra) in enumerate(zip(tokens.tolist(), first.tolist(), strict=True)):
        if filled and (filled + count > budget or filled + count / 2 > goal):
            points.append(i)
            filled, count = 0.0, count + extra
        filled += count
    return points


def pass_tokens(pairs: np.ndarray, lengths: np.ndarray, layout: Layout, trunks: Trunks | None) -> int:
    """Tokens that pairs compute as one pass, padding included."""
    if layout == "padded":
        return int(lengths[pairs].max()) * len(pairs)
    return int(computed(lengths, trunks, pairs).sum())


def example_tokens(
    examples: np.ndarray, draw: Draw, lengths: np.ndarray, layout: Layout, trunks: Trunks | None
) -> np.ndarray:
    """Tokens that each of some examples computes as a pass of its own, padding included, [examples]."""
    sizes = draw.sizes[examples]
    if layout == "padded":
        return draw.lengths[examples] * sizes
    own = computed(lengths, trunks, draw.of(examples), np.repeat(np.arange(len(examples)), sizes))
    return np.add.reduceat(own, np.cumsum(sizes) - sizes)


def computed_tokens(step: Step, lengths: np.ndarray, layout: Layout = "padded", trunks: Trunks | None = None) -> int:
    """Tokens that a step computes on all processes, padding and weight-0 repeats included (second passes are not)."""
    total = 0
    for micro_batch in (micro_batch for row in step.micro_batches for micro_batch in row):
        costs = [pass_tokens(piece, lengths, layout, trunks) for piece in micro_batch.pieces]
        total += sum(costs) + (micro_batch.passes - len(costs)) * costs[-1]
    return total
