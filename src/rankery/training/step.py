"""What one step is: forward and backward passes of its micro-batches, one exchange, one update.

Contract: the loss of a step is the sum over its examples, on all processes, divided by their number. Random generators are
seeded before each pass through the model from (seed, step, first pair), so that a repeated or resumed step draws the same masks.
A group that is over the token budget takes two passes: scores without a graph first, then batch by batch with the gradient that
the loss has for each score; exact, since scores depend on each other only through the loss (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup"). A loss that is not finite stops before the update; running out of
memory repeats the step with half the token budget. A step does not wait for the device: its numbers are read later (`settle`),
and until then the device itself holds updates back. Rejected: carrying generator states in checkpoints, which ties masks to the
number of processes and cuts.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from rankery.data.collate import Batch, StepBatches, Work
from rankery.errors import InputError
from rankery.models.budget import pad_multiple
from rankery.models.loading import DROPOUT_NAMES
from rankery.models.varlen import takes
from rankery.training import output
from rankery.training.engine import DTYPES, Engine, enough_memory
from rankery.training.offload import activations_on_cpu
from rankery.training.run import Run

# A micro-batch that ran: its share of the loss, the logits of its pairs, and which pairs.
Done = tuple[torch.Tensor, torch.Tensor, np.ndarray]


class Arriving:
    """Numbers on their way from a device: reading them waits for what they depend on, not for what was launched after it."""

    def __init__(self, values: torch.Tensor):
        self.values, self.event = values, None
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
        return self.values.tolist()


@dataclass(frozen=True)
class Outcome:
    """What a step came to; `settle` reads it."""

    number: int
    pairs: np.ndarray
    lr: float
    updated: bool  # the weights, if loss and gradient are finite
    numbers: Arriving  # (loss of the step, gradient norm before clipping)
    done: list[Done]
    works: list[Work]  # what this process ran


def train_step(run: Run, number: int, works: list[Work]) -> Outcome:
    """One optimiser update, on its way.

    Raises:
        InputError: not even one pair fits into memory, or not the optimiser's state.
    """
    engine = run.engine
    pairs, sizes = run.plan.pairs(number)
    counts = run.objective.counts(torch.from_numpy(run.train_data.targets(pairs)), sizes)
    while True:
        run.optimizer.zero_grad(set_to_none=True)
        done, out_of_memory = backward(run, number, works, counts)
        if not engine.any(out_of_memory):
            break
        works = _halve_budget(run, number)
    exact = torch.float32 if engine.device.type == "mps" else torch.float64
    total = engine.sum(torch.stack([loss for loss, _, _ in done]).to(exact).sum())
    with enough_memory("the update"):
        norm, updated = engine.update(run.optimizer, run.config.max_grad_norm, total)
    numbers = Arriving(torch.stack([total, norm.to(total.device, exact)]))
    return Outcome(number, pairs, run.optimizer.param_groups[0]["lr"], updated, numbers, done, works)


def settle(run: Run, outcome: Outcome) -> tuple[float, float]:
    """(loss of a step, gradient norm before clipping).

    Raises:
        InputError: one of them is not finite, with the examples; that step updated nothing, nor did any after it.
    """
    loss, norm = outcome.numbers.read()
    if not math.isfinite(loss):
        raise _not_finite(run, outcome.number, "the loss", _culprits(run.engine, outcome.done))
    # fp16: an overflow, which scales the loss down
    if not math.isfinite(norm) and run.config.mixed_precision != "fp16":
        raise _not_finite(run, outcome.number, "the gradient", [int(pair) for pair in outcome.pairs])
    return loss, norm


def backward(run: Run, number: int, works: list[Work], counts: tuple[int, ...]) -> tuple[list[Done], bool]:
    """Local forward and backward passes: (what ran, whether memory ran out)."""
    done: list[Done] = []
    try:
        for waiting in works:
            work, is_last = waiting.to(run.engine.device), waiting is works[-1]
            if work.passes > 1:
                loss, logits = _backward_in_two_passes(run, number, work, counts, is_last)
            else:
                logits = _logits(run, number, work.batches[0], int(work.pairs[0]))
                loss = run.objective(logits, work.targets, work.sizes, counts) * work.weight
                run.engine.backward(loss, is_last)
            done.append((loss.detach(), logits.detach(), work.pairs))
    except torch.OutOfMemoryError:
        if run.engine.sharded:
            stop_all(run)
        return [], True
    return done, False


def _backward_in_two_passes(
    run: Run, number: int, work: Work, counts: tuple[int, ...], is_last: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of a micro-batch whose pairs do not go through the model at once; returns (its share of the loss, logits)."""
    with torch.no_grad():
        scores = [_logits(run, number, batch, first) for batch, first, _ in _passes(work, run.engine)]
    leaf = torch.cat(scores[: len(work.batches)]).float().requires_grad_()
    loss = run.objective(leaf, work.targets, work.sizes, counts) * work.weight
    loss.backward()
    assert leaf.grad is not None
    gradients = leaf.grad.split([len(piece) for piece in scores[: len(work.batches)]])
    for at, (batch, first, counted) in enumerate(_passes(work, run.engine), 1):
        logits = _logits(run, number, batch, first)
        # A repeated batch runs for the other processes' sake, and weighs nothing.
        share = (logits.float() * gradients[min(at, len(gradients)) - 1]).sum() * float(counted)
        run.engine.backward(share, is_last and at == work.passes)
    return loss, leaf


