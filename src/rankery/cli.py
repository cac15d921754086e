"""The command line: verbs only; parse, call, print. Heavy imports wait until a verb runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rankery import __version__
from rankery.errors import InputError
from rankery.launcher import ENGINES, launch


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb: 0 when done; else, said on standard error, 1 where the system refuses (a full disk), 2 for bad input, 130 when
    interrupted.
    """
    arguments, unknown = _parser().parse_known_args(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(arguments, "overrides"):  # key=value words may stand anywhere, and start with --
        arguments.overrides += unknown
    elif unknown:
        _parser().error(f"unrecognized arguments: {' '.join(unknown)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal's encoding lacks stops nothing
    try:
        status = arguments.run(arguments) or 0
        sys.stdout.flush()
        return status
    except InputError as error:
        _say(error)
        return 2
    except BrokenPipeError:  # the reader of our output has gone: head, say
        _drop_output()
        return 1
    except OSError as error:
        _say(error)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        print("interrupted; resume=true goes on from the newest checkpoint", file=sys.stderr)
        return 130


def _say(error: Exception) -> None:
    """One line for each problem; of an error that all processes share, from the first alone."""
    process = os.environ.get("RANK", "0")
    if process == "0" or not getattr(error, "shared", False):
        who = "" if process == "0" else f"process {process}: "
        for line in str(error).splitlines():
            print(f"error: {who}{line}", file=sys.stderr)


def _drop_output() -> None:
    """What could not be written is not tried again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rankery", description="Fine-tune, evaluate and run text rerankers.")
    parser.add_argument("--version", action="version", version=f"rankery {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    train = verbs.add_parser("train", help="fine-tune a reranker", description="Fine-tune a reranker.")
    train.add_argument("--config", metavar="FILE", help="YAML file with the keys of docs/configuration.md")
    train.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    train.add_argument(
        "--engine", choices=sorted(ENGINES), help="how they share the work (default ddp; see docs/engines.md)"
    )
    train.add_argument("overrides", nargs="*", metavar="key=value", help="keys that replace those of the file")
    train.set_defaults(run=_train)

    evaluate = verbs.add_parser(
        "evaluate", help="measure a reranker", description="Measure a reranker on labelled data."
    )
    evaluate.add_argument("--model", required=True, metavar="DIR")
    evaluate.add_argument("--data", required=True, nargs="+", metavar="FILE", help="JSONL files or globs")
    evaluate.add_argument("--output", metavar="DIR", help="folder for metrics.json, run.trec and qrels.trec")
    evaluate.add_argument("--min-label", type=float, help="label of what is not relevant (default: the model's)")
    evaluate.add_argument("--relevant-above", type=float, help="labels above it are relevant (default: min-label)")
    evaluate.add_argument("--recall-at", type=int, nargs="+", default=[10], metavar="K")
    evaluate.add_argument("--seed", type=int, default=42, help="breaks ties (default 42)")
    _scoring_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    rerank = verbs.add_parser(
        "rerank", help="rank documents", description='Rank JSONL lines {"query", "documents"}; other keys are kept.'
    )
    rerank.add_argument("--model", required=True, metavar="DIR")
    rerank.add_argument("--input", metavar="FILE", help="default: standard input")
    rerank.add_argument("--output", metavar="FILE", help="default: standard output")
    rerank.add_argument("--top-k", type=int, metavar="K", help="documents to keep of each query")
    rerank.add_argument("--normalize", action="store_true", help="scores in [0, 1]")
    _scoring_options(rerank)
    rerank.set_defaults(run=_rerank)

    score = verbs.add_parser(
        "score",
        help="score pairs as a teacher",
        description="Write teacher scores as training data; goes on if stopped.",
    )
    score.add_argument("--model", required=True, action="append", metavar="DIR", help="several are averaged")
    score.add_argument("--data", required=True, nargs="+", metavar="FILE", help="JSONL files or globs")
    score.add_argument("--output", required=True, metavar="FILE")
    score.add_argument("--weight", type=float, action="append", metavar="W", help="of each --model (default 1)")
    score.add_argument("--temperature", type=float, action="append", metavar="T", help="divides each --model's logits")
    score.add_argument("--store", metavar="FILE", help="keeps scores by content, for other data and runs")
    score.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    score.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    _model_options(score)
    score.set_defaults(run=_score)

    distil = verbs.add_parser(
        "distil", help="teach a small model", description="Score with a teacher, train a student, compare."
    )
    distil.add_argument("--teacher", required=True, metavar="DIR")
    distil.add_argument("--student", required=True, metavar="DIR", help="base model")
    distil.add_argument("--data", required=True, nargs="+", metavar="FILE", help="training data with labels")
    distil.add_argument("--val", required=True, nargs="+", metavar="FILE", help="held-out data with labels")
    distil.add_argument("--output", default="output/distil", metavar="DIR", help="default: output/distil")
    distil.add_argument("--config", metavar="FILE", help="YAML file with settings of both trainings")
    distil.add_argument("--prompt", metavar="NAME", help="preset to ask the teacher with (see docs/prompts.md)")
    distil.add_argument("--store", metavar="FILE", help="keeps teacher scores by content")
    distil.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings; labels.key and distilled.key are for one training"
    )
    distil.set_defaults(run=_distil)

    export = verbs.add_parser(
        "export", help="another form of a reranker", description="Write a reranker in a form that other programs load."
    )
    export.add_argument("--model", required=True, metavar="DIR")
    export.add_argument("--to", required=True, choices=["seq-cls"], help="a yes/no model with a classification head")
    export.add_argument("--output", required=True, metavar="DIR")
    export.add_argument(
        "--prompt", metavar="NAME", help="preset of a model that rankery has not saved (see docs/prompts.md)"
    )
    export.set_defaults(run=_export)

    demo = verbs.add_parser(
        "demo", help="the main job on built-in data", description="Fine-tune and compare, downloading nothing."
    )
    demo.add_argument("--output", default="demo_run", metavar="DIR")
    demo.set_defaults(run=_demo)
    return parser


def _scoring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, metavar="N", help="pairs that run together at most")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a pair at most")
    _model_options(parser)


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", metavar="NAME", help="preset to ask a language model with (see docs/prompts.md)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on CPUs")
    parser.add_argument("--device", help="default: the accelerator, if there is one")


def _train(arguments: argparse.Namespace) -> int:
    from rankery.config import load_config, parse_overrides

    if arguments.processes < 1:
        raise InputError(f"--processes is {arguments.processes}; expected at least 1")
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


def _evaluate(arguments: argparse.Namespace) -> None:
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


def _rerank(arguments: argparse.Namespace) -> None:
    from rankery.evaluate.evaluate import rerank_file

    rerank_file(
        arguments.model,
        arguments.input,
        arguments.output,
        top_k=arguments.top_k,
        device=arguments.device,
        dtype=arguments.dtype,
        prompt=arguments.prompt,
        normalize=arguments.normalize,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
    )


def _score(arguments: argparse.Namespace) -> int:
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


def _distil(arguments: argparse.Namespace) -> None:
    from rankery.config import parse_overrides
    from rankery.distil.compare import distil

    table = distil(
        arguments.teacher,
        arguments.student,
        arguments.data,
        arguments.val,
        Path(arguments.output),
        prompt=arguments.prompt,
        config=arguments.config,
        overrides=parse_overrides(arguments.overrides),
        store=Path(arguments.store) if arguments.store else None,
    )
    print(table)


def _export(arguments: argparse.Namespace) -> None:
    from rankery.models.export import export

    export(arguments.model, arguments.output, arguments.prompt)


def _demo(arguments: argparse.Namespace) -> None:
    from rankery.demo import run_demo

    run_demo(Path(arguments.output))


if __name__ == "__main__":
    sys.exit(main())
