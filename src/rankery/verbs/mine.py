"""`rankery mine`: hard negatives for queries with positives."""

from __future__ import annotations

import argparse

from rankery.errors import InputError
from rankery.verbs.options import model_options


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "mine", help="find hard negatives", description="Add hard negatives from a corpus to training data."
    )
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE", help="JSONL files or globs, with positives")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--corpus", nargs="+", metavar="FILE", help="JSONL of documents (default: those of the data)")
    parser.add_argument(
        "--by", action="append", metavar="bm25|DIR", help="retriever; several take turns (default bm25)"
    )
    parser.add_argument("--negatives", type=int, default=7, metavar="N", help="of each query (default 7)")
    parser.add_argument(
        "--ranks", default="10-100", metavar="A-B", help="places in the retriever's list (default 10-100)"
    )
    parser.add_argument(
        "--pick", default="random", choices=["random", "top"], help="which of these places (default random)"
    )
    parser.add_argument(
        "--margin", type=float, metavar="M", help="score below the positive's by this share, by the retriever"
    )
    parser.add_argument("--teacher", metavar="DIR", help="reranker that leaves out what it takes for relevant")
    parser.add_argument(
        "--teacher-margin", type=float, default=0.0, metavar="M", help="left out above the positive's score less this"
    )
    parser.add_argument("--store", metavar="FILE", help="keeps the teacher's scores by content")
    parser.add_argument(
        "--given",
        default="keep",
        choices=["keep", "drop", "mine"],
        help="labelled documents that are not relevant: keep, drop, or drop and let them be mined (default keep)",
    )
    parser.add_argument("--min-label", type=float, default=0.0, help="label of what is not relevant (default 0)")
    parser.add_argument("--relevant-above", type=float, help="labels above it are positives (default: min-label)")
    parser.add_argument("--query-prefix", default="", metavar="TEXT", help="before queries, for embedding models")
    parser.add_argument("--document-prefix", default="", metavar="TEXT", help="before documents, for embedding models")
    parser.add_argument("--seed", type=int, default=42, help="of the random picks (default 42)")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    model_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.mining.mine import mine

    ranks = _ranks(arguments.ranks)
    left = {"run", "words", "ranks", "by"}
    options = {name: value for name, value in vars(arguments).items() if name not in left}
    print(mine(ranks=ranks, by=arguments.by or "bm25", **options))


def _ranks(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise InputError(f"ranks is {text!r}; expected the first and the last rank: 10-100")
    return int(first), int(last)
