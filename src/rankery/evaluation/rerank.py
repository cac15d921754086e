"""`rankery rerank`: the documents of each line, ranked by a model.

Contract: what a file asks for is looked at as a whole before a model is opened, and its answer appears when it is whole; of standard
input each line is answered when it comes. Cost: one JSON parse a line more. Rejected: an output that grows under its name, which
after an error looks like a short result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rankery.data.files import check_new_file, check_outside, check_writable, written_whole
from rankery.data.lines import filled_lines, numbered_lines
from rankery.data.records import MAX_COLLECTED, is_text, kind_of, parse_json
from rankery.errors import InputError

EXPECTED = '{"query": a string, "documents": a list of strings}'
Requests = Iterator[tuple[str, dict[str, Any]]]  # `file:line` and the object there


def rerank_file(
    model: str,
    source: str | None,
    target: str | None,
    *,
    overwrite: bool = False,
    top_k: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    prompt: str | None = None,
    normalize: bool = False,
    calibrated: bool = False,
    **options: Any,
) -> None:
    """Ranks the documents of each JSONL line; writes {..., "ranking": [{"index", "score", "document"}]} lines.

    Files and standard streams hold UTF-8, whatever the terminal's encoding; gzip is unpacked, an output that ends in .gz packed.

    Raises:
        InputError: places that cannot be read or written, an output that is there and nobody said to replace, all lines of a file
            that are no requests, scores that are not finite, or scores that the model does not have.
    """
    from rankery.models.calibration import check_scale
    from rankery.models.opening import check_model, open_reranker

    if source is not None and not Path(source).is_file():
        raise InputError(f"{source}: does not exist; expected a .jsonl or .jsonl.gz file")
    if target is not None:
        if source is not None and Path(target).exists() and Path(source).samefile(target):
            raise InputError(f"output is {target}, which is the input; choose another file")
        check_writable(Path(target))
        check_outside(Path(target), [model])
        if Path(target).is_file():
            check_new_file(Path(target), overwrite)
    check_model(model)
    if source is not None:
        _check_requests(Path(source))
    reranker = open_reranker(model, prompt, device=device, dtype=dtype)
    check_scale(reranker.calibration, calibrated, normalize)
    with ExitStack() as stack:
        out: Any = sys.stdout.buffer
        if target is not None:
            is_device = Path(target).exists() and not Path(target).is_file()  # or a pipe: a rename would replace it
            out = stack.enter_context(Path(target).open("wb") if is_device else written_whole(Path(target)))
        for where, row in _requests(source):
            try:
                ranking = reranker.rerank(
                    row["query"], row["documents"], top_k, normalize=normalize, calibrated=calibrated, **options
                )
            except InputError as error:
                raise InputError([f"{where}: {problem}" for problem in error.problems]) from error
            rest = {key: value for key, value in row.items() if key != "documents"}
            out.write(_line({**rest, "ranking": [entry._asdict() for entry in ranking]}))
            out.flush()


def _line(row: dict[str, Any]) -> bytes:
    """A line of JSON; what UTF-8 cannot hold, half a character in a key that is kept, stays the escape that it was."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_text(text) else json.dumps(row)).encode() + b"\n"


def _requests(source: str | None) -> Requests:
    """The requests of a file, or of standard input, each when it comes.

    Raises:
        InputError: a line that is none.
    """
    if source is not None:
        lines, name = numbered_lines(Path(source)), source
    else:
        lines, name = filled_lines(sys.stdin.buffer, "standard input"), "standard input"
    for number, line in lines:
        where = f"{name}:{number}"
        row = parse_json(line, where, EXPECTED)
        if problem := _problem(row):
            raise InputError(f"{where}: {problem}; expected {EXPECTED}")
        yield where, row


def _check_requests(path: Path) -> None:
    """
    Raises:
        InputError: all lines that are no requests.
    """
    problems: list[str] = []
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            if problem := _problem(parse_json(line, where, EXPECTED)):
                raise InputError(f"{where}: {problem}; expected {EXPECTED}")
        except InputError as error:
            problems += error.problems[: MAX_COLLECTED - len(problems)]
    if problems:
        raise InputError(problems)


def _problem(row: Any) -> str | None:
    """What is wrong with a request, if anything."""
    if not isinstance(row, dict):
        return f"is {'null' if row is None else kind_of(row)}"
    documents = row.get("documents")
    if not is_text(row.get("query")):
        return f'"query" is {kind_of(row.get("query"))}'
    if not isinstance(documents, list):
        return f'"documents" is {kind_of(documents)}'
    odd = next((at for at, text in enumerate(documents) if not is_text(text)), None)
    return None if odd is None else f'"documents"[{odd}] is {kind_of(documents[odd])}'
