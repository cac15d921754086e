"""`rankery evaluate`: models, baselines and runs beside each other on labelled data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankery.processes import joined, relaunched
from rankery.verbs.options import scoring_options


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "evaluate", help="measure rerankers", description="Measure models, baselines and runs on labelled data."
    )
    systems = parser.add_argument_group("what is measured, each as often as wanted; differences are to the first")
    named: dict[str, Any] = {"action": _Named, "dest": "systems", "default": []}
    systems.add_argument("--model", const="model", **named, metavar="DIR")
    systems.add_argument(
        "--baseline", const="baseline", **named, metavar="random|bm25|DIR", help="DIR: an embedding model's cosine"
    )
    systems.add_argument("--run", const="run", **named, metavar="FILE", help="TREC run of any system")
    systems.add_argument("--reference", metavar="NAME", help="the system that differences are to (default: the first)")
    data = parser.add_argument_group("on which data: JSONL, or TREC files")
    data.add_argument("--data", nargs="+", default=[], metavar="FILE", help="JSONL files or globs")
    data.add_argument("--qrels", metavar="FILE", help="TREC judgements; the candidates are those of the first --run")
    data.add_argument(
        "--queries", metavar="FILE", help="texts for --qrels: JSONL {id, text}, or id and text with a tab"
    )
    data.add_argument("--documents", metavar="FILE", help="texts of documents, in the same form")
    parser.add_argument("--output", metavar="DIR", help="folder for metrics.json, queries.csv, report.html, TREC files")
    parser.add_argument("--overwrite", action="store_true", help="replace files there that no evaluation wrote")
    parser.add_argument(
        "--measures", metavar="NAMES", help='by ir-measures\' names: "nDCG@10 RR@10 AP P(rel=2)@5 R@20"'
    )
    parser.add_argument(
        "--min-label",
        type=float,
        help="label of what is not relevant, where gains begin (default: the first model's, else 0)",
    )
    parser.add_argument("--relevant-above", type=float, help="labels above it are relevant (default: min-label)")
    parser.add_argument("--recall-at", type=int, nargs="+", default=[10], metavar="K", help="without --measures")
    parser.add_argument("--seed", type=int, default=42, help="breaks ties, draws samples (default 42)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    scoring_options(parser)
    parser.set_defaults(run=_run)


class _Named(argparse.Action):
    """Keeps systems of all kinds in the order of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        namespace.systems = [*namespace.systems, (self.const, values)]


def _run(arguments: argparse.Namespace) -> int:
    status = relaunched(arguments)
    if status is not None:
        return status
    from rankery.evaluation.evaluate import evaluate_systems
    from rankery.evaluation.question import Question
    from rankery.evaluation.systems import System

    result = evaluate_systems(
        [System(kind, value) for kind, value in arguments.systems],
        Question(
            data=arguments.data,
            qrels=arguments.qrels,
            queries=arguments.queries,
            documents=arguments.documents,
            measures=(arguments.measures or "").split(),
            recall_at=arguments.recall_at,
            reference=arguments.reference,
            min_label=arguments.min_label,
            relevant_above=arguments.relevant_above,
            seed=arguments.seed,
        ),
        output=Path(arguments.output) if arguments.output else None,
        overwrite=arguments.overwrite,
        group=joined(),
        device=arguments.device,
        dtype=arguments.dtype,
        prompt=arguments.prompt,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
    )
    if result is not None:
        print(result)
    return 0
