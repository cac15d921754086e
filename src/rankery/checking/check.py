"""`rankery.check`: reads data once, reads a few lines again, and says what is in it.

    scan data -> scan the other files -> lengths, tables -> compare candidates -> findings -> Report

Contract: never changes its input; the same files give the same report. Memory is bounded by `max_texts` (1 GB at the
default; figures in docs/check.md), whatever the size of the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rankery.arguments import checked
from rankery.checking.doubts import Doubts
from rankery.checking.findings import compare, draft, illustrated, near_drafts, of_doubts
from rankery.checking.fix import check_outputs, check_scan
from rankery.checking.fix import fix as write_fixed
from rankery.checking.languages import language_drafts
from rankery.checking.lengths import measure
from rankery.checking.near import DOCUMENTS, QUERIES
from rankery.checking.places import Files
from rankery.checking.report import PROBLEMS_KEPT, Report
from rankery.checking.scan import OtherScan, Scan
from rankery.checking.scoring import judged
from rankery.checking.texts import SCRIPTS
from rankery.data.files import expand_paths
from rankery.data.records import LabelRange
from rankery.errors import InputError, check_whole, option

MAX_TEXTS = 1 << 22
SCORED_QUERIES = 1000
SHOWN_LABELS = 12
BINS = 10


@checked
def check(
    data: str | Path | Sequence[str | Path],
    *,
    against: str | Path | Sequence[str | Path] = (),
    model: str | Path | None = None,
    max_len: int | None = None,
    prompt: str | None = None,
    min_label: float = 0.0,
    max_label: float | None = None,
    relevant_above: float | None = None,
    max_texts: int = MAX_TEXTS,
    score_with: str | Path | None = None,
    score_queries: int = SCORED_QUERIES,
    device: str | None = None,
    dtype: str | None = None,
    fix: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], object] | None = None,
) -> Report:
    """Checks training or evaluation data and reports problems and findings.

    Args:
        data: JSONL files or globs, looked at as one data set.
        against: files that must share nothing with the data, such as its test set.
        model: folder or hub name; its tokenizer and template measure lengths. None: a rough count.
        max_len: tokens of a pair; None: the model's, else 512.
        prompt: preset of a decoder that rankery has not saved, for `model` and `score_with`.
        min_label: the lowest label.
        max_label: the highest, and the label of "pos" without scores; labels outside are problems. None: 1 (or relevant_above + 1,
            if that is not below 1), and any label goes.
        relevant_above: labels above it are relevant; None: min_label.
        max_texts: distinct pairs, documents and queries of which all is kept; of more, a sample is.
        score_with: a reranker that scores documents, to find labels it doubts; None: none (it is slow).
        score_queries: so many queries at most, drawn from the data.
        device: of the reranker; None: the accelerator, if there is one.
        dtype: of its weights; None: float32 on CPUs.
        fix: file for the cleaned data (see docs/check.md for what is changed); None: none.
        overwrite: replace it if it is there.
        say: called with each problem of a line when it is found.

    Raises:
        InputError: files that are not there, a model that cannot be read, arguments out of range, a `fix` that is there.
    """
    for name, value, least in (
        ("max_texts", max_texts, 1000),
        ("max_len", max_len, 1),
        ("score_queries", score_queries, 1),
    ):
        check_whole(name, value, least)
    above = min_label if relevant_above is None else relevant_above
    labels = _range(min_label, max_label, relevant_above)
    files, others = expand_paths(data), expand_paths(against) if against else []
    if fix is not None:
        check_outputs([Path(fix)], [*files, *others], overwrite)
    reranker = _opened(score_with, prompt, device, dtype)
    named = model or score_with
    lengths = measure(None if named is None else str(named), max_len, prompt)
    report = Report([str(path) for path in files], [str(path) for path in others])

    def note(problem: str) -> None:
        report.problem_count += 1
        if len(report.problems) < PROBLEMS_KEPT:
            report.problems.append(problem)
        if say is not None:
            say(problem)

    scan = Scan(Files(), labels, above, max_texts, lengths)
    scan.read(files, note)
    scan.is_soft = scan.is_soft and relevant_above is None
    if scan.is_soft and reranker is not None:
        raise InputError(
            f"score_with doubts labels, but the data has scores; expected {option('relevant_above')}: which of them are relevant"
        )
    other = OtherScan(scan) if others else None
    if other is not None:
        other.read(others, note)
    if fix is not None:
        check_scan(scan, other)
    _describe(report, scan)
    doubts = judged(reranker, files, scan, score_queries) if reranker is not None else None
    _find(report, scan, other, doubts)
    if fix is not None:
        report.fixed = write_fixed(files, Path(fix), scan, other)
    return report


def _range(min_label: float, max_label: float | None, relevant_above: float | None) -> LabelRange:
    given = {"min_label": min_label, "max_label": max_label, "relevant_above": relevant_above}
    problems = [
        f"{name} is {value}; expected a finite number"
        for name, value in given.items()
        if value is not None and not math.isfinite(value)
    ]
    if problems:
        raise InputError(problems)
    # Documents listed in "pos" have the highest label, and are relevant.
    highest = max_label
    if highest is None:
        highest = 1.0 if relevant_above is None or relevant_above < 1 else relevant_above + 1
    if highest <= min_label:
        got = "not given" if max_label is None else f"{max_label:g}"
        raise InputError(f"max_label is {got}; expected more than min_label ({min_label:g})")
    if relevant_above is not None and not min_label <= relevant_above < highest:
        raise InputError(
            f"relevant_above is {relevant_above:g}; expected a number from min_label ({min_label:g}) to below max_label ({highest:g})"
        )
    return LabelRange(min_label, highest, strict=max_label is not None)


def _describe(report: Report, scan: Scan) -> None:
    report.lines, report.pairs = scan.lines, scan.pair_count
    report.queries = len(scan.queries.whole()["key"]) * scan.queries.scale
    report.documents = len(scan.documents.whole()["key"]) * scan.documents.scale
    report.scale = max(scan.queries.scale, scan.pairs.scale, scan.documents.scale)
    report.shapes = dict(scan.shapes)
    report.labels = histogram(scan.label_counts)
    report.scripts = {
        kind: {SCRIPTS[i]: int(count) for i, count in enumerate(counts) if count}
        for kind, counts in scan.scripts.items()
    }
    if scan.lengths is not None:
        report.lengths = scan.lengths.result()


def histogram(counts: dict[float, int]) -> list[tuple[str, int]]:
    """(label, pairs), or of many different labels (range, pairs) in ten equal parts."""
    if len(counts) <= SHOWN_LABELS:
        return [(f"{label:g}", counts[label]) for label in sorted(counts)]
    low, high = min(counts), max(counts)
    width = (high - low) / BINS
    bins = [0] * BINS
    for label, count in counts.items():
        bins[min(BINS - 1, int((label - low) / width))] += count
    return [(f"{low + i * width:.3g} to {low + (i + 1) * width:.3g}", count) for i, count in enumerate(bins)]


def _opened(name: str | Path | None, prompt: str | None, device: str | None, dtype: str | None) -> Any:
    if name is None:
        return None
    from rankery.models.opening import open_reranker

    return open_reranker(name, prompt, device=device, dtype=dtype)


def _find(report: Report, scan: Scan, other: OtherScan | None, doubts: Doubts | None) -> None:
    candidates = {
        "near_query": scan.near_queries.candidates,
        "near_document": scan.near_documents.candidates,
        "near_contradiction": scan.opposite,
    }
    if other is not None:
        candidates |= {f"near_leaked_{kind}": those for kind, those in other.near_leaks.items()}
    kinds = {name: QUERIES if name.endswith("query") else DOCUMENTS for name in candidates}
    found = compare(scan.files, scan.labels, candidates, kinds)
    drafts = [*draft(scan, other, report.lengths), *near_drafts(scan, found, other), *language_drafts(scan)]
    if doubts is not None:
        drafts += of_doubts(doubts, "the model", "_by_model")
    report.findings = illustrated(drafts, scan.files, scan.labels)
