"""`rankery rerank`: the documents of each line, ranked by a model."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rankery.data.files import check_writable, unpacked
from rankery.data.records import is_text, kind_of
from rankery.errors import InputError


def rerank_file(
    model: str,
    source: str | None,
    target: str | None,
    *,
    top_k: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    prompt: str | None = None,
    **options: Any,
) -> None:
    """Ranks the documents of each JSONL line; writes {..., "ranking": [{"index", "score", "document"}]} lines as they come.

    Files and standard streams hold UTF-8, whatever the terminal's encoding; gzip is unpacked, an output that ends in .gz packed.
    """
    from rankery.models.opening import open_reranker

    if source is not None and not Path(source).is_file():
        raise InputError(f"{source}: does not exist; expected a .jsonl or .jsonl.gz file")
    if target is not None:
        check_writable(Path(target))
        if source is not None and Path(target).exists() and Path(source).samefile(target):
            raise InputError(f"output is {target}, which is the input; choose another file")
    reranker = open_reranker(model, prompt, device=device, dtype=dtype)
    with ExitStack() as stack:
        if target is not None:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        lines: Any = unpacked(stack.enter_context(open(source, "rb"))) if source else sys.stdin.buffer
        out: Any = sys.stdout.buffer
        if target:
            out = stack.enter_context(
                gzip.GzipFile(target, "wb", mtime=0) if target.endswith(".gz") else open(target, "wb")
            )
        for where, row in _requests(_readable(lines, source or "standard input"), source or "standard input"):
            try:
                ranking = reranker.rerank(row["query"], row["documents"], top_k, **options)
            except InputError as error:
                raise InputError([f"{where}: {problem}" for problem in error.problems]) from error
            rest = {key: value for key, value in row.items() if key != "documents"}
            out.write(_line({**rest, "ranking": [entry._asdict() for entry in ranking]}))
            out.flush()


def _line(row: dict[str, Any]) -> bytes:
    """A line of JSON; what UTF-8 cannot hold, half a character in a key that is kept, stays the escape that it was."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_text(text) else json.dumps(row)).encode() + b"\n"


def _readable(lines: Iterable[bytes], name: str) -> Iterator[bytes]:
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: cannot be read: {error}; expected JSONL, plain or gzip") from error


def _requests(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`file:line`, request) of each line that is not blank."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f'{where}: is not JSON ({error}); expected {{"query", "documents"}}') from None
        if problem := _problem(row):
            raise InputError(f'{where}: {problem}; expected {{"query": a string, "documents": a list of strings}}')
        yield where, row


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
