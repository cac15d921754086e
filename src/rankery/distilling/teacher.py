"""`rankery score`: records + teachers -> the specification's distillation data, resumable.

    input --blocks--> logits of each block, stored whole beside the output --all there--> output, renamed into place

Contract: blocks are cut by the input alone, and a block's scores depend on the block alone; so a run that was killed, or ran in
several processes, writes the same bytes as one that was not. The output has `query`, `pos` (all documents, or with
keep_lists those of `pos`, and `neg` apart), `pos_scores` in [0, 1] and `pos_logits`; pair lines of a query, wherever they stand, are
one line, where the first stood. Cost: one forward pass a pair; the logits twice on the disk for a while, and the output where pair
lines of a query are apart. Rejected: appending to the output (half a line after a kill, and an order that depends on who was first).
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rankery.data.files import content_digest, expand_paths, text_hash, written_whole
from rankery.data.finite import check_finite
from rankery.data.records import ANY_LABEL, MAX_COLLECTED, QueryRecord, check_records, pair_place, read_records
from rankery.distilling.parts import Parts, is_delivered
from rankery.distilling.store import Store, pair_key, teacher_digest
from rankery.errors import InputError, option
from rankery.models.reranker import Reranker

BLOCK_PAIRS = 512  # a kill costs the scores of at most so many pairs (and one query's)
SAID_EVERY_S = 30.0  # without a terminal, a line of progress


@dataclass(frozen=True)
class Teacher:
    """A reranker with its weight among several, and the temperature that its logits are divided by."""

    reranker: Reranker
    weight: float = 1.0
    temperature: float = 1.0
    name: str = "the teacher"  # what messages call it


Row = tuple[QueryRecord, ...]  # of a query: a record, or neighbouring pair lines


def blocks_of(records: Iterable[QueryRecord]) -> Iterator[list[Row]]:
    """Rows in blocks of BLOCK_PAIRS pairs or a little more."""
    block: list[Row] = []
    pairs = 0
    for row in _rows(records):
        block.append(row)
        pairs += sum(len(record.documents) for record in row)
        if pairs >= BLOCK_PAIRS:
            yield block
            block, pairs = [], 0
    if block:
        yield block


def _rows(records: Iterable[QueryRecord]) -> Iterator[Row]:
    alone = count()
    for _, row in groupby(records, lambda record: record.query if record.is_pair_line else next(alone)):
        yield tuple(row)


def block_logits(
    teachers: Sequence[Teacher], digests: Sequence[str], records: Sequence[QueryRecord], store: Store | None
) -> np.ndarray:
    """The weighted mean of the teachers' logits after their temperatures, of all documents of the records, [pairs].

    Raises:
        InputError: a score that is not finite.
    """
    pairs = [(record.query, document) for record in records for document in record.documents]
    logits = []
    for teacher, digest in zip(teachers, digests, strict=True):
        logits.append(known_logits(teacher.reranker, digest, pairs, store))
        check_finite(logits[-1], partial(pair_place, records), teacher.name)
    return combined_logits(teachers, logits)


def combined_logits(teachers: Sequence[Teacher], logits: Sequence[np.ndarray]) -> np.ndarray:
    """The weighted mean of teachers' logits after their temperatures, [pairs]; logits are [pairs] or [pairs, labels] each."""
    total = sum(teacher.weight for teacher in teachers)
    parts = [
        teacher.weight / total * _one_logit(torch.from_numpy(values), teacher.reranker) / teacher.temperature
        for teacher, values in zip(teachers, logits, strict=True)
    ]
    return torch.stack(parts).sum(dim=0).numpy()


def _one_logit(logits: torch.Tensor, reranker: Reranker) -> torch.Tensor:
    """[pairs]; of classes, the logit of the expected grade, scaled to [0, 1]."""
    if logits.dim() == 1:
        return logits
    return torch.logit(reranker.rank_scores(logits).clamp(1e-6, 1 - 1e-6))


def score_file(
    teachers: Sequence[Teacher],
    data: Sequence[str | Path],
    output: Path,
    *,
    keep_lists: bool = False,
    overwrite: bool = False,
    store: Path | None = None,
    process: int = 0,
    processes: int = 1,
    meet: Callable[[], object] = lambda: None,
    pairs: int | None = None,
) -> Path:
    """Scores every (query, document) of the data and writes the distillation format to `output`; returns it.

    A run that was stopped goes on where it was; `output` appears when all is done. With several processes, each scores its
    share of the blocks and the first writes the output.

    Args:
        teachers: one, or several to be averaged.
        data: JSONL of any accepted form, or {"query", "documents"} lines; files or globs.
        output: file to write.
        keep_lists: write documents of `neg` apart from those of `pos`.
        overwrite: replace `output` if it is there.
        store: file that keeps logits by content, for other data sets and runs.
        process: this process's number.
        processes: how many share the work.
        meet: returns when all of them have called it.
        pairs: what `checked_pairs` found; None: the data has not been checked yet.

    Raises:
        InputError: data that cannot be read, an output that is there or among the data, half a run of other data or teachers, a
            score that is not finite.
    """
    paths = expand_paths([str(path) for path in data])
    if process == 0:
        check_output(output, paths, overwrite or is_delivered(output))
    if pairs is None:
        pairs = checked_pairs(paths, keep_lists)
    digests = [teacher_digest(teacher.reranker) for teacher in teachers]
    parts = Parts(output, {**fingerprint(paths, teachers, digests), "keep_lists": keep_lists})
    with parts.lock:
        _score(
            parts,
            paths,
            keep_lists,
            pairs,
            partial(block_logits, teachers, digests),
            store,
            Share(process, processes, meet),
        )
    return output


