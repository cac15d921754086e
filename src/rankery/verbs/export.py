"""`rankery export`: another form of a saved reranker."""

from __future__ import annotations

import argparse


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "export", help="another form of a reranker", description="Write a reranker in a form that other programs load."
    )
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--to", required=True, choices=["seq-cls"], help="a yes/no model with a classification head")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--prompt", metavar="NAME", help="preset of a model that rankery has not saved (see docs/prompts.md)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.models.export import export

    export(arguments.model, arguments.output, arguments.prompt, arguments.overwrite)
