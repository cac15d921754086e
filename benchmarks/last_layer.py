"""What it gains that an encoder's last layer goes on with the first tokens alone (models/packing.py), in training and prediction.

    python benchmarks/last_layer.py [--tokens 40 200] [--rounds 7]

One packed micro-batch of 2,048 tokens, all-MiniLM-L6-v2, its pairs of so many tokens each; with and without take turns. Prints
medians of ratios, smallest and largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from contextlib import nullcontext

import numpy as np
import torch
from machine import machine

from rankery import CrossEncoder
from rankery.data.collate import Batch, pack
from rankery.demo_data import base_model_path
from rankery.models.budget import CPU_BUDGET, computes_bf16, keep_large_blocks, set_attention
from rankery.models.scorer import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[40, 200], help="of a pair")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_large_blocks()
    reranker = CrossEncoder.from_pretrained(base_model_path(), 1, dtype=torch.float32, device="cpu")
    cuts = reranker.model.base_model.encoder.layer[-1].attention._forward_hooks
    kept = dict(cuts)
    random = np.random.default_rng(0)
    print(machine(), flush=True)
    for dtype in (torch.float32, torch.bfloat16) if computes_bf16() else (torch.float32,):
        set_attention(reranker.model, torch.device("cpu"), dtype, packed=True)
        for tokens in arguments.tokens:
            batch = pack([(random.integers(1000, 20000, tokens), None) for _ in range(CPU_BUDGET // tokens)])
            for trains in (True, False):
                times: dict[bool, list[float]] = {True: [], False: []}
                for _ in range(arguments.rounds + 1):
                    for cut, measured in times.items():
                        cuts.clear()
                        cuts.update(kept if cut else {})
                        measured.append(timed(reranker.scorer, batch, dtype, trains))
                ratios = [whole / cut for cut, whole in zip(times[True][1:], times[False][1:], strict=True)]
                print(
                    f"{str(dtype).removeprefix('torch.')}, pairs of {tokens} tokens, {'training' if trains else 'prediction'}: "
                    f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )


def timed(scorer: Scorer, batch: Batch, dtype: torch.dtype, trains: bool) -> float:
    """Seconds of one pass, and of its way back if it trains."""
    precision = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    begun = time.perf_counter()
    with torch.set_grad_enabled(trains), precision:
        logits = scorer(*batch.arguments)
        if trains:
            logits.float().sum().backward()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