@dataclass(frozen=True)
class Share:
    """Which of the processes that share the work this one is."""

    process: int
    processes: int
    meet: Callable[[], object]


def _score(
    parts: Parts, paths: Sequence[Path], keep_lists: bool, pairs: int, score: Callable[..., np.ndarray], store: Path | None,
    share: Share,
) -> None:  # fmt: skip
    """Scores what `parts` lacks of this process's share; the first puts the output together."""
    process, processes = share.process, share.processes
    if process == 0:
        parts.claim()
    share.meet()
    if process > 0:
        parts.claim(takes=False)
    stored, is_assembled = parts.stored(), parts.is_assembled()
    share.meet()  # nobody comes so late that the first has written the output and removed the folder
    if not is_assembled:
        blocks = blocks_of(read_records(paths, ANY_LABEL))
        progress = _Progress(pairs, sum(stored.values()), process == 0)
        kept = Store(store) if store is not None else None
        for index, block in enumerate(blocks):
            records = [record for row in block for record in row]
            size = sum(len(record.documents) for record in records)
            if stored.get(index) == size:
                continue
            mine = index % processes == process
            if mine:
                parts.write(index, score(records, kept))
            progress.update(size, mine)
        progress.close()
        if kept is not None:
            kept.database.close()
    if process == 0:
        if not is_assembled:
            _assemble(parts, paths, keep_lists)
        parts.deliver()


