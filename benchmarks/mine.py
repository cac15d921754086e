"""Mining: its speed over a large corpus, and what mined negatives bring to a training.

    python benchmarks/mine.py speed [--documents 100000 1000000]
    python benchmarks/mine.py wikiqa --data ../shared/data --results FILE [--seeds 1 2 3]

`speed` makes a corpus of 30 to 90 words a document (Zipf's law over a million words, exponent 1) and queries of 8 words by the same
law, so that a query's words are mostly frequent ones; each size runs in a process of its own. `wikiqa` trains on the given negatives
alone, and on those and mined ones (BM25 and the base's embeddings in turns, ranks 1 to 30, the training split's own documents), with
the settings of losses.py, whose FILE of results it shares: a training that is finished there is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from losses import SHOWN, trained, wikiqa
from machine import machine

from rankery.data.records import read_records
from rankery.demo_data import base_model_path
from rankery.evaluation.metrics import bootstrap_interval, metrics_table
from rankery.mining.mine import mine
from rankery.mining.retrievers import Bm25Retriever
from rankery.mining.rows import read_corpus
from rankery.mining.select import Rules, candidates

WORDS, QUERY_WORDS = 1_000_000, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["speed", "wikiqa"])
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="folder with wikiqa/")
    parser.add_argument("--results", type=Path, help="file that keeps finished trainings; mined data goes beside it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", choices=["given", "mined"], help="one of the trainings (to share the work)")
    parser.add_argument("--negatives", type=int, default=7)
    parser.add_argument("--last-rank", type=int, default=30)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    print(machine(), flush=True)
    if arguments.task == "speed":
        speed(arguments.documents, arguments.queries)
        return
    if not arguments.data or not arguments.results:
        parser.error("wikiqa wants --data and --results")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.epochs, arguments.precision = 2, "no"
    quality(arguments)


def speed(sizes: list[int], queries: int) -> None:
    print(f"{'documents':>9}  {'reading':>9}  {'indexing':>9}  {'queries/s':>9}  {'peak memory':>11}")
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, size, queries)
            command = [sys.executable, __file__, "speed", "--one", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        reading, indexing, rate, peak = json.loads(done.stdout.splitlines()[-1])
        print(f"{size:9,}  {reading:7.1f} s  {indexing:7.1f} s  {rate:9.1f}  {peak:8.2f} GB", flush=True)


def make(folder: Path, documents: int, queries: int) -> None:
    """A corpus, and queries whose positive is one of its documents."""
    random = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, WORDS + 1))
    names = np.array([f"w{i}" for i in range(WORDS)], dtype=object)

    def text(words: int) -> str:
        return " ".join(names[np.searchsorted(shares, random.random(words) * shares[-1])])

    with (folder / "corpus.jsonl").open("w") as file:
        for _ in range(documents):
            file.write(json.dumps({"text": text(int(random.integers(30, 91)))}) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for _ in range(queries):
            file.write(json.dumps({"query": text(QUERY_WORDS), "pos": [text(60)]}) + "\n")


def measure(folder: Path) -> tuple[float, float, float, float]:
    """(seconds of reading the corpus, seconds of indexing it, queries a second with the choice of negatives, peak memory in GB)."""
    times = [time.perf_counter()]
    documents = read_corpus([folder / "corpus.jsonl"])
    times.append(time.perf_counter())
    retriever, rules = Bm25Retriever(documents), Rules()
    times.append(time.perf_counter())
    queries = [record.query for record in read_records([folder / "queries.jsonl"])]
    for query, found in zip(queries, retriever.search(queries, rules.last, None), strict=True):
        candidates(query, {"bm25": found}, documents.__getitem__, (), rules)
    times.append(time.perf_counter())
    reading, indexing, searching = np.diff(times)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return reading, indexing, len(queries) / searching, int(line.split()[1]) / 1e6


def quality(arguments: argparse.Namespace) -> None:
    given, base = wikiqa(arguments.data / "wikiqa"), base_model_path()
    file = arguments.results.with_name(f"wikiqa mined {arguments.negatives} to {arguments.last_rank}.jsonl")
    summary = mine(
        given.train, file, by=["bm25", str(base)], ranks=(1, arguments.last_rank), negatives=arguments.negatives,
        overwrite=True,
    )  # fmt: skip
    print(f"{summary}\n", flush=True)
    tasks = {"given": given, "mined": replace(given, name=file.stem, train=file)}
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, task in tasks.items():
        if arguments.only in (None, name):
            tables = trained(task, "listwise_ce", 1e-4, arguments.seeds, "test", arguments)
            values[name] = {key: np.mean([table[key] for table in tables], axis=0) for key in SHOWN}
    rows = {name: {key: float(column.mean()) for key, column in table.items()} for name, table in values.items()}
    print(f"listwise_ce, lr 1e-4, 2 epochs, seeds {arguments.seeds}, test\n{metrics_table(rows)}\n")
    for key in SHOWN if len(values) == 2 else ():
        difference = values["mined"][key] - values["given"][key]
        low, high = bootstrap_interval(difference, 0)
        print(f"mined - given: {key} {difference.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f}")


if __name__ == "__main__":
    main()
