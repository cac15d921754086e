"""Time and memory of `rankery evaluate` on runs that exist: the same kind of TREC files at two sizes, each in a process of its own.

    python benchmarks/evaluate.py [--pairs 250000 1000000] [--documents 100] [--runs 1 2]

Prints seconds and the peak of anonymous memory (RssAnon), with every output written. Judgements are binary, one document in 20 is relevant;
ids are 12 characters long. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine
from memory import Peak, anonymous_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[250_000, 1_000_000])
    parser.add_argument("--documents", type=int, default=100, help="of each query")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a folder: evaluate its files, in this process
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure))))
        return
    print(machine())
    for pairs in arguments.pairs:
        for runs in arguments.runs:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), pairs // arguments.documents, arguments.documents, runs)
                command = [sys.executable, __file__, "--measure", folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{pairs:,} pairs of {pairs // arguments.documents:,} queries, {runs} run(s): {found['seconds']:.1f} s, peak "
                f"{found['peak'] / 1e6:.0f} MB of anonymous memory, {found['start'] / 1e6:.0f} MB before",
                flush=True,
            )


def write(folder: Path, queries: int, documents: int, runs: int) -> None:
    """qrels.txt and 0.trec, 1.trec, ... whose scores know something of the relevance."""
    random = np.random.default_rng(0)
    relevant = random.random((queries, documents)) < 0.05
    with (folder / "qrels.txt").open("w") as file:
        for q in range(queries):
            file.writelines(
                f"query{q:07d} 0 doc{q * documents + d:09d} {int(relevant[q, d])}\n" for d in range(documents)
            )
    for run in range(runs):
        scores = relevant * (1 + 0.1 * run) + random.standard_normal((queries, documents))
        with (folder / f"{run}.trec").open("w") as file:
            for q in range(queries):
                order = np.argsort(-scores[q]).tolist()
                file.writelines(
                    f"query{q:07d} Q0 doc{q * documents + d:09d} {place} {scores[q, d]:.6f} run{run}\n"
                    for place, d in enumerate(order, 1)
                )


def measure(folder: Path) -> dict[str, float]:
    """Seconds and bytes of one evaluation."""
    from rankery import evaluate

    peak, start, begun = Peak(), anonymous_memory(), time.perf_counter()
    evaluate(runs=sorted(folder.glob("*.trec")), qrels=folder / "qrels.txt", output=folder / "out")
    return {"seconds": time.perf_counter() - begun, "peak": peak.stop(), "start": start}


if __name__ == "__main__":
    main()
