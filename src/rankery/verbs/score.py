"""`rankery score`: teacher scores as training data, by one process or several."""

from __future__ import annotations

import argparse

from rankery.processes import joined, own_device, relaunched
from rankery.verbs.options import model_options


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "score",
        help="score pairs as a teacher",
        description="Write teacher scores as training data; goes on if stopped.",
    )
    parser.add_argument("--model", required=True, action="append", metavar="DIR", help="several are averaged")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="JSONL files or globs")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--weight", type=float, action="append", metavar="W", help="of each --model (default 1)")
    parser.add_argument("--temperature", type=float, action="append", metavar="T", help="divides each --model's logits")
    parser.add_argument("--store", metavar="FILE", help="keeps scores by content, for other data and runs")
    parser.add_argument(
        "--keep-lists", action="store_true", help="write neg apart from pos, for a false_negative_margin"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a pair at most, of models that rankery has not saved (default 512)",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run model code that a checkpoint brings along"
    )
    model_options(parser, several=True)
    parser.set_defaults(run=_run, goes_on="; the same command goes on where it was")


def _run(arguments: argparse.Namespace) -> int:
    status = relaunched(arguments)
    if status is not None:
        return status
    from rankery.distilling.score import score

    score(
        arguments.model,
        arguments.data,
        arguments.output,
        weights=arguments.weight,
        temperatures=arguments.temperature,
        prompt=arguments.prompt,
        device=own_device(arguments.device),
        dtype=arguments.dtype,
        max_len=arguments.max_length,
        trust_remote_code=arguments.trust_remote_code,
        store=arguments.store,
        keep_lists=arguments.keep_lists,
        overwrite=arguments.overwrite,
        group=joined(),
    )
    return 0
