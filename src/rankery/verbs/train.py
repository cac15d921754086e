"""`rankery train`: one process, or a launcher's several."""

from __future__ import annotations

import argparse
import os

from rankery.errors import InputError
from rankery.launcher import ENGINES, launch
from rankery.processes import check_count


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("train", help="fine-tune a reranker", description="Fine-tune a reranker.")
    parser.add_argument("--config", metavar="FILE", help="YAML file with the keys of docs/configuration.md")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument(
        "--engine", choices=sorted(ENGINES), help="how they share the work (default ddp; see docs/engines.md)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that replace those of the file")
    parser.set_defaults(run=_run, goes_on="; resume=true goes on from the newest checkpoint")


def _run(arguments: argparse.Namespace) -> int:
    from rankery.config import load_config, parse_overrides

    check_count(arguments.processes)
    launched = "LOCAL_RANK" in os.environ
    if (arguments.processes > 1 or arguments.engine) and launched:
        raise InputError("--processes and --engine start a launcher, but a launcher runs this already; leave them out")
    if arguments.processes > 1 or arguments.engine:
        load_config(
            arguments.config, parse_overrides(arguments.overrides)
        )  # what is wrong is said once, by no launcher
        words = ["--config", arguments.config] if arguments.config else []
        return launch(arguments.processes, arguments.engine or "ddp", ["train", *words, *arguments.overrides])
    from rankery.training.engine import leave
    from rankery.training.run import train

    train(arguments.config, **parse_overrides(arguments.overrides))
    leave()
    return 0
