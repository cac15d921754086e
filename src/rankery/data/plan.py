"""Lengths, seed, batch and budget -> which examples meet in which step, process and micro-batch. Pure; numpy only.

Contract: an *example* is a list of pairs that belong together (one pair for pointwise losses, a query's group for others).
Every example comes once an epoch. Which examples form a step depends on seed, epoch and effective batch size alone.
How a step is cut (by length, under a token budget, over processes) never changes what is learnt: processes get equal
numbers of micro-batches, short ones get weight-0 repeats, and the loss is divided by the step's global count.

Cost: a permutation of n an epoch; a cut is O(examples x largest micro-batch) numpy work, well under a millisecond for 32.
Rejected: bucketing by length over the whole epoch (steps then see one length only, which biases training), and a plain
"fill up to the budget" (pads up to twice as much as the optimal cut below).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MICRO_BATCH_OVERHEAD = 64  # fixed cost of a micro-batch, in tokens: what starting its kernels would have computed
CUT_WINDOW = 4096  # examples cut at once; longer lists are cut window by window, in order of length


@dataclass(frozen=True)
class MicroBatch:
    """Examples that run through the model together; weight 0 keeps processes in step and adds nothing."""

    examples: np.ndarray  # [examples] indices
    weight: float = 1.0


@dataclass(frozen=True)
class Step:
    """One optimiser update: `micro_batches[process]` are what each process runs, equally many for all."""

    number: int  # counts from 0 over the whole training
    epoch: int
    examples: np.ndarray  # [examples] all examples of the step, in drawing order
    micro_batches: tuple[tuple[MicroBatch, ...], ...]


@dataclass(frozen=True)
class Plan:
    """The steps of a training, computed when asked for.

    Args:
        sizes: pairs of each example, [examples].
        lengths: tokens of each example's longest pair, [examples].
        batch: examples a step: batch_size x gradient_accumulation_steps x processes.
        budget: tokens a micro-batch computes at most, padding included; a longer example runs alone.
    """

    sizes: np.ndarray
    lengths: np.ndarray
    seed: int
    batch: int
    processes: int
    budget: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch)

    def examples(self, number: int) -> np.ndarray:
        """The examples of step `number`, in drawing order."""
        epoch, within = divmod(number, self.steps_per_epoch)
        return epoch_order(len(self.lengths), self.seed, epoch)[within * self.batch : (within + 1) * self.batch]

    def step(self, number: int) -> Step:
        """Step `number`, cut and dealt."""
        examples = self.examples(number)
        dealt = deal(examples, self.sizes, self.lengths, self.processes, self.budget)
        return Step(number, number // self.steps_per_epoch, examples, dealt)


@lru_cache(maxsize=1)  # every step of an epoch asks for it
def epoch_order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch draws its examples; read-only."""
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(examples)
    order.setflags(write=False)
    return order


def deal(
    examples: np.ndarray, sizes: np.ndarray, lengths: np.ndarray, processes: int, budget: int
) -> tuple[tuple[MicroBatch, ...], ...]:
    """Cuts examples into micro-batches and deals them to processes, longest first, equally many to each."""
    by_length = examples[np.argsort(-lengths[examples], kind="stable")]
    blocks: list[np.ndarray] = []
    for start in range(0, len(by_length), CUT_WINDOW):
        window = by_length[start : start + CUT_WINDOW]
        blocks += np.split(window, cut_points(sizes[window], lengths[window], budget))
    costs = [_cost(block, sizes, lengths) for block in blocks]
    while len(blocks) % processes and max(map(len, blocks)) > 1:
        widest = max((i for i in range(len(blocks)) if len(blocks[i]) > 1), key=costs.__getitem__)
        halves = np.array_split(blocks[widest], 2)
        blocks[widest : widest + 1] = halves
        costs[widest : widest + 1] = [_cost(half, sizes, lengths) for half in halves]
    order = sorted(range(len(blocks)), key=lambda i: -costs[i])
    micro_batches = [MicroBatch(blocks[i]) for i in order]
    while len(micro_batches) % processes:
        micro_batches.append(MicroBatch(by_length[-1:], weight=0.0))
    rounds = [micro_batches[i : i + processes] for i in range(0, len(micro_batches), processes)]
    # Every other round is dealt backwards, so that no process gets the costliest of each round.
    rounds = [row[::-1] if i % 2 else row for i, row in enumerate(rounds)]
    return tuple(tuple(row[process] for row in rounds) for process in range(processes))


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


def _cost(block: np.ndarray, sizes: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens that a micro-batch computes, padding included."""
    return int(lengths[block].max()) * int(sizes[block].sum())


def computed_tokens(step: Step, sizes: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens that a step computes on all processes, padding and weight-0 repeats included."""
    return sum(_cost(micro_batch.examples, sizes, lengths) for row in step.micro_batches for micro_batch in row)
