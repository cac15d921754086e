"""Peak memory of a training step on one group, by the number of its documents: it is that of one part, whatever the group.

    python benchmarks/group_memory.py [--documents 16 64 256 1024] [--tokens 128]

Each size runs in a process of its own: one step of listwise_ce on one query, all-MiniLM-L6-v2, fp32. Prints the growth of anonymous
memory (RssAnon) over the loaded model, and the same for one pass over the whole group (token budget above it), as long as that
stays below --most-whole documents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from machine import machine

from rankery import demo_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--tokens", type=int, default=128, help="of a pair")
    parser.add_argument("--most-whole", type=int, default=256)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.tokens, arguments.budget)))
        return
    print(machine(), flush=True)
    print("documents  parts of 2,048 tokens  whole group")
    for documents in arguments.documents:
        cells = []
        for budget in (2048, documents * arguments.tokens):
            if budget > 2048 and documents > arguments.most_whole:
                cells.append("-")
                continue
            words = ["--one", str(documents), "--budget", str(budget), "--tokens", str(arguments.tokens)]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
            grown, seconds = json.loads(done.stdout.splitlines()[-1])
            cells.append(f"{grown:.0f} MB, {seconds:.1f} s")
        print(f"{documents:9}  {cells[0]:>21}  {cells[1]:>16}", flush=True)


def measure(documents: int, tokens: int, budget: int) -> tuple[float, float]:
    """(MB that a step adds to the anonymous memory of the loaded run, its seconds)."""
    from rankery.config import load_config
    from rankery.models.budget import keep_large_blocks
    from rankery.training.engine import start_engine
    from rankery.training.run import build
    from rankery.training.step import step_batches, train_step

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = {
            "query": "word",
            "pos": ["word " * tokens],
            "neg": [f"{'other ' * tokens}{i}" for i in range(documents - 1)],
        }
        (folder / "data.jsonl").write_text(json.dumps(row) + "\n")
        config = load_config(
            {
                "model_name_or_path": str(demo_data.base_model_path()), "train_dataset": str(folder / "data.jsonl"),
                "output_dir": str(folder / "out"), "loss_type": "listwise_ce", "max_len": tokens, "token_budget": budget,
                "log_with": "none", "hidden_dropout": 0.0, "attention_dropout": 0.0, "dataset_cache_dir": str(folder),
            }
        )  # fmt: skip
        keep_large_blocks()
        run = build(config, start_engine(config))
        works = step_batches(run)[0]
        before, peak, done = anonymous(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        begun = time.perf_counter()
        train_step(run, 0, works)
        seconds = time.perf_counter() - begun
        done.set()
        watcher.join()
        return peak[0] - before, seconds


def anonymous() -> float:
    """Anonymous memory of this process, MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
