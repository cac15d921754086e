"""`rankery check`: what is in data, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rankery.verbs.options import model_options


def add(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "check",
        help="look at data before training",
        description="Report what is wrong with data. Exit status: 0 nothing that matters, 1 findings that matter, 2 lines that "
        "cannot be read.",
    )
    parser.add_argument("data", nargs="+", metavar="FILE", help="JSONL files or globs: one data set")
    parser.add_argument("--against", nargs="+", metavar="FILE", help="files that must share nothing with the data")
    parser.add_argument("--model", metavar="DIR", help="measure lengths as this model does (default: roughly)")
    parser.add_argument("--max-len", type=int, metavar="N", help="tokens of a pair (default: the model's, else 512)")
    parser.add_argument("--min-label", type=float, default=0.0, metavar="L", help="the lowest label (default 0)")
    parser.add_argument("--max-label", type=float, metavar="L", help="the highest; labels outside are problems")
    parser.add_argument(
        "--relevant-above", type=float, metavar="L", help="labels above it are relevant (default: min-label)"
    )
    parser.add_argument("--max-texts", type=int, metavar="N", help="texts of which all is kept (default 4,194,304)")
    parser.add_argument("--score-with", metavar="DIR", help="a reranker that looks for wrong labels; slow")
    parser.add_argument(
        "--score-queries",
        type=int,
        metavar="N",
        default=1000,
        help="queries that it scores, drawn from the data (default 1000)",
    )
    model_options(parser)
    parser.add_argument("--fix", metavar="OUT", help="write the cleaned data there, and say what was changed")
    parser.add_argument("--json", metavar="FILE", help="the report for programs")
    parser.add_argument("--html", metavar="FILE", help="the report as a page")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from rankery.checking.check import MAX_TEXTS, check
    from rankery.checking.fix import check_outputs
    from rankery.data.files import check_outside, expand_paths

    outputs = [Path(name) for name in (arguments.fix, arguments.json, arguments.html) if name]
    check_outputs(outputs, expand_paths([*arguments.data, *(arguments.against or ())]), arguments.overwrite)
    for path in outputs:
        check_outside(path, [model for model in (arguments.model, arguments.score_with) if model])
    left: list[str] = []  # nobody reads the problems any more: head, say

    def say(problem: str) -> None:
        try:
            if not left:
                print(problem)
        except BrokenPipeError:
            left.append(problem)

    report = check(
        arguments.data,
        against=arguments.against or (),
        model=arguments.model,
        max_len=arguments.max_len,
        prompt=arguments.prompt,
        min_label=arguments.min_label,
        max_label=arguments.max_label,
        relevant_above=arguments.relevant_above,
        max_texts=MAX_TEXTS if arguments.max_texts is None else arguments.max_texts,
        score_with=arguments.score_with,
        score_queries=arguments.score_queries,
        device=arguments.device,
        dtype=arguments.dtype,
        fix=arguments.fix,
        overwrite=arguments.overwrite,
        say=say,
    )
    if arguments.json:
        _write(arguments.json, json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n")
    if arguments.html:
        from rankery.checking.page import check_page

        _write(arguments.html, check_page(report))
    print(report)  # last: whoever reads the first lines only still gets the files
    return report.status


def _write(name: str, text: str) -> None:
    from rankery.data.files import written_whole

    with written_whole(Path(name)) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # a path that is no UTF-8
