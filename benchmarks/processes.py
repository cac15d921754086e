"""Training speed of one process and of two that share this machine, by the command line.

    python benchmarks/processes.py [--steps 12] [--rounds 3] [--precision no]

The same docstring pairs and steps of 64 pairs; pairs a second from each run's timings.jsonl, over all but its first log.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import machine
from work import work, write

from rankery.demo_data import base_model_path

STEP = 64  # pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    arguments = parser.parse_args()
    print(machine(), flush=True)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        data = write(work("docstrings", STEP * arguments.steps, None).pairs, Path(name))
        for _ in range(arguments.rounds):
            for processes, found in rates.items():
                found.append(rate(data, processes, arguments.precision))
    for processes, found in rates.items():
        print(f"{processes} process{'es' if processes > 1 else ''}: {statistics.median(found):.1f} pairs/s")
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"two / one: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")


def rate(data: Path, processes: int, precision: str) -> float:
    """Pairs a second of a training."""
    output = data.parent / "out"
    settings = {
        "model_name_or_path": base_model_path(), "train_dataset": data, "output_dir": output, "overwrite": "true",
        "dataset_cache_dir": data.parent / "cache", "batch_size": STEP // processes, "epochs": 1, "log_interval": 2,
        "attention_dropout": 0, "log_with": "none", "save_on_epoch_end": "false", "mixed_precision": precision,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "rankery.cli", "train", "--processes", str(processes), *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    rows = [json.loads(line) for line in (output / "timings.jsonl").read_text().splitlines()]
    return statistics.harmonic_mean([row["pairs_per_second"] for row in rows if "pairs_per_second" in row][1:])


if __name__ == "__main__":
    main()
