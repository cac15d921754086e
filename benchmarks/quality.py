"""Quality beside sentence-transformers' CrossEncoderTrainer: same data, base, epochs, batch and learning rate, side by side.

    python benchmarks/quality.py wikiqa --data ../shared/data     against sentence-transformers, attention dropout 0.1, padded batches
    python benchmarks/quality.py qbqtc --data ../shared/data --base DIR    against the best that needs no training

Prints means over seeds and the 95% interval of the difference (bootstrap over queries, seeds averaged). With `--scores
FOLDER` the test scores of each training are kept there, and one that is there is not trained again: an hour's work can
be stopped, or shared by processes that take a seed each. qbqtc wants a base model that reads Chinese (the demo's does
not: its tokenizer knows one character in five); `multilingual_base.py` makes one.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import machine

from rankery import CrossEncoder, train
from rankery.data.records import LabelRange, QueryRecord, read_records
from rankery.demo_data import base_model_path
from rankery.evaluation.baselines import bm25_scores, cosine_scores, random_scores
from rankery.evaluation.metrics import bootstrap_interval, metrics_table, per_query_metrics
from rankery.evaluation.runs import pairs_of

SHARED = {"epochs": 2, "lr": 5e-5, "batch_size": 32, "max_len": 256}
OURS, DROPPED, PADDED = "rankery", "rankery, attention dropout 0.1", "rankery, padded"
OTHERS = ("sentence-transformers", DROPPED, PADDED)
SHOWN = ("nDCG@10", "MAP")
QUIET = {"log_with": "none", "save_on_epoch_end": False, "best_metric": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["wikiqa", "qbqtc"])
    parser.add_argument("--data", type=Path, required=True, help="folder with wikiqa/ and qbqtc/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--systems", nargs="+", choices=OTHERS, default=list(OTHERS), help="to compare with (wikiqa)")
    parser.add_argument(
        "--precision", default="no", choices=["no", "bf16"], help="ours; sentence-transformers runs in fp32"
    )
    parser.add_argument("--base", type=Path, help="base model; default: the demo's")
    parser.add_argument("--scores", type=Path, help="folder that keeps the scores of finished trainings")
    parser.add_argument("--epochs", type=int, default=SHARED["epochs"], help="of qbqtc")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if arguments.task == "qbqtc" and not arguments.base:
        parser.error("qbqtc wants --base, a model that reads Chinese: see multilingual_base.py")
    base = arguments.base or base_model_path()
    print(machine(), flush=True)
    if arguments.task == "wikiqa":
        kept, systems = arguments.scores, [OURS, *arguments.systems]
        wikiqa(arguments.data / "wikiqa", arguments.seeds, arguments.precision, base, kept, systems)
    else:
        folder = arguments.data / "qbqtc"
        qbqtc(folder, arguments.seeds, arguments.precision, base, arguments.scores, arguments.epochs)


def wikiqa(folder: Path, seeds: list[int], precision: str, base: Path, kept: Path | None, chosen: list[str]) -> None:
    records, data = list(read_records([folder / "test.jsonl"])), folder / "train.jsonl"
    systems = {
        OURS: lambda seed: ours(data, records, seed, precision, base, 0.0),
        "sentence-transformers": lambda seed: peer(data, records, seed, base),
        DROPPED: lambda seed: ours(data, records, seed, precision, base, 0.1),
        PADDED: lambda seed: ours(data, records, seed, precision, base, 0.0, packing="off"),
    }
    values: dict[str, dict[str, np.ndarray]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name in chosen:
        values[name] = averaged(name, systems[name], records, seeds, precision, kept, rows)
    print(f"\n{metrics_table(rows)}\n")
    for other in chosen[1:]:
        for key in SHOWN:
            print(difference(values, OURS, other, key))


def averaged(
    name: str, scored: Callable[[int], np.ndarray], records: list[QueryRecord], seeds: list[int], precision: str,
    kept: Path | None, rows: dict[str, dict[str, float]],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Metrics of each query, the mean over seeds of what `scored` gives; `rows` gets the averages of each seed and theirs."""
    tables = []
    for seed in seeds:
        begun, label = time.perf_counter(), f"{name}, {precision}, seed {seed}"
        file = kept / f"{label}.npy" if kept else None
        scores = np.load(file) if file and file.is_file() else scored(seed)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, scores)
        tables.append(per_query_metrics(pairs_of(records), scores))
        rows[f"{name}, seed {seed}"] = means(tables[-1])
        print(f"{label}: {time.perf_counter() - begun:.0f} s", flush=True)
    values = {key: np.mean([table[key] for table in tables], axis=0) for key in tables[0]}
    rows[f"{name}, mean"] = means(values)
    return values


