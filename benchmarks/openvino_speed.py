"""Prediction speed beside sentence-transformers with its OpenVINO backend, which wants an environment of its own.

    python benchmarks/openvino_speed.py [--environment FOLDER] [--pairs 512] [--rounds 3]

OpenVINO's integration is for an older transformers: the first run makes an environment in FOLDER and installs it there. Same
weights and pairs; each system keeps one process, and they take turns. OpenVINO computes in the precision that it finds best.
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
import venv
import warnings
from pathlib import Path

PEER = """
import json, os, sys, time, warnings
warnings.filterwarnings("ignore")
model, pairs = sys.argv[1], [tuple(pair) for pair in json.load(open(sys.argv[2]))]
from sentence_transformers import CrossEncoder
reranker = CrossEncoder(model, backend="openvino", max_length=512, device="cpu", model_kwargs={"export": True})
print("ready", flush=True)
for line in sys.stdin:
    begun = time.perf_counter()
    scores = reranker.predict(pairs, batch_size=int(line), show_progress_bar=False)
    print(json.dumps([time.perf_counter() - begun, [float(score) for score in scores]]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=Path(".venv-openvino"))
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="theirs; its default")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from machine import machine

    from rankery import CrossEncoder
    from rankery.demo_data import base_model_path, docstring_pairs

    python = installed(arguments.environment, torch.__version__.split("+")[0])
    pairs = [(query, document) for query, document, _ in docstring_pairs(arguments.pairs, seed=2)]
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        CrossEncoder.from_pretrained(base_model_path(), seed=0).save_pretrained(folder / "model")
        (folder / "pairs.json").write_text(json.dumps(pairs))
        command = [str(python), "-c", PEER, str(folder / "model"), str(folder / "pairs.json")]
        peer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert peer.stdin is not None
        assert peer.stdout is not None
        if not any(line == "ready\n" for line in peer.stdout):
            sys.exit("the OpenVINO process ended; run its environment by hand to see why")
        ours = {
            str(dtype).removeprefix("torch."): CrossEncoder.from_pretrained(folder / "model", dtype=dtype, device="cpu")
            for dtype in (torch.float32, torch.bfloat16)
        }
        times: dict[str, list[float]] = {name: [] for name in ("openvino", *ours)}
        scores: dict[str, torch.Tensor] = {}
        for round_number in range(arguments.rounds + 1):
            peer.stdin.write(f"{arguments.batch_size}\n")
            peer.stdin.flush()
            seconds, found = json.loads(peer.stdout.readline())
            scores["openvino"] = torch.tensor(found)
            taken = {"openvino": seconds}
            for name, reranker in ours.items():
                begun = time.perf_counter()
                scores[name] = reranker.compute_score(pairs).float()
                taken[name] = time.perf_counter() - begun
            if round_number:  # the first is a warm-up
                for name, seconds in taken.items():
                    times[name].append(seconds)
        peer.stdin.close()
        peer.wait()
    for name, values in times.items():
        ratios = [b / a for a, b in zip(values, times["openvino"], strict=True)]
        difference = float((scores[name] - scores["float32"]).abs().max())
        print(
            f"{name:10} {arguments.pairs / statistics.median(values):7.1f} pairs/s   {statistics.median(ratios):.2f} x OpenVINO "
            f"({min(ratios):.2f} to {max(ratios):.2f})   differs from our fp32 by {difference:.1e}"
        )


def installed(folder: Path, torch_version: str) -> Path:
    """The interpreter of an environment with sentence-transformers and OpenVINO, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        packages = [f"torch=={torch_version}", "sentence-transformers[openvino]"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        # Nothing here reads pictures, and torchvision may be built for another torch than the one that was found.
        subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)
    return python


if __name__ == "__main__":
    main()
