"""Options that several verbs share."""

from __future__ import annotations

import argparse


def scoring_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, metavar="N", help="pairs that run together at most")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens of a pair at most")
    model_options(parser)


def model_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        "--prompt", metavar="NAME", action="append" if several else "store",
        help="preset to ask a language model with (see docs/prompts.md)"
        + ("; one, or one for each model (none: takes none)" if several else ""),
    )  # fmt: skip
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: float32 on CPUs")
    parser.add_argument("--device", help="default: the accelerator, if there is one")