def check_output(output: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Whether scores may be written there.

    Raises:
        InputError: a folder, a file of the input, or one that is there already.
    """
    if output.is_dir():
        raise InputError(f"output is {output}, a folder; expected the name of a file to write")
    if output.exists() and not output.is_file():
        raise InputError(f"output is {output}, which is no file that could be replaced; choose another name")
    if output.exists() and any(output.samefile(path) for path in inputs):
        raise InputError(f"output is {output}, which is the input; choose another file")
    if output.exists() and not overwrite:
        raise InputError(
            f"output is {output}, which is there already; choose another file, or say {option('overwrite')}"
        )
    existing = next(parent for parent in output.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"output is {output}, but {existing} cannot be written to; choose another place")


def checked_pairs(paths: Sequence[Path], keep_lists: bool) -> int:
    """How many pairs there are to score.

    Raises:
        InputError: with everything that is wrong with the data.
    """
    try:
        summary = check_records(paths, ANY_LABEL)
        if keep_lists:
            check_lists(paths)
    except InputError as error:
        raise InputError(error.problems, shared=True) from None  # all processes read the same
    return summary.pairs


def check_lists(paths: Sequence[Path]) -> None:
    """Whether every line has lists, and some documents are listed as negatives.

    Raises:
        InputError: with all lines that have none.
    """
    problems: list[str] = []
    negatives = 0
    for record in read_records(paths, ANY_LABEL):
        negatives += record.negatives
        if not record.has_lists and len(problems) < MAX_COLLECTED:
            problems.append(
                f'{record.path}:{record.lines[0]}: has no lists; expected "pos" and "neg", or leave {option("keep_lists")} out'
            )
    if not problems and not negatives:
        names = ", ".join(map(str, paths))
        problems = [
            f'{names}: lists no documents as negatives; expected lines with "neg", or leave {option("keep_lists")} out'
        ]
    if problems:
        raise InputError(problems)


def fingerprint(paths: Sequence[Path], teachers: Sequence[Teacher], digests: Sequence[str]) -> dict[str, object]:
    """What scores are made of: a run may go on, or be read, by what shares it."""
    weighted = [[digest, t.weight, t.temperature] for digest, t in zip(digests, teachers, strict=True)]
    return {"data": content_digest(list(paths)), "teachers": weighted, "block_pairs": BLOCK_PAIRS}


def known_logits(reranker: Reranker, digest: str, pairs: Sequence[tuple[str, str]], store: Store | None) -> np.ndarray:
    """Logits of pairs, finite or not; with a store, only what it lacks is computed, and kept there."""
    if store is None:
        return reranker.compute_score(pairs, finite=False).numpy()
    keys = [pair_key(digest, *pair) for pair in pairs]
    found = store.find(list(dict.fromkeys(keys)), reranker.num_labels)
    missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in found}
    if missing:
        fresh = reranker.compute_score(list(missing.values()), finite=False).numpy().reshape(len(missing), -1)
        finite = np.isfinite(fresh).all(axis=1)  # what is not finite may be so this time only, in half precision say
        store.add([key for key, good in zip(missing, finite, strict=True) if good], fresh[finite])
        found |= dict(zip(missing, fresh, strict=True))
    rows = np.stack([found[key] for key in keys])
    return rows[:, 0] if reranker.num_labels == 1 else rows


def _assemble(parts: Parts, paths: Sequence[Path], keep_lists: bool) -> None:
    """The output from the blocks of all processes; the launcher ends all if one of them fails."""
    rows = _rows_with_logits(parts, paths)
    lines = ((is_pair_line, _scored(row, logits, keep_lists)) for is_pair_line, row, logits in rows)
    with written_whole(parts.whole) as file:
        for line in _brought_together(lines) if _are_apart(paths) else (line for _, line in lines):
            file.write(f"{_as_json(line)}\n".encode())
    parts.mark_assembled()


def _rows_with_logits(parts: Parts, paths: Sequence[Path]) -> Iterator[tuple[bool, Row, np.ndarray]]:
    """(whether pair lines, row, its logits), in the order of the data."""
    for index, block in enumerate(blocks_of(read_records(paths, ANY_LABEL))):
        pairs = sum(len(record.documents) for row in block for record in row)
        while not parts.part(index).exists():  # another process is about to write it
            time.sleep(0.05)
        logits, at = parts.read(index), 0
        if logits is None or len(logits) != pairs:
            raise InputError(f"{parts.part(index)}: was damaged while the scores were put together; start again")
        for row in block:
            size = sum(len(record.documents) for record in row)
            yield row[0].is_pair_line, row, logits[at : at + size]
            at += size


def _are_apart(paths: Sequence[Path]) -> bool:
    """Whether pair lines of a query have other lines between them."""
    seen: set[int] = set()
    for row in _rows(read_records(paths, ANY_LABEL)):
        if row[0].is_pair_line:
            query = text_hash(row[0].query)
            if query in seen:
                return True
            seen.add(query)
    return False


def _brought_together(lines: Iterable[tuple[bool, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Lines in order, but those of pair lines of one query joined where the first stood; they wait on the disk, not in memory."""
    places: dict[int, int] = {}
    with closing(sqlite3.connect("")) as waiting:  # a temporary file
        waiting.execute("CREATE TABLE line (place INTEGER, text TEXT)")
        for number, (is_pair_line, line) in enumerate(lines):
            place = places.setdefault(text_hash(line["query"]), number) if is_pair_line else number
            waiting.execute("INSERT INTO line VALUES (?, ?)", (place, _as_json(line)))
        for _, same in groupby(waiting.execute("SELECT place, text FROM line ORDER BY place, rowid"), itemgetter(0)):
            first, *others = (json.loads(text) for _, text in same)
            for other in others:
                for key in first.keys() - {"query"}:
                    first[key] += other[key]
            yield first


def _as_json(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False)


def _scored(records: Row, logits: np.ndarray, keep_lists: bool) -> dict[str, Any]:
    """A line of the output; logits are of all its documents, [pairs]."""
    columns: dict[str, list[Any]] = {
        "": [document for record in records for document in record.documents],
        "_scores": [float(f"{value:.7g}") for value in torch.from_numpy(logits).sigmoid().tolist()],
        "_logits": [float(f"{value:.7g}") for value in logits.tolist()],
    }
    split = len(logits) - records[0].negatives
    sides = {"pos": slice(split), "neg": slice(split, None)} if keep_lists else {"pos": slice(None)}
    lists = {f"{side}{kind}": values[part] for kind, values in columns.items() for side, part in sides.items()}
    return {"query": records[0].query, **lists}


class _Progress:
    """A bar on terminals, a line now and then elsewhere; on the first process, of its own walk through the data."""

    def __init__(self, pairs: int, stored: int, shown: bool):
        self.pairs, self.stored, self.shown, self.done, self.scored = pairs, stored, shown, 0, 0
        self.begun = self.said = time.monotonic()
        hidden = not (shown and sys.stderr.isatty())
        self.bar = tqdm(total=pairs, initial=stored, unit="pair", desc="scoring", disable=hidden)

    def update(self, pairs: int, mine: bool) -> None:
        """Pairs that were not stored before: scored here, or by another process, about as fast."""
        self.done, self.scored = self.done + pairs, self.scored + pairs * mine
        self.bar.update(pairs)
        now = time.monotonic()
        if self.shown and self.bar.disable and mine and now - self.said >= SAID_EVERY_S:
            self.said = now
            rate, ready = self.done / (now - self.begun), self.stored + self.done
            left_s = (self.pairs - ready) / rate
            print(f"{ready} of {self.pairs} pairs, {rate:.1f} pairs/s, {left_s:.0f} s left", flush=True)

    def close(self) -> None:
        self.bar.close()
        seconds = time.monotonic() - self.begun
        if self.shown and self.bar.disable:
            print(f"scored {self.scored} pairs in {seconds:.0f} s ({self.scored / max(seconds, 1e-9):.1f} pairs/s)")
