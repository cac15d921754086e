"""`rankery demo`: the main job on built-in data; downloads nothing.

Contract: what it prints is measured in this run, on held-out queries whose documents training never saw. Cost: under five
minutes on two cores. Rejected: a model that is shipped already trained, which shows nothing about training.
"""

from __future__ import annotations

import time
from pathlib import Path

from rankery.data.records import read_records
from rankery.demo_data import COSINE_SHARE, DemoData, base_model_path, build
from rankery.errors import InputError
from rankery.evaluation.baselines import bm25_scores, cosine_scores, random_scores
from rankery.evaluation.metrics import metrics_table, ranking_metrics
from rankery.evaluation.runs import pairs_of

MARK = "rankery_demo.txt"  # says that the folder is the demo's own
SHOWN = ("nDCG@10", "MRR@10", "MAP")
# Two epochs where they take under five minutes: in bf16 (on two cores 88 s an epoch), or where building the data, passes through the
# base model in fp32, was quick: it took 42 s where an epoch in fp32 took 172 s and evaluation 55 s.
QUICK_BUILD = 25.0
SETTINGS = {
    "max_len": 96,
    "loss_type": {"listwise_kl": 1.0, "point_ce": 1.0},
    "lr": 1e-4,
    "batch_size": 8,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "seed": 42,
}


def run_demo(folder: Path, overwrite: bool = False) -> None:
    """Builds the data, fine-tunes, evaluates, prints the table and how to use the model.

    Args:
        folder: to write; a demo that was stopped there begins again.
        overwrite: replace a demo that is finished.

    Raises:
        InputError: the base model is not installed, or `folder` holds something else, or a finished demo.
    """
    from rankery import CrossEncoder, train
    from rankery.models.budget import computes_bf16

    begun = time.perf_counter()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / MARK).is_file():
        raise InputError(f"{folder} holds something else; choose another folder: rankery demo --output DIR")
    if (folder / "run" / "model").exists() and not overwrite:
        raise InputError(
            f"{folder} holds a finished demo, with its model in {folder / 'run' / 'model'}; --overwrite makes it again, --output DIR "
            "another one"
        )
    base = base_model_path()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("Written by rankery demo, which may overwrite data/ and run/ here.\n")
    print("1/3 building data from the docstrings of Python's standard library", flush=True)
    data = build(folder / "data", base)
    precision = "bf16" if computes_bf16() else "no"
    epochs = 2 if precision == "bf16" or time.perf_counter() - begun < QUICK_BUILD else 1
    print(describe_data(data), flush=True)
    print("2/3 fine-tuning all-MiniLM-L6-v2", flush=True)
    model = train(
        SETTINGS,
        model_name_or_path=str(base),
        train_dataset=str(data.paths["train"]),
        val_dataset=str(data.paths["dev"]),
        output_dir=str(folder / "run"),
        epochs=epochs,
        mixed_precision=precision,
        overwrite=True,
    )
    print("3/3 evaluating on held-out queries", flush=True)
    records = list(read_records([data.paths["test"]]))
    texts = [(record.query, document) for record in records for document in record.documents]
    pairs = pairs_of(records)
    rows = {
        "random order": random_scores(records, 0),
        "BM25": bm25_scores(records),
        "base model's cosine": cosine_scores(records, base),
        "fine-tuned": CrossEncoder.from_pretrained(model).compute_score(texts).numpy(),
    }
    metrics = {name: ranking_metrics(pairs, scores) for name, scores in rows.items()}
    table = {name: {key: values[key] for key in SHOWN} for name, values in metrics.items()}
    table["gain over the best other"] = {
        key: table["fine-tuned"][key] - max(table[name][key] for name in rows if name != "fine-tuned") for key in SHOWN
    }
    print(f"\n{metrics_table(table)}\n")
    print(
        f"{len(records)} held-out queries, done in {time.perf_counter() - begun:.0f} s; everything lies in {folder}/\n"
    )
    print("Use it:\n")
    print("    from rankery import CrossEncoder")
    print(f'    reranker = CrossEncoder.from_pretrained("{model}")')
    print('    print(reranker.rerank("Return the sum of values.", ["Add up all numbers given.", "Open a file."]))')


def describe_data(data: DemoData) -> str:
    """A table of where each split's candidates come from."""
    columns = ("queries", "relevant", "bm25", "cosine", "random")
    lines = [f"{'':6}" + "".join(f"{column:>10}" for column in columns)]
    lines += [f"{split:6}" + "".join(f"{row[column]:>10}" for column in columns) for split, row in data.counts.items()]
    lines.append(
        "candidates: the relevant document, neighbours of the query by BM25 and by the base's cosine, random ones;"
    )
    lines.append(f"training scores: {1 - COSINE_SHARE:g} x label + {COSINE_SHARE:g} x the base's cosine")
    return "\n".join(lines)