def _passes(work: Work, engine: Engine) -> Iterator[tuple[Batch, int, bool]]:
    """(batch, its first pair, whether it counts) of each pass of a micro-batch."""
    starts, at = [], 0
    for batch in work.batches:
        starts.append(at)
        at += len(batch)
    for index in range(work.passes):
        own = min(index, len(work.batches) - 1)
        yield work.batches[own].to(engine.device), int(work.pairs[starts[own]]), index == own


def _logits(run: Run, number: int, batch: Batch, first: int) -> torch.Tensor:
    """One pass through the model, with the dropout masks that belong to this step and pair."""
    torch.manual_seed(hash((run.config.seed, number, first)) & (2**63 - 1))
    with run.engine.autocast(), activations_on_cpu(run.config.activation_offload, run.engine.device):
        return run.model(*batch.arguments)


def _halve_budget(run: Run, number: int) -> list[Work]:
    """The step's micro-batches, cut again under half the token budget."""
    rows = run.plan.step(number).micro_batches
    if all(len(piece) == 1 for row in rows for micro_batch in row for piece in micro_batch.pieces):
        fix = "set a smaller max_len, or gradient_checkpointing=true"
        raise InputError(f"out of memory with one pair at a time; {fix}", shared=True)
    run.plan = replace(run.plan, budget=run.plan.budget // 2)
    run.config = run.config.model_copy(update={"token_budget": run.plan.budget})
    run.optimizer.zero_grad(set_to_none=True)
    if run.engine.device.type == "cuda":
        torch.cuda.empty_cache()
    run.say(
        f"out of memory: the step is repeated with token_budget {run.plan.budget} (the result is the same, to rounding)"
    )
    return step_batches(run)[number]


def stop_all(run: Run) -> None:
    """Sharded engines cannot repeat a step or an evaluation: the others wait inside a collective call. The launcher stops them."""
    budget = run.plan.budget // 2
    output.lower_token_budget(run.folder, budget)
    print(
        f"error: process {run.engine.process} ran out of memory at token_budget {run.plan.budget}; start again with "
        f"resume=true, which goes on with token_budget {budget}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _culprits(engine: Engine, done: list[Done]) -> list[int]:
    """Pairs of all processes whose own logits are not finite; if there are none, all of the micro-batches whose loss is not."""
    odd: list[int] = []
    near: list[int] = []
    for loss, logits, pairs in done:
        finite = torch.isfinite(logits.reshape(len(pairs), -1)).all(dim=1).cpu().numpy()
        odd += pairs[~finite].tolist()
        near += [] if torch.isfinite(loss) else pairs.tolist()
    found = engine.gather((odd, near))
    return [pair for some, _ in found for pair in some] or [pair for _, some in found for pair in some]


def _not_finite(run: Run, number: int, what: str, pairs: list[int]) -> InputError:
    return InputError(
        f"{what} of step {number + 1} is not finite; nothing was updated. Examples: {run.train_data.named(pairs)}. "
        "Look at these lines; else try a smaller lr, or mixed_precision bf16 or no",
        shared=True,
    )


def step_batches(run: Run) -> StepBatches:
    """This process's micro-batches of each step, under the plan as it is now."""
    engine, config = run.engine, run.reranker.model.config
    has_dropout = any(getattr(config, name, 0) for name in DROPOUT_NAMES["attention"])  # which the kernel has not
    chunked = has_dropout or not takes(engine.device, DTYPES[engine.precision])
    return StepBatches(run.train_data, run.plan, engine.process, pad_multiple(engine.device), chunked)
