"""`rankery demo`: the main job on built-in data."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "demo", help="the main job on built-in data", description="Fine-tune and compare, downloading nothing."
    )
    parser.add_argument("--output", default="demo_run", metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished demo")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.demo import run_demo

    run_demo(Path(arguments.output), arguments.overwrite)
