"""`rankery evaluate` and `rankery rerank`: a model on a file."""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from rankery.data.files import expand_paths
from rankery.data.records import LabelRange, check_records, is_text, read_records
from rankery.errors import InputError
from rankery.evaluate.metrics import metrics_table, queries_without_relevant, ranking_metrics
from rankery.evaluate.runs import pairs_of, write_qrels, write_run


def evaluate_model(
    model: str,
    data: Sequence[str],
    *,
    output: Path | None,
    min_label: float | None = None,
    relevant_above: float | None = None,
    recall_at: Sequence[int] = (10,),
    seed: int = 42,
    device: str | None = None,
    dtype: str | None = None,
    prompt: str | None = None,
    **options: Any,
) -> str:
    """Scores every pair of the data; returns the metrics table; writes metrics.json, run.trec, qrels.trec to `output`.

    `min_label` None is the model's own; see `per_query_metrics` for the others.
    """
    from rankery.models.opening import open_reranker

    for name, value in (("min_label", min_label), ("relevant_above", relevant_above)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{name} is {value}; expected a finite number")
    paths = expand_paths(list(data))
    if output is not None:
        for name in ("metrics.json", "run.trec", "qrels.trec"):
            _check_writable(output / name)
    reranker = open_reranker(model, prompt, device=device, dtype=dtype)
    low, high = reranker.labels
    min_label = low if min_label is None else min_label
    labels = LabelRange(min_label=min_label, max_label=max(high, min_label + 1), strict=False)
    check_records(paths, labels)
    records = list(read_records(paths, labels))
    texts = [(record.query, document) for record in records for document in record.documents]
    logits = reranker.compute_score(texts, show_progress=sys.stderr.isatty(), **options)
    scores, pairs = reranker.rank_scores(logits).numpy(), pairs_of(records)
    metrics = ranking_metrics(
        pairs, scores, min_label=min_label, recall_at=recall_at, seed=seed, relevant_above=relevant_above
    )
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        write_run(output / "run.trec", pairs, scores, seed)
        write_qrels(output / "qrels.trec", pairs, min_label)
    table = metrics_table({Path(model).name: metrics})
    unanswered = queries_without_relevant(pairs, min_label=min_label, relevant_above=relevant_above)
    note = f"\n{unanswered} queries have no relevant document and count 0" if unanswered else ""
    return f"{table}{note}"


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

    Files and standard streams hold UTF-8, whatever the terminal's encoding; a source that ends in .gz is unpacked.
    """
    from rankery.models.opening import open_reranker

    if source is not None and not Path(source).is_file():
        raise InputError(f"{source}: does not exist; expected a .jsonl or .jsonl.gz file")
    if target is not None:
        _check_writable(Path(target))
        if source is not None and Path(target).exists() and Path(source).samefile(target):
            raise InputError(f"output is {target}, which is the input; choose another file")
    reranker = open_reranker(model, prompt, device=device, dtype=dtype)
    with ExitStack() as stack:
        if target is not None:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        lines: Any = sys.stdin.buffer
        if source:
            lines = stack.enter_context(gzip.open(source) if source.endswith(".gz") else open(source, "rb"))
        out: BinaryIO = stack.enter_context(open(target, "wb")) if target else sys.stdout.buffer
        for row in _requests(_readable(lines, source or "standard input"), source or "standard input"):
            ranking = reranker.rerank(row["query"], row["documents"], top_k, **options)
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


def _requests(lines: Iterable[bytes], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f'{name}:{number}: is not JSON ({error}); expected {{"query", "documents"}}') from None
        documents = row.get("documents") if isinstance(row, dict) else None
        if not isinstance(documents, list) or not all(map(is_text, documents)) or not is_text(row.get("query")):
            raise InputError(f'{name}:{number}: expected {{"query": a string, "documents": a list of strings}}')
        yield row


def _check_writable(file: Path) -> None:
    """What is there, the file or else the nearest folder above it, must be writable."""
    existing = next(path for path in (file.absolute(), *file.absolute().parents) if path.exists())
    if file.is_dir() or not (file.exists() or existing.is_dir()) or not os.access(existing, os.W_OK):
        raise InputError(f"output is {file}, which cannot be written: check {existing}, or choose another place")
