"""Training speed beside sentence-transformers: same base, data, batch and precision, in one run, in turns.

    python benchmarks/train_speed.py [--steps 3] [--rounds 3]

Prints pairs a second of each, medians over rounds, and ratios; and the padding that each computes. Each measurement is
a process of its own and starts with an untimed step. Work: (summary line, rest
of docstring) pairs of Python's standard library, about 200 tokens, up to 512; batch 32; all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
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

import numpy as np
import torch

from rankery.data.encoding import encode, open_encoded
from rankery.data.examples import Fixed, one_each
from rankery.data.plan import Layout, Plan, computed_tokens
from rankery.data.records import LabelRange
from rankery.demo_data import base_model_path, docstring_pairs

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3, help="updates of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turns")
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)  # one measurement, in this process
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    pairs = docstring_pairs(BATCH * arguments.steps, seed=1)
    if arguments.measure:
        print(SYSTEMS[arguments.measure](pairs))
        return
    print(machine())
    times: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for _ in range(arguments.rounds):
        for name in SYSTEMS:
            times[name].append(measured_alone(name, arguments.steps))
    for name, values in times.items():
        rate = statistics.median(len(pairs) / seconds for seconds in values)
        print(f"{name:28} {rate:7.2f} pairs/s   (rounds: {', '.join(f'{t:.1f} s' for t in values)})")
    print()
    for mine, other in (
        ("rankery bf16", "sentence-transformers fp32"),
        ("rankery bf16", "sentence-transformers bf16"),
        ("rankery fp32", "sentence-transformers fp32"),
    ):
        ratios = [b / a for a, b in zip(times[mine], times[other], strict=True)]
        print(f"{mine} / {other}: {statistics.median(ratios):.2f} x (min {min(ratios):.2f}, max {max(ratios):.2f})")
    print(padding(pairs))


def measured_alone(name: str, steps: int) -> float:
    """Seconds of one system in a process of its own, so that our memory settings do not help the other."""
    command = [sys.executable, __file__, "--measure", name, "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout.splitlines()[-1])


def ours(pairs: list[tuple[str, str, float]], precision: str, model: Path | None = None) -> float:
    """Seconds of the steps themselves, after a warm-up step, by the loop's own code."""
    from rankery.config import load_config
    from rankery.models.budget import keep_large_blocks
    from rankery.training.engine import start_engine
    from rankery.training.run import build
    from rankery.training.step import step_batches, train_step

    keep_large_blocks()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            {
                "model_name_or_path": str(model or base_model_path()), "train_dataset": str(write(pairs, Path(folder))),
                "output_dir": f"{folder}/out", "dataset_cache_dir": f"{folder}/cache", "batch_size": BATCH, "lr": 1e-5,
                "mixed_precision": precision, "attention_dropout": 0.0, "log_with": "none",
            }
        )  # fmt: skip
        run = build(config, start_engine(config))
        run.model.train()
        batches = step_batches(run)
        train_step(run, 0, batches[0])
        synchronize()
        begun = time.perf_counter()
        for number in range(run.plan.steps_per_epoch):
            train_step(run, number, batches[number])
        synchronize()
        return time.perf_counter() - begun


def peer(pairs: list[tuple[str, str, float]], bf16: bool, model: Path | None = None) -> float:
    """Seconds of CrossEncoderTrainer over the same pairs, at its defaults, after a warm-up step."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    has_device = torch.cuda.is_available()
    reranker = CrossEncoder(
        str(model or base_model_path()), num_labels=1, max_length=512, device="cuda" if has_device else "cpu"
    )

    def run(rows: list[tuple[str, str, float]]) -> float:
        data = Dataset.from_dict(
            dict(zip(("query", "document", "label"), map(list, zip(*rows, strict=True)), strict=True))
        )
        with tempfile.TemporaryDirectory() as folder:
            arguments = CrossEncoderTrainingArguments(
                output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-5, bf16=bf16,
                use_cpu=not has_device, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
            )  # fmt: skip
            trainer = CrossEncoderTrainer(
                model=reranker, args=arguments, train_dataset=data, loss=BinaryCrossEntropyLoss(reranker)
            )
            begun = time.perf_counter()
            trainer.train()
            synchronize()
            return time.perf_counter() - begun

    run(pairs[:BATCH])
    return run(pairs)


def synchronize() -> None:
    """Waits for an accelerator's queue, so that what was asked of it is in the time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write(pairs: list[tuple[str, str, float]], folder: Path) -> Path:
    import json

    path = folder / "pairs.jsonl"
    rows = (json.dumps({"query": query, "content": document, "label": label}) for query, document, label in pairs)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def padding(pairs: list[tuple[str, str, float]]) -> str:
    """Tokens computed for each real one, by our cut and by random batches."""
    from transformers import AutoTokenizer

    from rankery.data.template import pair_template
    from rankery.models.budget import CPU_BUDGET

    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    template = pair_template(tokenizer, 512)
    with tempfile.TemporaryDirectory() as folder:
        path = write(pairs, Path(folder))
        encode([path], tokenizer, template, LabelRange(), Path(folder) / "cache")
        lengths = np.array(open_encoded(Path(folder) / "cache", template, LabelRange(), [path]).lengths)
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


SYSTEMS: dict[str, Callable[[list[tuple[str, str, float]]], float]] = {
    "sentence-transformers fp32": lambda pairs: peer(pairs, bf16=False),
    "sentence-transformers bf16": lambda pairs: peer(pairs, bf16=True),
    "rankery fp32": lambda pairs: ours(pairs, "no"),
    "rankery bf16": lambda pairs: ours(pairs, "bf16"),
}


def machine() -> str:
    """Machine and versions, for the record."""
    import platform

    import sentence_transformers
    import transformers

    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, sentence-transformers {sentence_transformers.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main()
