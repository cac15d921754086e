"""Training speed beside sentence-transformers and transformers' Trainer: same base, data, batch and precision, in turns.

    python benchmarks/train_speed.py [--work docstrings|wikiqa|mediqa] [--data DATA] [--steps 2] [--rounds 3]

Prints pairs a second, peak memory and the share of the machine's matrix products that real tokens reach, medians over rounds;
ratios; and the padding that each computes. Each measurement is a process of its own and starts with an untimed update. The
default work: (summary line, rest of docstring) pairs of Python's standard library, about 200 tokens, up to 512. Batch 32.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, matrix_rate, peak_memory, synchronize
from work import BATCH, WORKS, Pairs, Work, work, write

from rankery.data.encoding import encode, open_encoded
from rankery.data.examples import Fixed, one_each
from rankery.data.plan import Layout, Plan, computed_tokens
from rankery.data.records import LabelRange
from rankery.demo_data import base_model_path

WARM_UP = 4  # pairs of the others' untimed update; ours is a whole step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WORKS, default="docstrings")
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--base", type=Path, default=base_model_path(), help="base model; default: the demo's")
    parser.add_argument("--max-len", type=int, help="tokens of a pair at most; default: the work's")
    parser.add_argument(
        "--at-once",
        type=int,
        default=BATCH,
        help="pairs that the others compute at once, where memory is too small for all 32",
    )
    parser.add_argument("--steps", type=int, default=2, help="updates of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turns")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)  # one measurement, in this process
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    job = work(arguments.work, BATCH * arguments.steps, arguments.data, arguments.max_len)
    with tempfile.TemporaryDirectory() as folder:
        arguments.base = with_positions(arguments.base, job.max_len, Path(folder))
        compare(job, arguments)


def compare(job: Work, arguments: argparse.Namespace) -> None:
    if arguments.measure:
        seconds = SYSTEMS[arguments.measure](job, arguments.base, arguments.at_once)
        print(json.dumps({"seconds": seconds, "memory": peak_memory()}))
        return
    print(machine())
    lengths = tokens(job, arguments.base)
    needed = {name: operations(arguments.base, lengths, name.startswith("rankery")) for name in arguments.systems}
    rates = {"fp32": matrix_rate(torch.float32), "bf16": matrix_rate(torch.bfloat16)}
    print(
        f"{job.name}: {len(job.pairs)} pairs in {arguments.steps} steps of {BATCH}, max_len {job.max_len}; matrix products: "
        + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    )
    print(padding(lengths))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.systems}
    for _ in range(arguments.rounds):
        for name in found:
            found[name].append(measured_alone(name))
    print(f"\n{'':28} pairs/s   peak MB   of the matrix rate")
    for name, rows in found.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        share = needed[name] / seconds / rates[name.split()[-1]]
        memory = statistics.median(row["memory"] for row in rows) / 1e6
        print(f"{name:28} {len(job.pairs) / seconds:7.2f} {memory:9,.0f} {share:19.0%}")
    print()
    for mine, other in RATIOS:
        if mine in found and other in found:
            ratios = [b["seconds"] / a["seconds"] for a, b in zip(found[mine], found[other], strict=True)]
            print(f"{mine} / {other}: {statistics.median(ratios):.2f} x (min {min(ratios):.2f}, max {max(ratios):.2f})")


def with_positions(base: Path, count: int, folder: Path) -> Path:
    """The base itself, or a copy that reads longer texts: its positions again and again (speed does not ask what they know)."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    known = model.config.max_position_embeddings
    if count <= known:
        return base
    table = model.embeddings.position_embeddings.weight.data
    model.config.max_position_embeddings = tokenizer.model_max_length = count
    longer = type(model)(model.config)
    repeated = {"embeddings.position_embeddings.weight": table.repeat(-(-count // known), 1)[:count]}
    longer.load_state_dict({**model.state_dict(), **repeated})
    longer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured_alone(name: str) -> dict[str, float]:
    """One system in a process of its own, so that our memory settings do not help the others."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def ours(job: Work, precision: str, base: Path) -> float:
    """Seconds of the steps themselves, after a warm-up step, by the loop's own code."""
    from rankery.config import load_config
    from rankery.models.budget import keep_large_blocks
    from rankery.training.engine import start_engine
    from rankery.training.run import build
    from rankery.training.step import settle, step_batches, train_step

    keep_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            {
                "model_name_or_path": str(base), "train_dataset": str(write(job.pairs, Path(folder))), "max_len": job.max_len,
                "output_dir": f"{folder}/out", "dataset_cache_dir": f"{folder}/cache", "batch_size": BATCH, "lr": 1e-5,
                "mixed_precision": precision, "attention_dropout": 0.0, "log_with": "none",
            }
        )  # fmt: skip
        run = build(config, start_engine(config))
        run.model.train()
        batches = step_batches(run)
        settle(run, train_step(run, 0, batches[0]))
        begun = time.perf_counter()
        for number in range(run.plan.steps_per_epoch):
            outcome = train_step(run, number, batches[number])
        settle(run, outcome)
        return time.perf_counter() - begun


def sentence_transformers(job: Work, bf16: bool, base: Path, at_once: int = BATCH) -> float:
    """Seconds of CrossEncoderTrainer over the same pairs, at its defaults, after a warm-up."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    has_device = torch.cuda.is_available()
    reranker = CrossEncoder(str(base), num_labels=1, max_length=job.max_len, device="cuda" if has_device else "cpu")
    columns = ("query", "document", "label")

    def run(rows: Pairs) -> float:
        data = Dataset.from_dict(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
        with tempfile.TemporaryDirectory() as folder:
            arguments = CrossEncoderTrainingArguments(
                output_dir=folder, bf16=bf16, **peer_settings(has_device, at_once)
            )
            loss = BinaryCrossEntropyLoss(reranker)
            return trained(CrossEncoderTrainer(model=reranker, args=arguments, train_dataset=data, loss=loss))

    run(job.pairs[:WARM_UP])
    return run(job.pairs)


def plain_trainer(job: Work, bf16: bool, base: Path, at_once: int = BATCH) -> float:
    """Seconds of transformers' Trainer, its batches grouped by length and padded to their longest: the best of its flags."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    has_device = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, problem_type="multi_label_classification"
    )

    def run(rows: Pairs) -> float:
        queries, documents, labels = map(list, zip(*rows, strict=True))
        encoded = tokenizer(queries, documents, truncation="only_second", max_length=job.max_len)
        data = Dataset.from_dict({**encoded, "labels": [[float(label)] for label in labels]})
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                bf16=bf16,
                train_sampling_strategy="group_by_length",
                **peer_settings(has_device, at_once),
            )
            collator = DataCollatorWithPadding(tokenizer)
            return trained(Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator))

    run(job.pairs[:WARM_UP])
    return run(job.pairs)


