"""Several processes that share the scoring of one command: how they are started, and how they meet.

Contract: `--processes N` runs the same command N times under accelerate's launcher; each learns its number from the launcher's
variables, as it does under a launcher that was started by hand. Cost: nothing with one process. Rejected: a pool of forked workers
(models and accelerators do not survive a fork).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankery.errors import InputError, option, shown
from rankery.launcher import launch
from rankery.lifeline import end_with_parent

if TYPE_CHECKING:
    import numpy as np

MOST_PROCESSES = 256


@dataclass(frozen=True)
class Group:
    """The processes of a command; `meet` returns when all have called it, `add_up` gives each the sum of all their arrays."""

    process: int = 0
    processes: int = 1
    meet: Callable[[], object] = lambda: None
    add_up: Callable[[np.ndarray], np.ndarray] = lambda values: values


def relaunched(arguments: argparse.Namespace) -> int | None:
    """The exit status of the command run again in `--processes` processes; None: run it here.

    Raises:
        InputError: fewer than one process, or several where a launcher runs this already.
    """
    check_count(arguments.processes)
    if arguments.processes > 1 and "LOCAL_RANK" in os.environ:
        raise InputError(
            f"{option('processes')} is {arguments.processes}; expected nothing where a launcher runs this already"
        )
    if arguments.processes == 1:
        return None
    words = arguments.words
    at = next(i for i, word in enumerate(words) if word.startswith("--processes"))
    del words[at : at + (1 if "=" in words[at] else 2)]
    return launch(arguments.processes, "ddp", words)


def check_count(processes: int) -> None:
    """Whether so many can be started on one machine.

    Raises:
        InputError: fewer than one, or more than any machine has use for, which it would not live through.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise InputError(
            f"{option('processes')} is {shown(processes)}; expected at least 1, and {MOST_PROCESSES} at most"
        )


def joined() -> Group:
    """The group that a launcher has put this process into; alone without one."""
    process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return Group()
    end_with_parent()
    from datetime import timedelta

    import torch

    # Models may load, and texts be scored, at different speeds.
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))

    def add_up(values: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(total)
        return total.numpy()

    return Group(process, processes, torch.distributed.barrier, add_up)


def own_device(wanted: str | None) -> str | None:
    """The accelerator of this process, where a launcher gave each its own; `cuda` asks for one of its kind, `cuda:1` for that one."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        if wanted is None or (kind is not None and wanted == kind.type):
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    return wanted
