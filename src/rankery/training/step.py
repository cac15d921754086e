"""What one step is: forward and backward passes of its micro-batches, one exchange, one update.

Contract: the loss of a step is the sum over its examples, on all processes, divided by their number. Random generators are
seeded before each pass through the model from (seed, step, first pair), so that a repeated or resumed step draws the same masks.
A group that is over the token budget takes two passes: scores without a graph first, then batch by batch with the gradient that
the loss has for each score; exact, since scores depend on each other only through the loss (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup"). A loss that is not finite stops before the update; running out of
memory repeats the step with half the token budget. Rejected: carrying generator states in checkpoints, which ties masks to the
number of processes and cuts.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from rankery.data.collate import Batch, StepBatches, Work
from rankery.errors import InputError
from rankery.models.budget import pad_multiple
from rankery.training import output
from rankery.training.engine import Engine
from rankery.training.offload import activations_on_cpu
from rankery.training.run import Run


def train_step(run: Run, number: int, works: list[Work]) -> tuple[float, float, bool]:
    """One optimiser update: (loss of the step, gradient norm before clipping, whether the weights were updated).

    Raises:
        InputError: a loss or gradient that is not finite, with the examples; or not even one pair fits into memory.
    """
    engine = run.engine
    pairs, sizes = run.plan.pairs(number)
    counts = run.objective.counts(torch.from_numpy(run.train_data.targets(pairs)), sizes)
    while True:
        run.optimizer.zero_grad(set_to_none=True)
        done, out_of_memory = _backward(run, number, works, counts)
        failed = sum(1 for loss, _, _ in done if not torch.isfinite(loss))
        total = float(sum(loss.cpu().double() for loss, _, _ in done)) if not failed else 0.0
        total, failed_anywhere, memory_anywhere = engine.sum(
            torch.tensor([total, float(failed), float(out_of_memory)], dtype=torch.float64)
        ).tolist()
        if not memory_anywhere:
            break
        works = _halve_budget(run, number)
    if failed_anywhere:
        raise _not_finite(run, number, "the loss", _culprits(engine, done))
    norm, updated = engine.update(run.optimizer, run.config.max_grad_norm)
    # fp16: an overflow, which scales the loss down
    if not math.isfinite(norm) and run.config.mixed_precision != "fp16":
        raise _not_finite(run, number, "the gradient", [int(pair) for pair in pairs])
    return total, norm, updated


# A micro-batch that ran: its share of the loss, and the logits of its pairs.
Done = tuple[torch.Tensor, torch.Tensor, Work]


def _backward(run: Run, number: int, works: list[Work], counts: tuple[int, ...]) -> tuple[list[Done], bool]:
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
            done.append((loss.detach(), logits.detach(), work))
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
    for loss, logits, work in done:
        finite = torch.isfinite(logits.reshape(len(work.pairs), -1)).all(dim=1).cpu().numpy()
        odd += work.pairs[~finite].tolist()
        near += [] if torch.isfinite(loss) else work.pairs.tolist()
    found = engine.gather((odd, near))
    return [pair for pairs, _ in found for pair in pairs] or [pair for _, pairs in found for pair in pairs]


def _not_finite(run: Run, number: int, what: str, pairs: list[int]) -> InputError:
    return InputError(
        f"{what} of step {number + 1} is not finite; nothing was updated. Examples: {run.train_data.named(pairs)}. "
        "Look at these lines; else try a smaller lr, or mixed_precision bf16 or no",
        shared=True,
    )


def step_batches(run: Run) -> StepBatches:
    """This process's micro-batches of each step, under the plan as it is now."""
    return StepBatches(run.train_data, run.plan, run.engine.process, pad_multiple(run.engine.device))
