"""What is asked of an evaluation: its words, whether they go together, and the files that they name.

Contract: all problems of the words at once, then all problems of all files, before a model is opened. Cost: one pass through the
files. Rejected: looking at a file when it is its turn, hours after the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankery.data.files import expand_paths
from rankery.data.records import LabelRange, check_records, read_records
from rankery.errors import InputError, option
from rankery.evaluation.inputs import Candidates, Texts, of_records, of_trec, unknown
from rankery.evaluation.measures import DEFAULT, wanted
from rankery.evaluation.metrics import has_relevant, relevance_level
from rankery.evaluation.pooling import MODULES_FILE, read_recipe
from rankery.evaluation.runs import gains
from rankery.evaluation.systems import System
from rankery.evaluation.trec import TextFile, TrecFile

HIGHEST = 2**31 - 1  # relevance that trec_eval knows


@dataclass(frozen=True)
class Question:
    """What is to be measured, and how."""

    data: Sequence[str] = ()
    qrels: str | None = None
    queries: str | None = None
    documents: str | None = None
    measures: Sequence[str] = ()
    recall_at: Sequence[int] = (10,)
    reference: str | None = None
    min_label: float | None = None
    relevant_above: float | None = None
    seed: int = 42


def check_question(systems: Sequence[System], question: Question, names: Sequence[str]) -> None:
    """Whether the words go together.

    Raises:
        InputError: all that does not.
    """
    problems = []
    for name in ("min_label", "relevant_above"):
        value = getattr(question, name)
        if value is not None and not math.isfinite(value):
            problems.append(f"{name} is {value}; expected a finite number")
    if question.seed < 0:
        problems.append(f"seed is {question.seed}; expected 0 or more")
    lowest = 0.0 if question.min_label is None else question.min_label
    if question.qrels and lowest != math.floor(lowest):
        problems.append(
            f"min_label is {lowest:g}; expected a whole number with {option('qrels')}, as their relevance is"
        )
    if question.qrels and question.relevant_above is not None and question.relevant_above < lowest:
        problems.append(
            f"relevant_above is {question.relevant_above:g}; expected a number from {lowest:g}, min_label, whose gain is 0"
        )
    if not systems:
        problems.append(
            f"no system is named; expected {option('model', 'models')}, {option('baseline', 'baselines')} or {option('run', 'runs')}"
        )
    if bool(question.data) == bool(question.qrels):
        problems.append(
            f"{option('data')} and {option('qrels')} are {'both' if question.data else 'neither'} there; expected one of them"
        )
    scores = [system for system in systems if system.kind != "run"]
    if question.qrels and scores and not (question.queries and question.documents):
        problems.append(
            f"{option(scores[0].kind)} {scores[0].value} needs texts; expected {option('queries')} and {option('documents')} beside {option('qrels')}"
        )
    if question.data and (question.queries or question.documents):
        problems.append(
            f"{option('queries')} and {option('documents')} go with {option('qrels')}; {option('data')} has its own texts"
        )
    if question.reference is not None and not same(question.reference, systems, names):
        problems.append(f"{option('reference')} is {question.reference}; expected one of {', '.join(names)}")
    if bad := [k for k in question.recall_at if k < 1]:
        problems.append(f"recall_at holds {bad}; expected ranks from 1")
    try:
        wanted(question.measures)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)


@dataclass
class Given:
    """Input that has been read and found good."""

    candidates: Candidates | None
    texts: Texts
    qrels: TrecFile | None  # None: still to be written
    runs: dict[int, TrecFile]
    min_label: float = 0.0
    level: int = 0  # relevance above min_label from which on documents are relevant; 0: none are, labels are scores
    measures: dict[str, Any] = field(default_factory=dict)  # name -> ir-measures' measure


def read_input(systems: Sequence[System], question: Question) -> Given:
    """Reads everything that systems are measured on, and says what is measured.

    Raises:
        InputError: with the problems of all files; then a threshold outside the labels, or measures that they have no meaning for.
    """
    given = _read(systems, question)
    judged = gains(given.candidates.pairs, given.min_label) if given.qrels is None and given.candidates else None
    above = question.relevant_above
    if judged is None:
        given.level = 1 if above is None else math.floor(above - given.min_label) + 1
    elif has_relevant(judged, above):
        given.level = relevance_level(judged, given.min_label if above is None else above)
    names = question.measures or [*DEFAULT, *(f"Recall@{k}" for k in question.recall_at)][: None if given.level else 1]
    if judged is not None and judged.is_soft:
        _check_soft(names, given.level)
    given.level = min(given.level, HIGHEST)
    given.measures = wanted(names, max(given.level, 1), given.min_label)
    return given


def _check_soft(names: Sequence[str], level: int) -> None:
    """Labels that are scores have no grades, and without a threshold no relevant documents.

    Raises:
        InputError: measures that want them.
    """
    parsed = wanted(names)
    bad = [name for name, measure in parsed.items() if "rel" in (measure.params if level else measure.SUPPORTED_PARAMS)]
    if bad:
        instead = (
            "measures without a grade of their own"
            if level
            else f"{option('relevant_above')}: from which score on they are relevant"
        )
        raise InputError(
            [
                f"measure {name!r} counts relevant documents, but the labels are scores; expected {instead}"
                for name in bad
            ]
        )


def _read(systems: Sequence[System], question: Question) -> Given:
    from rankery.models.opening import check_model

    problems: list[str] = []

    def tried(make: Any, *values: Any) -> Any:
        try:
            return make(*values)
        except InputError as error:
            problems.extend(error.problems)
            return None

    for system in systems:
        if system.kind == "model":
            tried(check_model, system.value)
        elif system.kind == "baseline" and system.value not in ("random", "bm25"):
            tried(_check_encoder, system.value)
    runs = {i: tried(_opened, TrecFile.run, s.value) for i, s in enumerate(systems) if s.kind == "run"}
    if question.data:
        found = tried(_read_data, systems, question)
        if problems:
            raise InputError(list(dict.fromkeys(problems)))  # a contract that cannot be read is met twice
        candidates, texts, min_label = found
        for run in runs.values():
            tried(_check_numbered, run, candidates)
        if problems:
            raise InputError(problems)
        return Given(candidates, texts, None, runs, min_label)
    qrels = tried(_opened, TrecFile.qrels, str(question.qrels))
    queries = tried(_opened, TextFile, question.queries) if question.queries else None
    documents = tried(_opened, TextFile, question.documents) if question.documents else None
    if problems:
        raise InputError(problems)
    for run in runs.values():
        tried(_check_meets, run, qrels)
    if problems:
        raise InputError(problems)
    texts = Texts(*[file.get if file else unknown for file in (queries, documents)])
    candidates = None
    if any(system.kind != "run" for system in systems):
        assert queries is not None
        assert documents is not None
        candidates = of_trec(next(iter(runs.values()), qrels), qrels, queries, documents)
    return Given(candidates, texts, qrels, runs, question.min_label or 0.0)


def _read_data(systems: Sequence[System], question: Question) -> tuple[Candidates, Texts, float]:
    """Candidates, their texts, and the label of what is not relevant (default: the first model's own)."""
    from rankery.models.contract import read_contract

    paths = expand_paths(list(question.data))
    models = [system.value for system in systems if system.kind == "model"]
    contract = read_contract(Path(models[0]).expanduser()) if models else None
    low, high = (contract["min_label"], contract["max_label"]) if contract else (0.0, 1.0)
    min_label = low if question.min_label is None else question.min_label
    labels = LabelRange(min_label=min_label, max_label=max(high, min_label + 1), strict=False)
    check_records(paths, labels)
    return *of_records(list(read_records(paths, labels))), min_label


def same(word: str, systems: Sequence[System], names: Sequence[str]) -> list[int]:
    """Systems that a word names: by their name in the table, or as they were given."""
    return [i for i, system in enumerate(systems) if word in (names[i], system.value)]


def _opened(make: Callable[[Path], Any], name: str) -> Any:
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: {'is a folder' if path.is_dir() else 'does not exist'}; expected a file")
    return make(path)


def _check_encoder(value: str) -> None:
    if not (Path(value) / "config.json").is_file() and not (Path(value) / MODULES_FILE).is_file():
        raise InputError(
            f"{option('baseline')} is {value}; expected random, bm25, or the folder of an embedding model (with a config.json in it)"
        )
    read_recipe(Path(value))


def _check_numbered(run: TrecFile, candidates: Candidates) -> None:
    """Names that count lines say little: a run for other data would be measured without a word."""
    known: dict[str, set[str]] = {}
    for pair, query in enumerate(candidates.pairs.query.tolist()):
        known.setdefault(candidates.names.queries[query], set()).add(candidates.names.pairs[pair])
    others = sum(len(run[query].keys() - known.get(query, set())) for query in run)
    if others:
        raise InputError(
            f"{run.path}: {others:,} of its {run.lines:,} lines name no pair of the data; expected a run for these very files, with "
            f"queries q0, q1, ... and documents d0, d1, ... in their order (or name judgements by {option('qrels')})"
        )


def _check_meets(run: TrecFile, qrels: TrecFile) -> None:
    if not any(query in qrels for query in run):
        raise InputError(
            f"{run.path}: none of its {len(run)} queries ({next(iter(run))}, ...) is among the {len(qrels)} of {qrels.path.name} "
            f"({next(iter(qrels))}, ...); expected a run for the same queries"
        )
