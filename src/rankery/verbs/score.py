"""`rankery score`: teacher scores as training data, by one process or several."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankery.errors import InputError
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
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    model_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    status = relaunched(arguments)
    if status is not None:
        return status
    from rankery.data.files import expand_paths
    from rankery.distil.teacher import Teacher, check_output, score_file
    from rankery.models.opening import open_reranker

    models = arguments.model
    lists = {"--weight": arguments.weight, "--temperature": arguments.temperature}
    for name, values in lists.items():
        if values and (len(values) != len(models) or min(values) <= 0):
            raise InputError(f"{name} is {values}; expected one number above 0 for each of {len(models)} models")
    group = joined()
    if group.process == 0:
        check_output(Path(arguments.output), expand_paths(arguments.data), arguments.overwrite)
    ones = [1.0] * len(models)
    teachers = [
        Teacher(
            open_reranker(model, arguments.prompt, device=own_device(arguments.device), dtype=arguments.dtype), w, t
        )
        for model, w, t in zip(models, arguments.weight or ones, arguments.temperature or ones, strict=True)
    ]
    score_file(
        teachers,
        arguments.data,
        Path(arguments.output),
        overwrite=arguments.overwrite,
        store=Path(arguments.store) if arguments.store else None,
        process=group.process,
        processes=group.processes,
        meet=group.meet,
    )
    return 0
