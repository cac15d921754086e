"""`rankery calibrate`: scores that are probabilities, and thresholds."""

from __future__ import annotations

import argparse


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "calibrate",
        help="make scores probabilities",
        description="Fit a calibration on held-out labelled data, measure it, keep it with the model.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a model that rankery saved")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="FILE", help="JSONL files or globs, new to the model"
    )
    parser.add_argument("--precision", type=float, metavar="P", help="find the threshold that reaches it")
    parser.add_argument("--recall", type=float, metavar="R", help="find the threshold that reaches it")
    parser.add_argument("--min-label", type=float, help="label of what is not relevant (default: the model's)")
    parser.add_argument("--relevant-above", type=float, help="labels above it are relevant (default: min-label)")
    parser.add_argument("--html", metavar="FILE", help="also write a page, with reliability before and after")
    parser.add_argument("--overwrite", action="store_true", help="replace a calibration, and a page, that is there")
    parser.add_argument("--seed", type=int, default=42, help="deals queries to folds (default 42)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="pairs that run together at most")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on CPUs")
    parser.add_argument("--device", help="default: the accelerator, if there is one")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.calibrating.calibrate import calibrate

    result = calibrate(
        arguments.model,
        arguments.data,
        precision=arguments.precision,
        recall=arguments.recall,
        min_label=arguments.min_label,
        relevant_above=arguments.relevant_above,
        html=arguments.html,
        overwrite=arguments.overwrite,
        seed=arguments.seed,
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
    )
    print(f"{result}\n\n{arguments.model} now gives probabilities: compute_score(..., calibrated=True)")
