"""`rankery evaluate`: a reranker on labelled data."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankery.verbs.options import scoring_options


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("evaluate", help="measure a reranker", description="Measure a reranker on labelled data.")
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="JSONL files or globs")
    parser.add_argument("--output", metavar="DIR", help="folder for metrics.json, run.trec and qrels.trec")
    parser.add_argument("--min-label", type=float, help="label of what is not relevant (default: the model's)")
    parser.add_argument("--relevant-above", type=float, help="labels above it are relevant (default: min-label)")
    parser.add_argument("--recall-at", type=int, nargs="+", default=[10], metavar="K")
    parser.add_argument("--seed", type=int, default=42, help="breaks ties (default 42)")
    scoring_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.evaluate.evaluate import evaluate_model

    options = {"batch_size": arguments.batch_size, "max_length": arguments.max_length}
    table = evaluate_model(
        arguments.model,
        arguments.data,
        output=Path(arguments.output) if arguments.output else None,
        min_label=arguments.min_label,
        relevant_above=arguments.relevant_above,
        recall_at=arguments.recall_at,
        seed=arguments.seed,
        device=arguments.device,
        dtype=arguments.dtype,
        prompt=arguments.prompt,
        **options,
    )
    print(table)
