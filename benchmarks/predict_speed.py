"""Prediction speed beside sentence-transformers' predict: same weights and pairs, in one run, in turns.

python benchmarks/predict_speed.py [--pairs 512] [--rounds 3]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings

import torch
from machine import machine

from rankery import CrossEncoder
from rankery.demo_data import base_model_path, docstring_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import CrossEncoder as Peer

    pairs = [(query, document) for query, document, _ in docstring_pairs(arguments.pairs, seed=2)]
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        CrossEncoder.from_pretrained(base_model_path(), seed=0).save_pretrained(folder + "/model")
        for dtype in (torch.float32, torch.bfloat16):
            mine = CrossEncoder.from_pretrained(folder + "/model", dtype=dtype, device="cpu")
            other = Peer(folder + "/model", device="cpu", model_kwargs={"dtype": dtype})
            systems = {
                "rankery": lambda mine=mine: mine.compute_score(pairs),
                "sentence-transformers": lambda other=other: other.predict(
                    pairs, batch_size=32, show_progress_bar=False
                ),
            }
            times: dict[str, list[float]] = {name: [] for name in systems}
            for round_number in range(arguments.rounds + 1):
                for name, system in systems.items():
                    begun = time.perf_counter()
                    scores = torch.as_tensor(system()).float()
                    if round_number:  # the first is a warm-up
                        times[name].append(time.perf_counter() - begun)
                    elif name == "rankery":
                        first = scores
            difference = float((scores - first).abs().max())
            for name, values in times.items():
                print(f"{name:22} {dtype}: {arguments.pairs / statistics.median(values):7.1f} pairs/s")
            ratios = [b / a for a, b in zip(times["rankery"], times["sentence-transformers"], strict=True)]
            print(
                f"rankery / sentence-transformers: {statistics.median(ratios):.2f} x; largest score difference {difference:.1e}\n"
            )


if __name__ == "__main__":
    main()
