"""Every loss against point_ce on labels alone, each at its own best learning rate (chosen on dev), equal epochs.

    python benchmarks/losses.py wikiqa --data ../shared/data --results FILE [--precision bf16] [--losses ...] [--seeds 1 2 3]
    python benchmarks/losses.py qbqtc --data ../shared/data --results FILE --base DIR
    python benchmarks/losses.py mediqa --data ../shared/data --results FILE --losses listwise_ce listwise_ce/top

The learning rate is chosen with the first seed by nDCG@10 on dev, from the middle of the rates in the direction that gains (a rate
beyond one that lost is not tried; `--losses point_ce@5e-5` names it, `listwise_kl+point_ce` a sum, and `/top` after a name
means listwise_grades=top); then all seeds are trained at it
and measured on test. qbqtc has no test split: a tenth of its training queries, taken out before, is its dev, and its dev file the
test; so it is with mediqa, whose long answers are cut at 64 tokens. FILE keeps each finished training, a line with the metrics of every query, so that hours of work can be stopped or shared by
processes: results/losses.jsonl holds those of docs/losses.md of one epoch, and a new file measures anew. Prints a table, and each
loss's difference from the first one named with its 95% interval (bootstrap over queries, seeds averaged).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from quality import score, tuned

from rankery.data.records import LabelRange, read_records
from rankery.demo_data import base_model_path
from rankery.evaluation.metrics import bootstrap_interval, metrics_table, per_query_metrics
from rankery.evaluation.runs import pairs_of
from rankery.objective import LOSSES, is_grouped

RATES = (2e-5, 5e-5, 1e-4, 2e-4)
TEACHERS_ONLY = ("pairwise_margin_mse",)  # learns margins, which labels do not have
SHOWN = ("nDCG@10", "MAP")
SPLITS = ("dev", "test")
TOP = "/top"  # after a loss's name: a query's highest grade alone
PAIRS_A_STEP, QUERIES_A_STEP = 32, 4


@dataclass(frozen=True)
class Task:
    """A data set with what training on it needs."""

    name: str
    train: Path
    dev: Path
    test: Path
    labels: LabelRange
    settings: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["wikiqa", "qbqtc", "mediqa"])
    parser.add_argument("--data", type=Path, required=True, help="folder with wikiqa/, qbqtc/ and mediqa2019_qa/")
    parser.add_argument("--results", type=Path, required=True, help="file that keeps finished trainings")
    parser.add_argument("--base", type=Path, help="base model; default: the demo's")
    parser.add_argument("--queries", type=int, help="training queries of qbqtc or mediqa at most")
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--losses", nargs="+", default=[name for name in LOSSES if name not in TEACHERS_ONLY])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--queries-a-step", type=int, default=QUERIES_A_STEP, help="of losses that compare documents")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        task = (
            wikiqa(arguments.data / "wikiqa")
            if arguments.task == "wikiqa"
            else graded(arguments.task, arguments.data, Path(folder), arguments.queries)
        )
        compare(task, arguments)


def compare(task: Task, arguments: argparse.Namespace) -> None:
    print(machine(), flush=True)
    values: dict[str, dict[str, np.ndarray]] = {}
    rows: dict[str, dict[str, float]] = {}
    for name in arguments.losses:
        loss, _, told = name.partition("@")

        def ndcg(rate: float, loss: str = loss) -> float:
            (tables,) = trained(task, loss, rate, arguments.seeds[:1], "dev", arguments)
            return float(tables["nDCG@10"].mean())

        on_dev = {} if told else climbed(sorted(arguments.rates), ndcg)
        rate = float(told) if told else max(on_dev, key=on_dev.__getitem__)
        tables = trained(task, loss, rate, arguments.seeds, "test", arguments)
        values[loss] = {key: np.mean([table[key] for table in tables], axis=0) for key in SHOWN}
        rows[f"{loss}, lr {rate:g}"] = {key: float(column.mean()) for key, column in values[loss].items()}
        if on_dev:
            print(f"{loss}: dev nDCG@10 " + ", ".join(f"{r:g}: {v:.4f}" for r, v in on_dev.items()), flush=True)
    print(f"\n{task.name}, {arguments.epochs} epochs, seeds {arguments.seeds}, test\n{metrics_table(rows)}\n")
    first, *others = values
    for loss in others:
        for key in SHOWN:
            difference = values[loss][key] - values[first][key]
            low, high = bootstrap_interval(difference, 0)
            print(f"{loss} - {first}: {key} {difference.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f}")


def climbed(rates: list[float], value: Callable[[float], float]) -> dict[float, float]:
    """The values found on the way from the two rates in the middle to the best one."""
    at = (len(rates) - 1) // 2
    found = {rate: value(rate) for rate in rates[at : at + 2]}
    step = 1 if len(found) == 2 and found[rates[at + 1]] > found[rates[at]] else -1
    best = max(found, key=found.__getitem__)
    while 0 <= (following := rates.index(best) + step) < len(rates):
        found[rates[following]] = value(rates[following])
        if found[rates[following]] <= found[best]:
            break
        best = rates[following]
    return dict(sorted(found.items()))


def trained(
    task: Task, loss: str, rate: float, seeds: list[int], split: str, arguments: argparse.Namespace
) -> list[dict[str, np.ndarray]]:
    """Metrics of each query on a split, one table a seed."""
    tables = []
    for seed in seeds:
        key = {
            "task": task.name,
            "loss": loss,
            "lr": rate,
            "epochs": arguments.epochs,
            "precision": arguments.precision,
        }
        key["seed"] = seed
        if is_grouped(parts(loss)):
            key["queries_a_step"] = arguments.queries_a_step
        kept = [
            row
            for row in rows_of(arguments.results)
            if key.items() <= ({"queries_a_step": QUERIES_A_STEP} | row).items()
        ]
        row = (
            kept[-1]
            if kept
            else key | {"machine": machine()} | measured(task, key, arguments.base or base_model_path())
        )
        if not kept:
            arguments.results.parent.mkdir(parents=True, exist_ok=True)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        tables.append({name: np.array(column) for name, column in row[split].items()})
    return tables


def parts(loss: str) -> dict[str, float]:
    """What `listwise_kl+point_ce` names: each loss with weight 1."""
    return dict.fromkeys(loss.removesuffix(TOP).split("+"), 1.0)


def measured(task: Task, key: dict[str, Any], base: Path) -> dict[str, dict[str, list[float]]]:
    """A training, and what its model reaches on each query of both splits."""
    settings = {
        **task.settings,
        "loss_type": parts(key["loss"]),
        "lr": key["lr"],
        "batch_size": key.get("queries_a_step", PAIRS_A_STEP),
        "epochs": key["epochs"],
    }
    if key["loss"].endswith(TOP):
        settings["listwise_grades"] = "top"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = tuned(task.train, Path(folder) / "out", key["seed"], key["precision"], base, 0.0, **settings)
        for split in SPLITS:
            records = list(read_records([getattr(task, split)], task.labels))
            table = per_query_metrics(pairs_of(records), score(model, records), min_label=task.labels.min_label)
            found[split] = {name: [round(float(value), 4) for value in table[name]] for name in SHOWN}
    return found


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def wikiqa(folder: Path) -> Task:
    train, dev, test = (folder / f"{name}.jsonl" for name in ("train", "dev", "test"))
    return Task("wikiqa", train, dev, test, LabelRange(), {})


# The folder, the highest grade, and the tokens of a pair.
GRADED = {"qbqtc": ("qbqtc", 2, 64), "mediqa": ("mediqa2019_qa", 3, 64)}


def graded(task: str, data: Path, kept: Path, queries: int | None) -> Task:
    """Every tenth training query is taken out to choose the learning rate by."""
    name, highest, max_len = GRADED[task]
    folder = data / name
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    parts = {"dev": lines[::10], "train": [line for i, line in enumerate(lines) if i % 10][:queries]}
    for name, part in parts.items():
        (kept / f"{task}_{name}.jsonl").write_text("".join(part), encoding="utf-8")
    files = (kept / f"{task}_train.jsonl", kept / f"{task}_dev.jsonl", folder / "dev.jsonl")
    settings = {"max_len": max_len, "max_label": highest}
    return Task(f"{task}, {queries} queries" if queries else task, *files, LabelRange(0, highest), settings)


if __name__ == "__main__":
    main()
