"""An LLM decoder fine-tuned on WikiQA, beside what needs no training: random order, BM25, and the same model asked zero-shot.

    python benchmarks/llm_quality.py --data ../shared/data --base SmolLM2.gguf [--queries 400] [--scores FOLDER]

Both heads: a trained score, and logit(yes) - logit(no). Prints MRR, MAP and nDCG on the test queries, and the gain in MAP over the
best that needs no training, with its 95% interval (bootstrap over queries). `--scores` as in quality.py.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine

from rankery import LLMDecoder, train
from rankery.data.records import read_records
from rankery.evaluation.baselines import bm25_scores, random_scores
from rankery.evaluation.metrics import bootstrap_interval, metrics_table, per_query_metrics
from rankery.evaluation.runs import pairs_of

SETTINGS: dict[str, Any] = {
    "model_type": "llm_decoder", "max_len": 128, "epochs": 1, "lr": 5e-5, "batch_size": 16, "warmup_proportion": 0.1, "seed": 1,
    "weight_decay": 0.0, "log_with": "none", "save_on_epoch_end": False, "best_metric": None, "log_interval": 10,
}  # fmt: skip
HEADS = {"score head": {"head": "score", "special_token": "<|im_end|>"}, "yes/no head": {"head": "yes_no"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with wikiqa/")
    parser.add_argument("--base", type=Path, required=True, help="folder or GGUF file of the language model")
    parser.add_argument("--queries", type=int, help="training queries; default: all")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--lora-rank", type=int)
    parser.add_argument("--scores", type=Path, help="folder that keeps the scores of finished trainings")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(machine(), flush=True)
    records = list(read_records([arguments.data / "wikiqa" / "test.jsonl"]))
    texts = [(record.query, text) for record in records for text in record.documents]
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32

    def kept(name: str, work: Any) -> np.ndarray:
        file = arguments.scores / f"{name.replace('/', ' ')}.npy" if arguments.scores else None
        if file and file.is_file():
            return np.load(file)
        begun = time.perf_counter()
        scores = work()
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, scores)
        return scores

    def score(path: Path, **options: Any) -> np.ndarray:
        return LLMDecoder.from_pretrained(path, dtype=dtype, max_len=128, **options).compute_score(texts).numpy()

    def tuned(options: dict[str, Any]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as name:
            lines = (arguments.data / "wikiqa" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            data = Path(name) / "train.jsonl"
            data.write_text("".join(lines[: arguments.queries]), encoding="utf-8")
            model = train(
                {**SETTINGS, **options}, model_name_or_path=str(arguments.base), train_dataset=str(data),
                output_dir=f"{name}/out", mixed_precision=arguments.precision, lora_rank=arguments.lora_rank,
            )  # fmt: skip
            return score(model)

    rows = {
        "random order": random_scores(records, 0),
        "BM25": bm25_scores(records),
        "zero-shot yes/no": kept("zero-shot", lambda: score(arguments.base, head="yes_no")),
    }
    rows |= {name: kept(name, lambda name=name: tuned(HEADS[name])) for name in arguments.heads}
    tables = {name: per_query_metrics(pairs_of(records), scores) for name, scores in rows.items()}
    print(metrics_table({name: {k: float(v.mean()) for k, v in table.items()} for name, table in tables.items()}))
    best = max(list(rows)[:3], key=lambda name: tables[name]["MAP"].mean())
    for name in arguments.heads:
        difference = tables[name]["MAP"] - tables[best]["MAP"]
        low, high = bootstrap_interval(difference, 0)
        print(f"{name} - {best}: MAP {difference.mean():+.4f}, 95% interval {low:+.4f} to {high:+.4f}")


if __name__ == "__main__":
    main()
