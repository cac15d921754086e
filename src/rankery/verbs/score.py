"""`rankery score`: teacher scores as training data, by one process or several."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from rankery.errors import InputError
from rankery.launcher import launch
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
    launched = "LOCAL_RANK" in os.environ
    if arguments.processes < 1 or (arguments.processes > 1 and launched):
        raise InputError(
            f"--processes is {arguments.processes}; expected at least 1, and nothing where a launcher runs this already"
        )
    if arguments.processes > 1:
        words = arguments.words
        at = next(i for i, word in enumerate(words) if word.startswith("--processes"))
        del words[at : at + (1 if "=" in words[at] else 2)]
        return launch(arguments.processes, "ddp", words)
    from rankery.data.files import expand_paths
    from rankery.distil.teacher import Teacher, check_output, score_file
    from rankery.models.opening import open_reranker

    models = arguments.model
    lists = {"--weight": arguments.weight, "--temperature": arguments.temperature}
    for name, values in lists.items():
        if values and (len(values) != len(models) or min(values) <= 0):
            raise InputError(f"{name} is {values}; expected one number above 0 for each of {len(models)} models")
    process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if process == 0:
        check_output(Path(arguments.output), expand_paths(arguments.data), arguments.overwrite)
    ones = [1.0] * len(models)
    teachers = [
        Teacher(
            open_reranker(model, arguments.prompt, device=_own_device(arguments.device), dtype=arguments.dtype), w, t
        )
        for model, w, t in zip(models, arguments.weight or ones, arguments.temperature or ones, strict=True)
    ]
    score_file(
        teachers,
        arguments.data,
        Path(arguments.output),
        overwrite=arguments.overwrite,
        store=Path(arguments.store) if arguments.store else None,
        process=process,
        processes=processes,
        meet=_meeting() if processes > 1 else lambda: None,
    )
    return 0


def _meeting() -> Callable[[], object]:
    """A function that returns when all processes of a launch have called it."""
    from datetime import timedelta

    import torch

    torch.distributed.init_process_group("gloo", timeout=timedelta(days=1))  # models may load at different speeds
    return torch.distributed.barrier


def _own_device(wanted: str | None) -> str | None:
    """The accelerator of this process, where a launcher gave each its own."""
    import torch

    if wanted is None and "LOCAL_RANK" in os.environ and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    return wanted
