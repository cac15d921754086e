"""What calibration brings on WikiQA: a reranker trained on its training file, calibrated on its test file.

    python benchmarks/calibration.py --data ../shared/data [--loss listwise_ce] [--html FILE]

The dev file chooses nothing: one epoch, 8 queries a step, learning rate 1e-4, 96 tokens a pair, fp32. All figures are held out,
see docs/calibration.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from machine import machine

from rankery import calibrate, train
from rankery.demo_data import base_model_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with wikiqa/")
    parser.add_argument("--loss", default="listwise_ce")
    parser.add_argument("--html", help="also write the page")
    arguments = parser.parse_args()
    data = arguments.data / "wikiqa"
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        model = train(
            {
                "model_name_or_path": str(base_model_path()), "train_dataset": str(data / "train.jsonl"),
                "loss_type": arguments.loss, "batch_size": 8, "lr": 1e-4, "epochs": 1, "max_len": 96, "attention_dropout": 0.0,
                "log_with": "none", "output_dir": str(Path(folder) / "run"),
            }
        )  # fmt: skip
        print(
            calibrate(model, [str(data / "test.jsonl")], precision=0.5, recall=0.9, html=arguments.html, overwrite=True)
        )


if __name__ == "__main__":
    main()
