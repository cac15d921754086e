"""Training on more and more data: peak anonymous memory (RssAnon), start-up and speed at 10,000 and at 1,000,000 pairs.

    python benchmarks/memory.py [--pairs 10000 1000000] [--steps 200]

Each size runs in a process of its own: read, check, tokenise, plan, then 200 steps. The data is the worst shape for
memory: one pair a line, every query and every teacher's score different. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from machine import machine
from work import BATCH

WORDS = [
    "sun",
    "moon",
    "star",
    "rain",
    "snow",
    "wind",
    "river",
    "lake",
    "sea",
    "hill",
    "stone",
    "sand",
    "tree",
    "leaf",
    "root",
    "seed",
    "rose",
    "fern",
    "moss",
    "bird",
    "fish",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a data file: run on it, in this process
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure), arguments.steps)))
        return
    print(machine())
    peaks = []
    for pairs in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            data = write(Path(folder) / "pairs.jsonl", pairs)
            command = [sys.executable, __file__, "--measure", str(data), "--steps", str(arguments.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            size = data.stat().st_size / 1e6
        peaks.append(found["peak"])
        print(
            f"{pairs:9,} pairs ({size:.0f} MB): peak {found['peak'] / 1e6:.0f} MB of anonymous memory; read and tokenised in "
            f"{found['prepared']:.0f} s, opened again in {found['opened']:.1f} s, {arguments.steps} steps in "
            f"{found['trained']:.0f} s ({BATCH * arguments.steps / found['trained']:.0f} pairs/s)",
            flush=True,
        )
    print(
        f"more at {arguments.pairs[-1]:,} pairs than at {arguments.pairs[0]:,}: {(peaks[-1] - peaks[0]) / 1e6:.0f} MB"
    )


def write(path: Path, pairs: int) -> Path:
    """Pairs of about 20 words: what grows with the data is their number."""
    chooser = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            query = f"{number} {' '.join(chooser.choices(WORDS, k=6))}"
            content = " ".join(chooser.choices(WORDS, k=chooser.randint(5, 20)))
            file.write(json.dumps({"query": query, "content": content, "label": chooser.random()}) + "\n")
    return path


def measure(data: Path, steps: int) -> dict[str, float]:
    from rankery.config import load_config
    from rankery.demo_data import base_model_path
    from rankery.models.budget import computes_bf16, keep_large_blocks
    from rankery.training import loop
    from rankery.training.describe import describe
    from rankery.training.engine import start_engine
    from rankery.training.run import build

    os.environ["HF_HUB_OFFLINE"] = "1"
    keep_large_blocks()
    peak = Peak()
    settings = {
        "model_name_or_path": str(base_model_path()), "train_dataset": str(data), "output_dir": str(data.parent / "out"),
        "dataset_cache_dir": str(data.parent / "cache"), "batch_size": BATCH, "max_len": 64, "attention_dropout": 0.0,
        "mixed_precision": "bf16" if computes_bf16() else "no", "log_with": "none", "overwrite": True,
        "epochs": steps,  # enough of them, however little the data
    }  # fmt: skip
    config = load_config(settings)
    times = [time.perf_counter()]
    build(config, start_engine(config))
    times.append(time.perf_counter())
    run = build(config, start_engine(config))  # finds its tokens in the cache
    times.append(time.perf_counter())
    run.say(describe(run))
    run.model.train()
    for number, batches in loop._steps(run, 0):
        if number == steps:
            break
        loop.train_step(run, number, batches)
    times.append(time.perf_counter())
    return {
        "peak": peak.stop(), "prepared": times[1] - times[0], "opened": times[2] - times[1], "trained": times[3] - times[2],
    }  # fmt: skip


class Peak:
    """The largest RssAnon of this process, looked at fifty times a second."""

    def __init__(self) -> None:
        self.bytes, self.stopped = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stopped.wait(0.02):
            self.bytes = max(self.bytes, anonymous_memory())

    def stop(self) -> int:
        self.stopped.set()
        self.thread.join()
        return max(self.bytes, anonymous_memory())


def anonymous_memory() -> int:
    """RssAnon of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


if __name__ == "__main__":
    main()
