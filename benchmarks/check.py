"""Speed and memory of `rankery check`: the same kind of data at two sizes, each checked in a process of its own.

    python benchmarks/check.py [--megabytes 100 1000] [--shape groups] [--against]

Prints seconds, MB/s and the peak of anonymous memory (RssAnon). `groups`: a query with 8 documents of about 50 words; `pairs`: one pair
of 15 words a line, the worst shape. One in 50 documents repeats or nearly repeats an earlier one. Linux only.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path

from machine import machine
from memory import Peak, anonymous_memory

LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--shape", choices=["groups", "pairs"], nargs="+", default=["groups", "pairs"])
    parser.add_argument("--max-texts", type=int, help="as for rankery check")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a data file: check it, in this process
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure), arguments.max_texts)))
        return
    print(machine())
    for shape in arguments.shape:
        for megabytes in arguments.megabytes:
            with tempfile.TemporaryDirectory() as folder:
                path, pairs = write(Path(folder) / "data.jsonl", megabytes * 1_000_000, shape)
                size = path.stat().st_size / 1e6
                more = ["--max-texts", str(arguments.max_texts)] if arguments.max_texts else []
                command = [sys.executable, __file__, "--measure", str(path), *more]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{shape}, {size:,.0f} MB, {pairs:,} pairs: {found['seconds']:.1f} s, {size / found['seconds']:.1f} MB/s, peak "
                f"{found['peak'] / 1e6:.0f} MB of anonymous memory, {found['start'] / 1e6:.0f} MB before",
                flush=True,
            )


def write(path: Path, size: int, shape: str) -> tuple[Path, int]:
    """A file of about so many bytes, and how many pairs it has."""
    chooser = random.Random(0)
    vocabulary = ["".join(chooser.choices(LETTERS, range(52, 0, -2), k=chooser.randint(2, 9))) for _ in range(20_000)]
    stock = _stock(chooser, vocabulary)

    def text(words: int) -> str:
        return " ".join(islice(stock, words))

    written = pairs = 0
    with path.open("w", encoding="utf-8") as file:
        for row in _rows(shape, text, chooser):
            line = json.dumps(row) + "\n"
            file.write(line)
            written += len(line)
            pairs += len(row["pos"]) + len(row["neg"]) if "pos" in row else 1
            if written >= size:
                return path, pairs
    raise AssertionError


def _stock(chooser: random.Random, vocabulary: list[str]) -> Iterator[str]:
    """Words for ever, the first ones often; drawn many at a time, which is quick."""
    totals = list(accumulate(1 / (rank + 10) for rank in range(len(vocabulary))))
    while True:
        yield from chooser.choices(vocabulary, cum_weights=totals, k=100_000)


def _rows(shape: str, text: Callable[[int], str], chooser: random.Random) -> Iterator[dict]:
    recent = [text(50)]
    number = 0
    while True:
        number += 1
        query = f"{text(6)} {number}"
        if shape == "pairs":
            yield {"query": query, "content": text(15), "label": number % 2}
            continue
        documents = [text(chooser.randint(20, 80)) for _ in range(8)]
        if number % 6 == 0:
            documents[-1] = chooser.choice(recent) + (" once more" if number % 12 else "")
        recent = [*recent[-99:], documents[0]]
        yield {"query": query, "pos": documents[:1], "neg": documents[1:]}


def measure(data: Path, max_texts: int | None) -> dict[str, float]:
    import rankery
    from rankery.checking.check import MAX_TEXTS

    peak = Peak()
    start = anonymous_memory()
    begun = time.perf_counter()
    rankery.check([str(data)], max_texts=max_texts or MAX_TEXTS)
    return {"seconds": time.perf_counter() - begun, "peak": peak.stop(), "start": start}


if __name__ == "__main__":
    main()
