"""`rankery compare`: trainings side by side."""

from __future__ import annotations

import argparse


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "compare", help="trainings side by side", description="Configurations that differ, final metrics, curves."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a training")
    parser.add_argument("--output", metavar="FILE", help="HTML page with the curves of all runs")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.training.comparison import compare

    print(compare(arguments.runs, arguments.output, arguments.overwrite))
