"""Scoring speed of an LLM decoder beside a plain transformers loop with length-sorted batches: same weights, precision and pairs.

    python benchmarks/llm_speed.py --base SmolLM2.gguf [--pairs 256] [--rounds 3]

Score head: beside AutoModelForSequenceClassification. Yes/no: beside AutoModelForCausalLM, which computes the whole vocabulary at
every position, at equal batches; and the peak resident memory of each, in a process of its own. All systems take turns in one
process, where our allocator settings help the plain loop too.
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
from typing import Any

import numpy as np
import torch
from machine import machine

from rankery import LLMDecoder
from rankery.data.collate import pad
from rankery.data.examples import one_each
from rankery.data.plan import deal
from rankery.demo_data import docstring_pairs
from rankery.models.budget import default_token_budget
from rankery.models.reranker import encode_pairs

SYSTEMS = ("rankery, score", "plain loop, score", "rankery, yes/no", "plain loop, yes/no")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder or GGUF file of the language model")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--saved", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    pairs = [(query, document) for query, document, _ in docstring_pairs(arguments.pairs, seed=2)]
    if arguments.memory_of:
        system(arguments.memory_of, arguments.saved, torch.bfloat16, pairs)()
        status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak
        print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
        return
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        saved = Path(name)
        LLMDecoder.from_pretrained(arguments.base, seed=0, max_len=256).save_pretrained(saved / "score")
        LLMDecoder.from_pretrained(arguments.base, head="yes_no", max_len=256).save_pretrained(saved / "yes/no")
        for dtype in DTYPES.values():
            compare(saved, dtype, pairs, arguments.rounds)
        for one in SYSTEMS:
            command = [sys.executable, __file__, "--base", str(arguments.base), "--pairs", str(arguments.pairs)]
            done = subprocess.run(
                [*command, "--memory-of", one, "--saved", name], capture_output=True, text=True, check=True
            )
            print(f"{one}: peak resident memory {done.stdout.split()[-1]} MiB (bfloat16)")


def compare(saved: Path, dtype: torch.dtype, pairs: list[tuple[str, str]], rounds: int) -> None:
    systems = {name: system(name, saved, dtype, pairs) for name in SYSTEMS}
    times: dict[str, list[float]] = {name: [] for name in systems}
    scores: dict[str, torch.Tensor] = {}
    for round_number in range(rounds + 1):
        for name, work in systems.items():
            begun = time.perf_counter()
            scores[name] = work()
            if round_number:  # the first is a warm-up
                times[name].append(time.perf_counter() - begun)
    for name, values in times.items():
        print(f"{name:20} {dtype}: {len(pairs) / statistics.median(values):7.1f} pairs/s")
    for head in ("score", "yes/no"):
        ours, plain = f"rankery, {head}", f"plain loop, {head}"
        ratio = statistics.median(b / a for a, b in zip(times[ours], times[plain], strict=True))
        difference = float((scores[ours] - scores[plain]).abs().max())
        print(f"{head}: rankery / plain loop {ratio:.2f} x; largest score difference {difference:.1e}", flush=True)


def system(name: str, saved: Path, dtype: torch.dtype, pairs: list[tuple[str, str]]) -> Callable[[], torch.Tensor]:
    who, head = name.split(", ")
    reranker = LLMDecoder.from_pretrained(saved / head, dtype=dtype, device="cpu")
    if who == "rankery":
        return lambda: reranker.compute_score(pairs)
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if head == "yes/no" else AutoModelForSequenceClassification
    model = kind.from_pretrained(saved / head, dtype=dtype).eval()
    return lambda: plain_loop(model, reranker, pairs)


@torch.inference_mode()
def plain_loop(model: Any, reranker: LLMDecoder, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """What one writes by hand: tokenise, sort by length, pad, call the model; batches as ours, so that only the head differs."""
    rows, *_ = encode_pairs(pairs, reranker.tokenizer, reranker.template)
    lengths = np.array([len(ids) for ids, _ in rows])
    budget = default_token_budget(model.config, torch.device("cpu"), training=False)
    (batches,) = deal(np.arange(len(rows)), one_each(lengths), lengths, 1, budget)
    scores = torch.empty(len(pairs))
    for micro_batch in batches:
        batch = pad([rows[i] for i in micro_batch.pairs], reranker.template.pad_token_id)
        mask = batch.attention_mask
        assert mask is not None
        logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
        if reranker.reading.head == "yes_no":
            last = logits[torch.arange(len(mask)), mask.sum(dim=1) - 1].float()
            yes, no = reranker.scorer.vocabulary.rows  # type: ignore[union-attr]
            logits = last[:, yes] - last[:, no]
        scores[torch.from_numpy(micro_batch.pairs)] = logits.float().reshape(-1)
    return scores


if __name__ == "__main__":
    main()
