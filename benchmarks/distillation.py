"""What a student keeps of its teacher on WikiQA, beside the same student trained on labels; seeds averaged, with intervals.

    python benchmarks/distillation.py --data ../shared/data --work FOLDER [--teachers 1 2 3] [--seeds 1 2 3] [--precision bf16]

The teacher is an ensemble of rerankers of the demo's base that were trained with --loss on the labels (by default the label-trained
students themselves, together; after Furlanello et al. 2018), or --teacher-model DIR ..., any models. Distilled students learn the
ensemble's scores (listwise_kl) with the same epochs, learning rate and batch. FOLDER keeps models and scores, so that it can be stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from machine import machine
from quality import score, tuned

from rankery.data.records import read_records
from rankery.demo_data import base_model_path
from rankery.distilling.teacher import Teacher, score_file
from rankery.evaluation.baselines import bm25_scores
from rankery.evaluation.metrics import bootstrap_interval, metrics_table, per_query_metrics
from rankery.evaluation.runs import pairs_of
from rankery.models.opening import open_reranker

SHOWN = ("nDCG@10", "MRR@10", "MAP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with wikiqa/")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps models and scores")
    parser.add_argument("--teachers", type=int, nargs="+", default=[1, 2, 3], help="seeds of the ensemble")
    parser.add_argument("--teacher-model", nargs="+", help="models to be the teacher instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--loss", default="listwise_ce", help="of teachers and of students on labels")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", default="no", choices=["no", "bf16"])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(machine(), flush=True)
    base, data = base_model_path(), arguments.data / "wikiqa"
    records = list(read_records([data / "test.jsonl"]))
    pairs = [(record.query, document) for record in records for document in record.documents]
    settings = {"lr": arguments.lr, "epochs": arguments.epochs, "batch_size": 4}

    def model(kind: str, seed: int, train_file: Path, loss: str) -> Path:
        folder = arguments.work / f"{kind}_{seed}"
        if not (folder / "model").is_dir():
            tuned(
                train_file,
                folder,
                seed,
                arguments.precision,
                base,
                0.0,
                loss_type=loss,
                overwrite=folder.exists(),
                **settings,
            )
        return folder / "model"

    def kept(name: str, folder: Callable[[], Path]) -> np.ndarray:
        file = arguments.work / f"{name}.npy"
        if not file.is_file():
            np.save(file, score(folder(), records))
        return np.load(file)

    arguments.work.mkdir(parents=True, exist_ok=True)
    folders = arguments.teacher_model or [
        model("labels", seed, data / "train.jsonl", arguments.loss) for seed in arguments.teachers
    ]
    scored = arguments.work / "teacher_scores.jsonl"
    if not scored.is_file():
        score_file([Teacher(open_reranker(folder)) for folder in folders], [data / "train.jsonl"], scored)
    runs: dict[str, list[np.ndarray]] = {"BM25": [bm25_scores(records)]}
    of_teachers = [kept(f"teacher_{i}", partial(Path, folder)) for i, folder in enumerate(folders)]
    runs["teacher"] = [np.mean(of_teachers, axis=0)]
    learnt_from = {"labels": (data / "train.jsonl", arguments.loss), "distilled": (scored, "listwise_kl")}
    for kind, (file, loss) in learnt_from.items():
        runs[f"student, {kind}"] = [
            kept(f"{kind}_{seed}", partial(model, kind, seed, file, loss)) for seed in arguments.seeds
        ]
    values = {
        name: {key: np.mean([per_query_metrics(pairs_of(records), s)[key] for s in scores], axis=0) for key in SHOWN}
        for name, scores in runs.items()
    }
    print(metrics_table({name: {key: float(v.mean()) for key, v in row.items()} for name, row in values.items()}))
    share = values["student, distilled"]["nDCG@10"].mean() / values["teacher"]["nDCG@10"].mean()
    print(f"\nkept of the teacher's nDCG@10: {share:.1%}; teacher: {len(folders)} models")
    for key in ("nDCG@10", "MAP"):
        difference = values["student, distilled"][key] - values["student, labels"][key]
        low, high = bootstrap_interval(difference, 0)
        print(f"distilled - labels: {key} {difference.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f}")
    student = open_reranker(arguments.work / f"distilled_{arguments.seeds[0]}" / "model")
    teachers = [open_reranker(folder) for folder in folders]
    seconds = []
    for rerankers in (teachers, [student]):
        begun = time.perf_counter()
        for reranker in rerankers:
            reranker.compute_score(pairs)
        seconds.append(time.perf_counter() - begun)
    print(f"cost of scoring: teacher {seconds[0] / seconds[1]:.1f} times the student's")


if __name__ == "__main__":
    main()