def peer_settings(has_device: bool, at_once: int) -> dict[str, Any]:
    return {
        "num_train_epochs": 1, "per_device_train_batch_size": at_once, "gradient_accumulation_steps": BATCH // at_once,
        "learning_rate": 1e-5, "use_cpu": not has_device, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "logging_strategy": "no",
    }  # fmt: skip


def trained(trainer: Any) -> float:
    begun = time.perf_counter()
    trainer.train()
    synchronize()
    return time.perf_counter() - begun


SYSTEMS: dict[str, Callable[[Work, Path, int], float]] = {
    "sentence-transformers fp32": lambda job, base, at_once: sentence_transformers(job, False, base, at_once),
    "sentence-transformers bf16": lambda job, base, at_once: sentence_transformers(job, True, base, at_once),
    "Trainer by length fp32": lambda job, base, at_once: plain_trainer(job, False, base, at_once),
    "Trainer by length bf16": lambda job, base, at_once: plain_trainer(job, True, base, at_once),
    "rankery fp32": lambda job, base, _: ours(job, "no", base),
    "rankery bf16": lambda job, base, _: ours(job, "bf16", base),
}
RATIOS = (
    ("rankery bf16", "sentence-transformers fp32"),
    ("rankery bf16", "sentence-transformers bf16"),
    ("rankery fp32", "sentence-transformers fp32"),
    ("rankery bf16", "Trainer by length bf16"),
    ("rankery fp32", "Trainer by length fp32"),
)


def tokens(job: Work, base: Path) -> np.ndarray:
    """Tokens of each pair."""
    from transformers import AutoTokenizer

    from rankery.data.template import pair_template

    template = pair_template(AutoTokenizer.from_pretrained(base), job.max_len)
    with tempfile.TemporaryDirectory() as folder:
        path = write(job.pairs, Path(folder))
        encode([path], AutoTokenizer.from_pretrained(base), template, LabelRange(), Path(folder) / "cache")
        return np.array(open_encoded(Path(folder) / "cache", template, LabelRange(), [path]).lengths)


def operations(base: Path, lengths: np.ndarray, first_alone: bool) -> float:
    """Floating-point operations of pairs, forward and backward: six for each token and weight of a layer (attention apart).

    With `first_alone` the last layer of a model like BERT has only the first token of each pair after its attention.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(base)
    layers = max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)
    every, last = weights(layers), layers[-1]
    if not first_alone or not hasattr(last, "attention"):
        return 6.0 * every * float(lengths.sum())
    spared = weights(last) - weights(last.attention)
    return 6.0 * ((every - spared) * float(lengths.sum()) + spared * len(lengths))


def weights(module: torch.nn.Module) -> int:
    """Of its matrices."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


def padding(lengths: np.ndarray) -> str:
    """Tokens computed for each real one: packed, cut by length, and by random batches."""
    from rankery.models.budget import CPU_BUDGET

    layouts: tuple[Layout, ...] = ("packed", "padded")
    plans = [Plan(Fixed(one_each(lengths)), lengths, 0, BATCH, 1, CPU_BUDGET, layout) for layout in layouts]
    packed, cut = (
        sum(computed_tokens(plan.step(n), lengths, plan.layout) for n in range(plan.steps_per_epoch)) for plan in plans
    )
    padded = sum(BATCH * int(lengths[n * BATCH : (n + 1) * BATCH].max()) for n in range(len(lengths) // BATCH))
    real = int(lengths.sum())
    return (
        f"tokens a pair: mean {lengths.mean():.0f}, most {lengths.max()}; computed for each real one: packed "
        f"{packed / real:.3f}, cut by length {cut / real:.3f}, random batches {padded / real:.2f}"
    )


if __name__ == "__main__":
    main()
