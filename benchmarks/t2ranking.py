"""The T2Ranking sample (100 Chinese queries, 20 documents each) by cross-validation: every query is held out once.

    python benchmarks/t2ranking.py --data ../shared/data --base DIR --work FOLDER [--labels binary soft] [--folds 0 1 2 3 4]

80 queries are few, so the model learns in three stages, each by listwise_kl: qbqtc's graded titles; clauses of the sample's own
documents as queries, whose targets need no labels (the sigmoid of BM25's plus the base's cosine's z-scores within the query); then
the training queries, each document's target being the mean of its label and of that. Held-out queries and labels are never read;
the held-out queries' documents are, as unlabelled text of the corpus. FOLDER keeps the models and the scores of each
fold, so that hours of work can be stopped. `multilingual_base.py` makes the base.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from machine import machine
from quality import prefixed, score, tuned

from rankery.data.records import QueryRecord, read_records
from rankery.evaluation.baselines import bm25_scores, cosine_scores, random_scores
from rankery.evaluation.metrics import metrics_table, ranking_metrics
from rankery.evaluation.runs import pairs_of

FILES = {"binary": "t2rank_100.jsonl", "soft": "t2rank_100.distill.standard.jsonl"}
FOLDS = 5
LISTED = 6  # documents of a clause


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with qbqtc/ and t2ranking_sample/")
    parser.add_argument("--base", type=Path, required=True, help="base model that reads Chinese")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps models and scores")
    parser.add_argument("--labels", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-len", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--clauses", type=int, default=1000, help="queries of the stage without labels")
    parser.add_argument("--batch", type=int, default=2, help="queries an update")
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    start = arguments.work / "qbqtc" / "model"
    if not start.is_dir():
        tuned(
            arguments.data / "qbqtc/train.jsonl", start.parent, 1, arguments.precision, arguments.base, 0.0, epochs=1,
            max_len=64, max_label=2, loss_type="listwise_kl", lr=1e-4, batch_size=8,
        )  # fmt: skip
    corpus = list(read_records([arguments.data / "t2ranking_sample" / FILES["binary"]]))
    start = of_clauses(corpus, start, arguments)
    for labels in arguments.labels:
        records = list(read_records([arguments.data / "t2ranking_sample" / FILES[labels]]))
        untrained, sum_of_both = needing_no_labels(records, arguments.base)
        settings = {
            "epochs": arguments.epochs,
            "max_len": arguments.max_len,
            "lr": arguments.lr,
            "batch_size": arguments.batch,
        }
        chosen = [fold for number, fold in enumerate(folds(len(records))) if number in arguments.folds]
        held_out = [i for fold in chosen for i in fold]
        tuned_scores: np.ndarray = np.full(len(sum_of_both), np.nan)
        for fold in chosen:
            name = " ".join(map(str, (labels, arguments.clauses, *settings.values(), arguments.precision, fold[0])))
            file = arguments.work / f"{name}.npy"
            if not file.is_file():
                test = [records[i] for i in fold]
                train = arguments.work / f"{name}.jsonl"
                write(records, sum_of_both, [i for i in range(len(records)) if i not in set(fold)], train)
                model = tuned(
                    train, arguments.work / name, 1, arguments.precision, start, 0.0, loss_type="listwise_kl", overwrite=True,
                    **settings,
                )  # fmt: skip
                np.save(file, score(model, test))
            tuned_scores[np.concatenate([places(records)[i] for i in fold])] = np.load(file)
        pairs = pairs_of([records[i] for i in held_out])
        at = np.concatenate([places(records)[i] for i in held_out])
        rows = {
            "random": random_scores(records, 0), "BM25": untrained[0], "base's cosine": untrained[1],
            "sum of both": sum_of_both, "fine-tuned": tuned_scores,
        }  # fmt: skip
        print(f"\n{labels} labels, {len(held_out)} queries held out in folds {arguments.folds}, {settings}")
        print(metrics_table({name: ranking_metrics(pairs, values[at]) for name, values in rows.items()}), flush=True)


def of_clauses(corpus: list[QueryRecord], start: Path, arguments: argparse.Namespace) -> Path:
    """The model after the stage without labels: which documents of a list fit a clause of one of them."""
    folder = arguments.work / f"clauses {arguments.clauses} {arguments.max_len}"
    if not (folder / "model").is_dir():
        records = list(asked_by_clauses(corpus, arguments.clauses, random.Random(1)))
        _, sum_of_both = needing_no_labels(records, arguments.base)
        train = arguments.work / f"{folder.name}.jsonl"
        write(records, sum_of_both, range(len(records)), train, label_share=0.0)
        tuned(
            train, folder, 1, arguments.precision, start, 0.0, loss_type="listwise_kl", resume=True, save_steps=25, epochs=1,
            max_len=arguments.max_len, lr=1e-4, batch_size=8,
        )  # fmt: skip
    return folder / "model"


def asked_by_clauses(corpus: list[QueryRecord], count: int, chooser: random.Random) -> Iterator[QueryRecord]:
    """A clause of 6 to 20 characters as the query of its document and of others that were retrieved with it."""
    while count:
        documents = chooser.choice(corpus).documents
        chosen = chooser.sample(documents, min(len(documents), LISTED))
        clauses = [clause for clause in re.split(r"<br>|[^\w%.-]+", chosen[0]) if 6 <= len(clause) <= 20]
        if len(chosen) == LISTED and clauses:
            count -= 1
            yield QueryRecord(chooser.choice(clauses), tuple(chosen), (0.0,) * LISTED, "", ())


def needing_no_labels(records: list[QueryRecord], base: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of BM25 and of the base's cosine, and the sum of their z-scores."""
    both = [bm25_scores(records), cosine_scores([prefixed(record) for record in records], base)]
    return both, np.sum([standardised(records, values) for values in both], axis=0)


def folds(queries: int) -> list[list[int]]:
    """Every fifth query, in a seeded order."""
    order = list(range(queries))
    random.Random(0).shuffle(order)
    return [order[number::FOLDS] for number in range(FOLDS)]


def places(records: list[QueryRecord]) -> list[np.ndarray]:
    """Where the scores of each query's documents stand."""
    ends = np.cumsum([len(record.documents) for record in records])
    return [np.arange(end - len(record.documents), end) for record, end in zip(records, ends, strict=True)]


def standardised(records: list[QueryRecord], values: np.ndarray) -> np.ndarray:
    """z-scores within each query."""
    parts = [values[at] for at in places(records)]
    return np.concatenate([(part - part.mean()) / (part.std() + 1e-9) for part in parts])


def write(
    records: list[QueryRecord], untrained: np.ndarray, chosen: Iterable[int], path: Path, label_share: float = 0.5
) -> None:
    """Training data: the weighted mean of label and untrained score for each document of the chosen queries."""
    with path.open("w", encoding="utf-8") as file:
        for i in chosen:
            record, scores = records[i], 1 / (1 + np.exp(-untrained[places(records)[i]]))
            targets = [
                float(label_share * label + (1 - label_share) * s)
                for label, s in zip(record.labels, scores, strict=True)
            ]
            row = {"query": record.query, "pos": list(record.documents), "pos_scores": targets}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