def means(table: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(column.mean()) for key, column in table.items()}


def difference(values: dict[str, dict[str, np.ndarray]], one: str, other: str, key: str) -> str:
    """A line with the mean difference of two systems in a metric, and its interval over queries."""
    by_query = values[one][key] - values[other][key]
    low, high = bootstrap_interval(by_query, 0)
    return f"{one} - {other}: {key} {by_query.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f}"


def ours(
    data: Path, records: list[QueryRecord], seed: int, precision: str, base: Path, dropout: float, **settings: object
) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        return score(tuned(data, Path(folder) / "out", seed, precision, base, dropout, **settings), records)


def tuned(data: Path, output: Path, seed: int, precision: str, base: Path, dropout: float, **settings: object) -> Path:
    values = {
        **SHARED,
        **QUIET,
        "attention_dropout": dropout,
        "hidden_dropout": 0.1,
        "weight_decay": 0.0,
        **settings,
    }
    return train(
        values, model_name_or_path=str(base), train_dataset=str(data), output_dir=str(output), seed=seed,
        mixed_precision=precision, warmup_proportion=0.1,
    )  # fmt: skip


def score(model: Path, records: list[QueryRecord]) -> np.ndarray:
    reranker = CrossEncoder.from_pretrained(model)
    return reranker.compute_score([(record.query, text) for record in records for text in record.documents]).numpy()


def peer(data: Path, records: list[QueryRecord], seed: int, base: Path) -> np.ndarray:
    """Their trainer, with our schedule's warm-up; other settings are its defaults (linear decay, no weight decay)."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder as Peer
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    rows = [
        (r.query, text, label) for r in read_records([data]) for text, label in zip(r.documents, r.labels, strict=True)
    ]
    columns = dict(zip(("query", "document", "label"), map(list, zip(*rows, strict=True)), strict=True))
    torch.manual_seed(seed)
    model = Peer(str(base), num_labels=1, max_length=SHARED["max_len"], device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder, num_train_epochs=SHARED["epochs"], per_device_train_batch_size=SHARED["batch_size"],
            learning_rate=SHARED["lr"], warmup_steps=0.1, seed=seed, use_cpu=True, save_strategy="no", report_to=[],
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        loss = BinaryCrossEntropyLoss(model)
        CrossEncoderTrainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss).train()
    pairs = [(record.query, text) for record in records for text in record.documents]
    return np.asarray(model.predict(pairs, batch_size=32, show_progress_bar=False))


def qbqtc(folder: Path, seeds: list[int], precision: str, base: Path, kept: Path | None, epochs: int) -> None:
    records = list(read_records([folder / "dev.jsonl"], LabelRange(0, 2)))
    settings = {"epochs": epochs, "max_len": 64, "max_label": 2}
    untrained = {
        "random": random_scores(records, 0),
        "BM25": bm25_scores(records),
        "base's cosine": cosine_scores([prefixed(record) for record in records], base),
    }
    values = {name: per_query_metrics(pairs_of(records), scores) for name, scores in untrained.items()}
    rows = {name: means(table) for name, table in values.items()}
    name = f"fine-tuned on qbqtc, epochs {epochs}"
    values[name] = averaged(
        name, lambda seed: ours(folder / "train.jsonl", records, seed, precision, base, 0.0, **settings), records, seeds,
        precision, kept, rows,
    )  # fmt: skip
    print(f"\nqbqtc, grades 0-2, {len(records)} held-out queries")
    print(f"{metrics_table(rows)}\n")
    for key in SHOWN:
        print(difference(values, name, max(untrained, key=lambda other: rows[other][key]), key))


def prefixed(record: QueryRecord) -> QueryRecord:
    """A record as E5's embeddings want it."""
    documents = tuple(f"passage: {document}" for document in record.documents)
    return replace(record, query=f"query: {record.query}", documents=documents)


if __name__ == "__main__":
    main()
