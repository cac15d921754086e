"""The steps of a distillation in several processes: `rankery score` and `rankery train`, each under a launcher of its own.

Contract: what is written is what the same step writes in one process (scores), or with as large an optimiser step (models). Cost:
the processes start, and open the model, once for each step. Rejected: the whole distillation in every process, where the group
that scores on the host would stay in the way of the one that trains on accelerators.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankery.config import TrainConfig, dump_config
from rankery.errors import InputError, check_whole
from rankery.launcher import launch
from rankery.models.folders import write_whole
from rankery.processes import check_count


def check_processes(processes: int) -> None:
    """Whether so many can be started here.

    Raises:
        InputError: fewer than one, or a launcher runs this already.
    """
    check_whole("processes", processes)
    check_count(processes)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        raise InputError(
            f"a launcher runs rankery distil in {launched} processes, but it starts its own: run it without the launcher, with "
            f"--processes {launched}",
            shared=True,
        )


def score_launched(processes: int, data: Sequence[Path], output: Path, **options: Any) -> None:
    """`rankery score` of the data with its options, each a value, several, or None."""
    words = ["score", "--data", *map(str, data), "--output", str(output)]
    for name, given in options.items():
        values = given if isinstance(given, list | tuple) else [given]
        words += [f"--{name}={value}" for value in values if value is not None]
    _launched(processes, words)


def train_launched(processes: int, config: TrainConfig) -> None:
    """`rankery train` of a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        write_whole(file, dump_config(config))
        _launched(processes, ["train", "--config", str(file)])


def _launched(processes: int, words: Sequence[str]) -> None:
    """Runs rankery in several processes, which may have the memory of the accelerators that this one has kept.

    Raises:
        ChildProcessError: one of them failed, and has said why.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if status := launch(processes, "ddp", words):
        raise ChildProcessError(f"rankery {words[0]} in {processes} processes ended with status {status}; see above")
