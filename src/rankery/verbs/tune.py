"""`rankery tune`: the token budget that trains fastest here, measured once."""

from __future__ import annotations

import argparse


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "tune",
        help="measure the fastest token budget",
        description="Measure which token_budget trains fastest, and keep it for trainings of this model on this device.",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the keys of docs/configuration.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that replace those of the file")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.config import parse_overrides
    from rankery.training.tune import tune

    tune(arguments.config, **parse_overrides(arguments.overrides))
