"""What an evaluation prints and writes: tables, metrics.json, queries.csv, TREC files, report.html.

Contract: each file is written whole or not at all; of an output folder only what an earlier evaluation wrote there is replaced,
which evaluation.json lists. Cost: a copy of the runs. Rejected: refusing a folder that holds an earlier evaluation, which every
repetition would meet; and taking files for ours by their names, which people use too.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankery.data.files import check_writable, written_whole
from rankery.errors import InputError
from rankery.evaluation.comparison import Comparison
from rankery.evaluation.metrics import aligned, metrics_table
from rankery.evaluation.question import Question
from rankery.evaluation.systems import System
from rankery.sealed import Schema, read_sealed, sealed

FILES = ("metrics.json", "queries.csv", "report.html")
MARK_FILE = "evaluation.json"
COLUMNS = ("query", "text", "candidates", "relevant")  # that queries.csv begins with
# A spreadsheet would run a text that begins so: full-width signs, and white space before the sign, are taken for it too.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "|", "%")


class Written(Schema):
    """evaluation.json: what evaluations have written to the folder, by paths in it."""

    files: list[str]


def check_output(
    output: Path, systems: Sequence[System], names: Sequence[str], question: Question, overwrite: bool = False
) -> None:
    """Whether the files of an evaluation may be written to a folder; with `overwrite` also over those that no evaluation wrote.

    Raises:
        InputError: all that may not, because they cannot be, are input, or somebody else's.
    """
    problems = []
    ours = _written_before(output)
    given = [*(s.value for s in systems if s.kind == "run"), question.qrels, question.queries, question.documents]
    inputs = [Path(name).expanduser() for name in [*given, *question.data] if name]
    targets = [output / name for name in (*FILES, MARK_FILE)]
    if not question.qrels or question.min_label:
        targets.append(output / "qrels.trec")
    for target in [*targets, *run_files(output, systems, names).values()]:
        try:
            check_writable(target)
        except InputError as error:
            problems += error.problems
        if target.exists() and any(path.exists() and target.samefile(path) for path in inputs):
            problems.append(f"output would replace {target}, which is input; choose another folder")
        elif target.exists() and not overwrite and target.relative_to(output).as_posix() not in ours:
            problems.append(
                f"output would replace {target}, which no evaluation wrote there; choose another folder, or say --overwrite"
            )
    if problems:
        raise InputError(problems[:1] if len(set(problems)) == 1 else problems)


def _written_before(output: Path) -> set[str]:
    """What earlier evaluations wrote to the folder."""
    try:
        return {MARK_FILE, *read_sealed(output / MARK_FILE, Written)["files"]}
    except (OSError, ValueError):
        pass
    # An older rankery left no list: its queries.csv says whose the files are.
    try:
        with (output / "queries.csv").open(encoding="utf-8") as file:
            is_evaluation = file.readline().startswith(",".join(COLUMNS))
    except (OSError, ValueError):
        return set()
    files = [path for path in output.rglob("*") if path.suffix == ".trec" or path.name in FILES]
    return {path.relative_to(output).as_posix() for path in files} if is_evaluation else set()


def comparison_text(result: Comparison) -> str:
    """The table of means; of one system with their intervals, of several with speed, size and differences."""
    parts = [metrics_table(result.means())]
    if len(result.names) == 1:
        shown = [
            f"{name} {low:.4f} to {high:.4f}"
            for name, (low, high) in zip(result.measures, result.intervals[0].tolist(), strict=True)
        ]
        parts.append(f"95% bootstrap intervals over {len(result.measured.queries):,} queries: {', '.join(shown)}")
    if result.unanswered:
        parts.append(f"{result.unanswered} queries have no relevant document and count 0")
    parts += missing_notes(result)
    if len(result.names) > 1:
        parts += [*_cost_table(result), *_difference_table(result)]
    return "\n".join(parts)


def missing_notes(result: Comparison) -> list[str]:
    """A sentence for each system that orders nothing, lacks queries, or leaves their order to whoever reads it; and for
    judgements that say nothing."""
    notes = [
        f"{result.names[i]} orders NOTHING: it gives all documents of a query (nearly) one score, and its numbers are those of a "
        "random order"
        for i in result.flat
    ]
    notes += [result.judgements_note] if result.judgements_note else []
    for i, name in enumerate(result.names):
        missing = int((result.measured.candidates[i] == 0).sum())
        if missing:
            notes.append(
                f"{name} has no documents for {missing} of {len(result.measured.queries)} queries, which count 0"
            )
        if result.measured.tied[i]:
            notes.append(
                f"{name} has equal scores in {result.measured.tied[i]} queries: trec_eval takes the last document id first, RR@k the first"
            )
    return notes


def test_note(result: Comparison) -> str:
    """How differences were judged."""
    others = len(result.names) - 1
    corrected = f", corrected for {others} systems (Holm)" if others > 1 else ""
    return f"95% bootstrap intervals over {len(result.measured.queries):,} queries; p of a paired randomisation test{corrected}"


def write_output(output: Path, result: Comparison, metrics: Mapping[str, Any]) -> None:
    """All files of an evaluation; `metrics` are those of metrics.json.

    Raises:
        InputError: the disk is full or not writable.
    """
    from rankery.evaluation.report import report

    assert result.qrels is not None
    places = run_files(output, result.systems, result.names)
    copies = {place: result.runs[i].path for i, place in places.items()}
    if not result.judgements_given:
        copies[output / "qrels.trec"] = result.qrels.path
    names = [*FILES, *(place.relative_to(output).as_posix() for place in copies)]
    with written_whole(output / MARK_FILE) as file:  # first: what is named here may be written, and replaced
        file.write(sealed({"files": sorted({*names, *_written_before(output)} - {MARK_FILE})}).encode())
    contents = {
        "metrics.json": json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
        "report.html": report(result),
    }
    for name, content in contents.items():
        with written_whole(output / name) as file:
            file.write(content.encode("utf-8", "replace"))
    with written_whole(output / "queries.csv") as file:
        _write_csv(file, _query_rows(result))
    for target, source in copies.items():
        with written_whole(target) as file, source.open("rb") as lines:
            shutil.copyfileobj(lines, file)


def run_files(output: Path, systems: Sequence[System], names: Sequence[str]) -> dict[int, Path]:
    """The run files of the systems that are no run yet: run.trec of a single one, else those in runs/, named after them."""
    if len(systems) == 1:
        return {} if systems[0].kind == "run" else {0: output / "run.trec"}
    found: dict[int, Path] = {}
    for i, name in enumerate(names):
        if systems[i].kind != "run":
            stem = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)
            path = output / "runs" / f"{stem}.trec"
            found[i] = path.with_name(f"{stem}_{i}.trec") if path in found.values() else path
    return found


def cost_rows(result: Comparison) -> list[list[object]]:
    """Name, pairs a second, weights and megabytes of each system that was scored here."""
    return [
        [name, result.pairs_per_second(i), result.scored[i].parameters, result.scored[i].megabytes]
        for i, name in enumerate(result.names)
        if result.pairs_per_second(i) is not None
    ]


def difference_rows(result: Comparison) -> list[tuple[str, str, Any]]:
    """(system, measure, its difference to the reference) of all others."""
    return [
        (name, measure, difference)
        for name, row in zip(result.names, result.differences, strict=True)
        for measure, difference in zip(result.measures, row, strict=True)
        if difference is not None
    ]


def _cost_table(result: Comparison) -> list[str]:
    rows = [[str(row[0]), *("-" if cell is None else f"{cell:,.0f}" for cell in row[1:])] for row in cost_rows(result)]  # type: ignore[str-format]
    return ["", aligned([["", "pairs/s", "parameters", "MB"], *rows])] if rows else []


def _difference_table(result: Comparison) -> list[str]:
    rows = [
        [
            f"{name}, {measure}",
            f"{d.mean:+.4f}",
            "{:+.4f} to {:+.4f}".format(*d.interval),
            f"{d.p:.4f}",
            f"{d.p_holm:.4f}",
        ]
        for name, measure, d in difference_rows(result)
    ]
    head = [f"against {result.names[result.reference]}", "difference", "95% interval", "p", "p (Holm)"]
    return ["", aligned([head, *rows]), test_note(result)]


def _query_rows(result: Comparison) -> Iterator[list[object]]:
    pairs = [(name, measure) for name in result.names for measure in result.measures]
    yield [*COLUMNS, *(f"{name}: {measure}" for name, measure in pairs)]
    measured = result.measured
    most = measured.candidates.max(0)
    for i, query in enumerate(measured.queries):
        values = measured.values[:, :, i].ravel().tolist()
        yield [query, result.texts.query(query) or "", int(most[i]), int(measured.relevant[i]), *values]


def _write_csv(file: Any, rows: Iterator[list[object]]) -> None:
    wrapped = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", write_through=True)
    writer = csv.writer(wrapped, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # a bare CR would begin a row
    for row in rows:
        writer.writerow(
            [
                f"'{cell}" if isinstance(cell, str) and cell.lstrip(" \u3000\xa0").startswith(FORMULA) else cell
                for cell in row
            ]
        )
    wrapped.detach()
