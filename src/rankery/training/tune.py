"""`rankery tune`: which token budget trains fastest here, measured once and kept (tuned.py).

Contract: the same steps of the user's own data are computed forward and backward under every budget, which take turns; nothing
is updated and no output folder is touched. The smallest budget within a fiftieth of the fastest wins: it needs least memory, and
noise chooses less. Cost: about a minute on a small model. Rejected: measuring when a training starts, which would choose
different cuts in different runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rankery.arguments import checked
from rankery.config import key_places, load_config
from rankery.data.examples import computed
from rankery.errors import InputError
from rankery.models.budget import keep_large_blocks
from rankery.training.run import Run, rehearsal
from rankery.training.step import backward, step_batches
from rankery.training.tuned import tuned_file, tuned_key, write_tuned

SMALLEST, LARGEST = 512, 1 << 17
NEAR = 0.98  # of the fastest counts as fast
Measured = dict[int, list[float]]  # tokens a second of each round, by budget


@checked
def tune(config: str | Path | Mapping[str, Any] | None, say: Callable[[str], None] = print, **overrides: Any) -> int:
    """Measures token budgets for a training configuration; returns and keeps the one to use.

    Args:
        config: YAML file or mapping, as for `train`.
        say: is given the lines of the report.
        overrides: keys that replace those of `config`.

    Raises:
        InputError: anything wrong with configuration, data or model; not even the smallest budget fits into memory.
    """
    parsed = load_config(config, overrides)
    keep_large_blocks()
    free: dict[str, Any] = {"val_dataset": None, "log_with": "none", "patience": None, "token_budget": SMALLEST}
    try:
        with rehearsal(parsed, **free) as run:
            measured = measure(run)
    except InputError as error:
        raise error.placed(key_places(config, overrides)) from error
    if not measured:
        raise InputError(f"a micro-batch of {SMALLEST} tokens does not fit into memory; set a smaller max_len")
    chosen = fastest(measured)
    key = tuned_key(parsed, run.reranker.model.config, run.plan.layout, run.engine.device)
    write_tuned(tuned_file(parsed), key, chosen)
    best = max(map(statistics.median, measured.values()))
    say("token_budget   tokens/s   of the fastest")
    for budget, rates in measured.items():
        rate = statistics.median(rates)
        say(f"{budget:12,} {rate:10,.0f} {rate / best:15.0%}{'   <- kept' if budget == chosen else ''}")
    say(f"kept in {tuned_file(parsed)} for: {key}")
    return chosen


def measure(run: Run, rounds: int = 3, seconds: float = 2.0) -> Measured:
    """Tokens a second under budgets that double until a step is whole or memory is out."""
    run.model.train()
    steps = [0]
    begun = time.perf_counter()
    _timed(run, steps)  # a warm-up that nobody counts
    while time.perf_counter() - begun < seconds and len(steps) < run.plan.steps_per_epoch:
        steps.append(len(steps))
        _timed(run, steps[-1:])
    counts = [int(computed(run.plan.lengths, run.plan.trunks, run.plan.pairs(number)[0]).sum()) for number in steps]
    tokens, largest = sum(counts), max(counts)
    budgets, measured = [SMALLEST], Measured()
    while budgets[-1] < min(largest, LARGEST):
        budgets.append(budgets[-1] * 2)
    for _ in range(rounds):
        for budget in list(budgets):
            run.plan = replace(run.plan, budget=budget)
            taken = _timed(run, steps)
            if taken is None:  # larger ones do not fit either
                budgets = [smaller for smaller in budgets if smaller < budget]
                measured = {smaller: measured[smaller] for smaller in budgets}
                break
            measured.setdefault(budget, []).append(tokens / taken)
    return measured


def fastest(measured: Measured) -> int:
    """The smallest budget that is about as fast as any."""
    rates = {budget: statistics.median(values) for budget, values in measured.items()}
    return min(budget for budget, rate in rates.items() if rate >= NEAR * max(rates.values()))


def _timed(run: Run, steps: list[int]) -> float | None:
    """Seconds of forward and backward passes of some steps; None if memory ran out."""
    batches, device = step_batches(run), run.engine.device
    begun = time.perf_counter()
    for number in steps:
        pairs, sizes = run.plan.pairs(number)
        counts = run.objective.counts(torch.from_numpy(run.train_data.targets(pairs)), sizes)
        _, out_of_memory = backward(run, number, batches[number], counts)
        run.optimizer.zero_grad(set_to_none=True)
        if out_of_memory:
            return None
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - begun
