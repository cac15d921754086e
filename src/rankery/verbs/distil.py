"""`rankery distil`: a teacher scores, a student learns, both are compared."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from glob import glob
from itertools import chain

from rankery.verbs.options import model_options

SETTING = re.compile(r"\w[\w.]*=")


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "distil", help="teach a small model", description="Score with a teacher, train a student, compare."
    )
    parser.add_argument("--teacher", action="append", metavar="DIR", help="several are averaged")
    of_scores = "scores of --data that are there already; --teacher is then only measured"
    parser.add_argument("--scores", nargs="+", default=[], metavar="FILE", help=of_scores)
    parser.add_argument("--student", required=True, metavar="DIR", help="base model")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="training data with labels")
    parser.add_argument("--val", required=True, nargs="+", metavar="FILE", help="held-out data with labels")
    parser.add_argument("--output", default="output/distil", metavar="DIR", help="default: output/distil")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings of both trainings")
    parser.add_argument("--weight", type=float, action="append", metavar="W", help="of each --teacher (default 1)")
    parser.add_argument(
        "--temperature", type=float, action="append", metavar="T", help="divides each --teacher's logits"
    )
    parser.add_argument("--store", metavar="FILE", help="keeps teacher scores by content")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    model_options(parser, several=True)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings; labels.key and distilled.key are for one training"
    )
    parser.set_defaults(run=_run, goes_on="; the same command goes on where it was")


def _run(arguments: argparse.Namespace) -> None:
    from rankery.config import parse_overrides
    from rankery.distilling.compare import distil

    parted = [_parted(words) for words in (arguments.data, arguments.val, arguments.scores)]
    (data, val, scores), settings = zip(*parted, strict=True)
    table = distil(
        arguments.teacher,
        arguments.student,
        data,
        val,
        arguments.output,
        scores=scores,
        weights=arguments.weight,
        temperatures=arguments.temperature,
        prompt=arguments.prompt,
        device=arguments.device,
        dtype=arguments.dtype,
        config=arguments.config,
        overrides=parse_overrides([*chain(*settings), *arguments.overrides]),
        store=arguments.store,
        processes=arguments.processes,
    )
    print(table)


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files, settings): an option that takes several files takes the key=value words behind them too."""
    settings = [word for word in words if SETTING.match(word) and not (os.path.exists(word) or glob(word))]
    return [word for word in words if word not in settings], settings
