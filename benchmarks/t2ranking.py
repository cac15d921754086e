"""The T2Ranking sample (100 Chinese queries, 20 documents each) by cross-validation: every query is held out once.

    python benchmarks/t2ranking.py --data ../shared/data --base DIR --work FOLDER [--labels binary soft] [--folds 0 1 2]

80 queries are few to turn an embedding model into a cross-encoder, so each document begins with what needs no training: BM25's
score and the base's cosine as numbers from 0 to 19, by their z-scores within the query (Askari et al. 2023 give BM25's score as
text). One epoch on qbqtc, then the training queries, by listwise_kl; each document's target is the mean of its label and of the
sigmoid of the two z-scores' sum. Held-out labels are never read. FOLDER keeps the models and the scores of each fold, so that hours
of work can be stopped. `multilingual_base.py` makes the base.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import machine
from quality import prefixed, score, tuned

from rankery.data.records import LabelRange, QueryRecord, read_records
from rankery.evaluation.baselines import bm25_scores, cosine_scores, random_scores
from rankery.evaluation.metrics import metrics_table, ranking_metrics
from rankery.evaluation.runs import pairs_of

FILES = {"binary": "t2rank_100.jsonl", "soft": "t2rank_100.distill.standard.jsonl"}
FOLDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with qbqtc/ and t2ranking_sample/")
    parser.add_argument("--base", type=Path, required=True, help="base model that reads Chinese")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps models and scores")
    parser.add_argument("--labels", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--batch", type=int, default=4, help="queries an update")
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    start = of_qbqtc(arguments)
    for labels in arguments.labels:
        records = list(read_records([arguments.data / "t2ranking_sample" / FILES[labels]]))
        untrained, sum_of_both, records = with_scores(records, arguments.base)
        settings = {"epochs": arguments.epochs, "max_len": arguments.max_len, "lr": arguments.lr}
        settings["batch_size"] = arguments.batch
        chosen = [fold for number, fold in enumerate(folds(len(records))) if number in arguments.folds]
        held_out = [i for fold in chosen for i in fold]
        tuned_scores: np.ndarray = np.full(len(sum_of_both), np.nan)
        for fold in chosen:
            name = " ".join(map(str, (labels, *settings.values(), arguments.precision, fold[0])))
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


def of_qbqtc(arguments: argparse.Namespace) -> Path:
    """The model after qbqtc's graded titles."""
    folder, train = arguments.work / "qbqtc with scores", arguments.work / "qbqtc.jsonl"
    if not (folder / "model").is_dir():
        _, sum_of_both, records = with_scores(
            list(read_records([arguments.data / "qbqtc/train.jsonl"], LabelRange(0, 2))), arguments.base
        )
        write(records, sum_of_both, range(len(records)), train, max_label=2)
        tuned(
            train, folder, 1, arguments.precision, arguments.base, 0.0, epochs=1, max_len=64, loss_type="listwise_kl", lr=1e-4,
            batch_size=8, resume=True, save_steps=25,
        )  # fmt: skip
    return folder / "model"


def with_scores(records: list[QueryRecord], base: Path) -> tuple[list[np.ndarray], np.ndarray, list[QueryRecord]]:
    """Scores of BM25 and of the base's cosine, the sum of their z-scores, and the records whose documents begin with both."""
    both = [bm25_scores(records), cosine_scores([prefixed(record) for record in records], base)]
    z = [standardised(records, scores) for scores in both]
    levels = np.clip(np.round((np.stack(z, axis=1) + 2) * 4), 0, 19).astype(int)
    told = [
        replace(
            record,
            documents=tuple(f"{a} {b} {text}" for (a, b), text in zip(levels[at], record.documents, strict=True)),
        )
        for record, at in zip(records, places(records), strict=True)
    ]
    return both, z[0] + z[1], told


def folds(queries: int) -> list[list[int]]:
    """Every third query, in a seeded order."""
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
    records: list[QueryRecord], untrained: np.ndarray, chosen: Iterable[int], path: Path, max_label: int = 1
) -> None:
    """Training data: the mean of label and untrained score for each document of the chosen queries."""
    with path.open("w", encoding="utf-8") as file:
        for i in chosen:
            record, scores = records[i], 1 / (1 + np.exp(-untrained[places(records)[i]]))
            targets = [float((label / max_label + s) / 2) for label, s in zip(record.labels, scores, strict=True)]
            row = {"query": record.query, "pos": list(record.documents), "pos_scores": targets}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
