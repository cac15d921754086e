"""What the speed benchmarks work on: (query, document, label) pairs, short, middling and long.

docstrings need nothing but Python; wikiqa (short) and mediqa (long answers) want the folder of the real data sets.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

from rankery.data.records import LabelRange, read_records
from rankery.demo_data import docstring_pairs

Pairs = list[tuple[str, str, float]]
BATCH = 32


@dataclass(frozen=True)
class Work:
    name: str
    max_len: int
    pairs: Pairs


WORKS = ("docstrings", "wikiqa", "mediqa")


def work(name: str, count: int, data: Path | None, max_len: int | None = None, seed: int = 1) -> Work:
    """So many pairs; of a data set, in a seeded order."""
    if name == "docstrings":
        return Work(name, max_len or 512, docstring_pairs(count, seed=seed))
    if data is None:
        raise SystemExit(f"{name} wants --data, the folder with wikiqa/ and mediqa2019_qa/")
    folder, labels, usual = {"wikiqa": ("wikiqa", 1, 256), "mediqa": ("mediqa2019_qa", 3, 512)}[name]
    records = read_records([data / folder / "train.jsonl"], LabelRange(0, labels))
    pairs = [
        (r.query, text, label / labels) for r in records for text, label in zip(r.documents, r.labels, strict=True)
    ]
    random.Random(seed).shuffle(pairs)
    return Work(name, max_len or usual, list(itertools.islice(itertools.cycle(pairs), count)))


def write(pairs: Pairs, folder: Path) -> Path:
    """The pairs as a data file."""
    path = folder / "pairs.jsonl"
    rows = (json.dumps({"query": query, "content": document, "label": label}) for query, document, label in pairs)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
