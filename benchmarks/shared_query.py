"""What computing a query once for its documents gains an LLM decoder, in training and in prediction; and what packing gains.

    python benchmarks/shared_query.py --base SmolLM2.gguf [--documents 16] [--head-tokens 80] [--rounds 5]

One group: a prompt of so many tokens with its query, and documents of 30 to 100 tokens behind it. The same group three times,
fp32: padded, packed, and packed with a shared query; they take turns. Prints medians of ratios, and how far scores and
gradients are from the padded ones.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from machine import machine

from rankery import LLMDecoder
from rankery.data.collate import Batch, pack, pad
from rankery.models.budget import keep_large_blocks, set_attention
from rankery.models.scorer import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder or GGUF file of the language model")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--head-tokens", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    keep_large_blocks()
    reranker = LLMDecoder.from_pretrained(arguments.base, seed=0, dtype=torch.float32, device="cpu")
    set_attention(reranker.model, torch.device("cpu"), torch.float32, packed=True)
    random, words = np.random.default_rng(0), len(reranker.tokenizer)
    head = random.integers(10, words, arguments.head_tokens)
    lengths = random.integers(30, 101, arguments.documents)
    rows = [(np.concatenate([head, random.integers(10, words, length)]), None) for length in lengths]
    batches = {
        "padded": pad(rows, reranker.template.pad_token_id),
        "packed": pack(rows),
        "shared": pack(rows, [len(head)] * len(rows), [0] * len(rows)),
    }
    print(machine(), flush=True)
    print(
        f"{arguments.documents} documents, tokens: "
        + ", ".join(f"{k} {b.input_ids.numel()}" for k, b in batches.items())
    )
    for what, work in (("training", forward_backward), ("prediction", forward)):
        times: dict[str, list[float]] = {name: [] for name in batches}
        results: dict[str, torch.Tensor] = {}
        for round_number in range(arguments.rounds + 1):
            for name, batch in batches.items():
                begun = time.perf_counter()
                results[name] = work(reranker.scorer, batch)
                if round_number:  # the first is a warm-up
                    times[name].append(time.perf_counter() - begun)
        for name in ("packed", "padded"):
            ratios = [b / a for a, b in zip(times["shared"], times[name], strict=True)]
            print(f"{what}: shared {statistics.median(ratios):.2f} x {name} ({min(ratios):.2f} to {max(ratios):.2f})")
        for name in ("packed", "shared"):
            difference = float((results[name] - results["padded"]).norm() / results["padded"].norm())
            print(f"{what}: {name} differs from padded by {difference:.1e} of the norm", flush=True)


def forward_backward(scorer: Scorer, batch: Batch) -> torch.Tensor:
    """Gradients of all weights, in one row."""
    scorer.zero_grad()
    logits = scorer(*batch.arguments)
    torch.logsumexp(logits, dim=0).sub(logits[0]).backward()
    return torch.cat([p.grad.flatten() for p in scorer.parameters() if p.grad is not None])


@torch.inference_mode()
def forward(scorer: Scorer, batch: Batch) -> torch.Tensor:
    return scorer(*batch.arguments)


if __name__ == "__main__":
    main()
