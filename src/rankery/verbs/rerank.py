"""`rankery rerank`: ranks the documents of JSONL lines."""

from __future__ import annotations

import argparse

from rankery.verbs.options import scoring_options


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "rerank", help="rank documents", description='Rank JSONL lines {"query", "documents"}; other keys are kept.'
    )
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--input", metavar="FILE", help="default: standard input")
    parser.add_argument("--output", metavar="FILE", help="default: standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it is there")
    parser.add_argument("--top-k", type=int, metavar="K", help="documents to keep of each query")
    parser.add_argument("--normalize", action="store_true", help="scores in [0, 1]")
    parser.add_argument("--calibrated", action="store_true", help="probabilities of relevance (see rankery calibrate)")
    scoring_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from rankery.evaluation.rerank import rerank_file

    rerank_file(
        arguments.model,
        arguments.input,
        arguments.output,
        overwrite=arguments.overwrite,
        top_k=arguments.top_k,
        device=arguments.device,
        dtype=arguments.dtype,
        prompt=arguments.prompt,
        normalize=arguments.normalize,
        calibrated=arguments.calibrated,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
    )
