"""One pass over the data: records -> chunks of texts -> tables, sketches, counts; everything that findings are made of.

Contract: memory does not grow with the files once the tables are full (`tables`); what is kept are keys, places and counts, no
texts but a bounded sample for lengths. Relevance: labels above `relevant_above`, but lists where scores are a teacher's
(`grades_of`). Cost: a JSON parse, a normal form, a hash and a sketch for each document. Rejected: one pass a question.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rankery.checking import near
from rankery.checking.doubts import Doubts
from rankery.checking.lengths import Measure
from rankery.checking.places import DOCUMENTS, Files, Tally
from rankery.checking.tables import Table
from rankery.checking.texts import SCRIPTS, characters, keys_of, main_scripts, normalise, rough_tokens
from rankery.data.files import mix
from rankery.data.lines import numbered_lines
from rankery.data.records import SHAPES, LabelRange, QueryRecord, parse_object, parse_row
from rankery.errors import InputError

CHUNK_TEXTS, CHUNK_CHARACTERS = 8192, 1 << 20
JAPANESE = [SCRIPTS.index(name) for name in ("Han", "Japanese")]
DISTINCT_LABELS = 1000  # more are counted to three digits
SPAN = {"first": ("int64", np.minimum), "last": ("int64", np.maximum)}
# The top halves of the keys of the queries that a document is listed for: two different ones, and it is shared.
ASKED = {"query_low": ("uint32", np.minimum), "query_high": ("uint32", np.maximum)}
GRADES = {"low": ("float32", np.minimum), "high": ("float32", np.maximum)}


@dataclass
class Chunk:
    """Texts that wait to be looked at together. Q queries (one a line), D documents."""

    queries: list[str] = field(default_factory=list)  # [Q] as they are
    query_places: list[int] = field(default_factory=list)
    is_list: list[bool] = field(default_factory=list)  # [Q] a line with all of the query's documents
    documents: list[str] = field(default_factory=list)  # [D] as they are
    places: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # [D] index of the query
    grades: list[float] = field(default_factory=list)  # [D] what decides relevance
    characters: int = 0


class Scan:
    """What a data set holds."""

    def __init__(self, files: Files, labels: LabelRange, relevant_above: float, capacity: int, lengths: Measure | None):
        self.files, self.labels, self.relevant_above, self.lengths = files, labels, relevant_above, lengths
        self.queries = Table(capacity, {**SPAN, **GRADES, "lists": ("uint32", np.add)})
        self.pairs = Table(capacity, {**SPAN, **GRADES, "times": ("uint32", np.add)})
        self.documents = Table(capacity, {"first": SPAN["first"], **ASKED})
        self.near_queries, self.near_documents = near.Near(capacity, near.QUERIES), near.Near(capacity, near.DOCUMENTS)
        self.opposite = near.Candidates()
        self.lines = self.pair_count = 0
        self.shapes: Counter[str] = Counter()
        self.label_counts: Counter[float] = Counter()
        self.label_ends, self.labels_outside = (math.inf, -math.inf), 0
        self.is_soft = False  # some labels are scores: no line is drawn between relevant and not
        self.scripts: dict[str, np.ndarray] = {
            kind: np.zeros(len(SCRIPTS), dtype=np.int64) for kind in ("queries", "documents")
        }
        self.empty_queries, self.empty_documents, self.crossing = Tally(), Tally(), Tally()
        self.control = {"query": Tally(), "document": Tally()}  # texts that spell control tokens of the model
        self.control_names: Counter[str] = Counter()
        self.doubts = Doubts()
        self.chunk = Chunk()

    def read(self, paths: Sequence[Path], say: Callable[[str], object]) -> None:
        """Adds all records of files; each problem of a line goes to `say`, and the line is left out."""
        for path in paths:
            self._read(path, say)
        self.flush()

    def _read(self, path: Path, say: Callable[[str], object]) -> None:
        self.files.open(path)
        before = self.lines
        try:
            for number, line in numbered_lines(path):
                self.lines += 1
                try:
                    row = parse_object(line, f"{path}:{number}")
                    record = parse_row(row, str(path), number, self.labels)
                except InputError as error:
                    self.files.place(number)
                    for problem in error.problems:
                        say(problem)
                    continue
                self.add(record, row)
        except InputError as error:  # of the file, not of a line
            for problem in error.problems:
                say(problem)
            return
        if self.lines == before:
            say(f"{path}: is empty; expected one JSON object a line: {SHAPES}")

    def add(self, record: QueryRecord, row: dict[str, Any]) -> None:
        """One record, and the JSON object that it was read from."""
        chunk, count = self.chunk, len(record.documents)
        place = self.files.place(record.lines[0])
        self.pair_count += count
        grades = grades_of(record, self.labels)
        self._count_labels(record, row, grades)
        self.doubts.add(record, row, place, [grade > self.relevant_above for grade in grades])
        chunk.owner += [len(chunk.queries)] * count
        chunk.queries.append(record.query)
        chunk.query_places.append(place)
        chunk.is_list.append(not record.is_pair_line)
        chunk.documents += record.documents
        chunk.places += (
            range(place, place + count)
            if count < DOCUMENTS
            else [self.files.place(record.lines[0], i) for i in range(count)]
        )
        chunk.grades += grades
        chunk.characters += len(record.query) + sum(map(len, record.documents))
        if len(chunk.documents) >= CHUNK_TEXTS or chunk.characters >= CHUNK_CHARACTERS:
            self.flush()

    def _count_labels(self, record: QueryRecord, row: dict[str, Any], grades: list[float]) -> None:
        shape = "content" if record.is_pair_line else "hits" if "hits" in row and "content" not in row else "pos"
        if shape == "pos" and (row.get("pos_scores") is not None or row.get("neg_scores") is not None):
            shape = "scores"
        self.shapes[shape] += 1
        self.label_counts.update(record.labels)
        low, high = min(record.labels), max(record.labels)
        self.label_ends = min(low, self.label_ends[0]), max(high, self.label_ends[1])
        if low < self.labels.min_label or high > self.labels.max_label:
            inside = (self.labels.min_label <= label <= self.labels.max_label for label in record.labels)
            self.labels_outside += len(record.labels) - sum(inside)
        if not self.is_soft and shape != "pos" and not record.negatives:
            self.is_soft = not all(grade.is_integer() for grade in grades)
        if len(self.label_counts) > DISTINCT_LABELS:
            shorter: Counter[float] = Counter()
            for label, number in self.label_counts.items():
                shorter[float(f"{round(label, 4):.3g}")] += number
            self.label_counts = shorter

    def flush(self) -> None:
        """Takes the waiting texts into tables, sketches and counts."""
        chunk, self.chunk = self.chunk, Chunk()
        if not chunk.queries:
            return
        queries, documents = [normalise(text) for text in chunk.queries], [normalise(text) for text in chunk.documents]
        query_keys, document_keys = keys_of(queries), keys_of(documents)
        owner, places = np.array(chunk.owner), np.array(chunk.places, dtype=np.int64)
        query_places, grades = np.array(chunk.query_places), np.array(chunk.grades, dtype=np.float32)
        relevant = grades > self.relevant_above
        pairs = pair_keys(query_keys[owner], document_keys)
        self._fill_tables(query_keys, document_keys, pairs, query_places, places, owner, grades, chunk.is_list)
        new = self.queries.find(query_keys, "first", near.ABSENT) >= query_places
        self._sketch_queries([queries[i] for i in np.flatnonzero(new)], query_places[new])
        self._sketch_documents(documents, document_keys, places, query_keys[owner], relevant)
        self._look_at_characters(queries, documents, owner, relevant, query_places, places)
        if self.lengths is not None:
            self._look_for_control_tokens("query", chunk.queries, chunk.query_places)
            self._look_for_control_tokens("document", chunk.documents, chunk.places)
            chosen = np.flatnonzero(relevant)
            texts = [(chunk.queries[owner[i]], chunk.documents[i]) for i in chosen]
            self.lengths.add_texts(pairs[chosen], texts)

    def _fill_tables(
        self,
        queries: np.ndarray,
        documents: np.ndarray,
        pairs: np.ndarray,
        query_places: np.ndarray,
        places: np.ndarray,
        owner: np.ndarray,
        grades: np.ndarray,
        is_list: list[bool],
    ) -> None:
        low: np.ndarray = np.full(len(queries), np.inf, dtype=np.float32)
        high = -low
        np.minimum.at(low, owner, grades)
        np.maximum.at(high, owner, grades)
        self.queries.add(queries, first=query_places, last=query_places, low=low, high=high, lists=np.array(is_list))
        once = np.ones(len(pairs))
        self.pairs.add(pairs, first=places, last=places, low=grades, high=grades, times=once)
        asked = queries[owner] >> np.uint64(32)
        self.documents.add(documents, first=places, query_low=asked, query_high=asked)

    def _sketch_queries(self, texts: list[str], places: np.ndarray) -> None:
        keys, long = self.near_queries.sketches(texts)
        self.near_queries.add(keys[long], places[long])

    def _sketch_documents(
        self, texts: list[str], keys: np.ndarray, places: np.ndarray, groups: np.ndarray, relevant: np.ndarray
    ) -> None:
        sketches, long = self.near_documents.sketches(texts)
        new = long & (self.documents.find(keys, "first", near.ABSENT) >= places)
        self.near_documents.add(sketches[new], places[new])
        one, other = near.opposite(sketches[long], groups[long], relevant[long])
        self.opposite.note(places[long][one], places[long][other])

    def _look_for_control_tokens(self, kind: str, texts: list[str], places: list[int]) -> None:
        assert self.lengths is not None
        if self.lengths.control is None:
            return
        for text, place in zip(texts, places, strict=True):
            if found := self.lengths.control.findall(text):
                self.control[kind].note(place)
                self.control_names.update(set(found))

    def _look_at_characters(
        self,
        queries: list[str],
        documents: list[str],
        owner: np.ndarray,
        relevant: np.ndarray,
        query_places: np.ndarray,
        places: np.ndarray,
    ) -> None:
        for texts, at, tally in (
            (queries, query_places, self.empty_queries),
            (documents, places, self.empty_documents),
        ):
            for i, text in enumerate(texts):
                if not text:
                    tally.note(int(at[i]))
        tokens, scripts = {}, {}
        for kind, texts in (("queries", queries), ("documents", documents)):
            found = characters(texts)
            counts = found.script_counts()
            scripts[kind] = main_scripts(counts)
            self.scripts[kind] += np.bincount(scripts[kind], minlength=len(SCRIPTS))
            tokens[kind] = rough_tokens(found, counts)
        asked, answered = scripts["queries"][owner], scripts["documents"]
        kanji = np.isin(asked, JAPANESE) & np.isin(answered, JAPANESE)  # a Japanese text may do without kana
        crosses = relevant & (asked != answered) & (asked > 0) & (answered > 0) & ~kanji
        for i in np.flatnonzero(crosses).tolist():
            self.crossing.note(int(places[i]))
        if self.lengths is not None:
            self.lengths.add_rough(tokens["queries"], tokens["documents"], owner, relevant)


class OtherScan(Scan):
    """A scan of files that must share nothing with the data that was scanned: keys, and who is like a text of the data."""

    def __init__(self, data: Scan):
        super().__init__(data.files, data.labels, data.relevant_above, data.pairs.capacity, None)
        self.data = data
        self.near_leaks = {"query": near.Candidates(), "document": near.Candidates()}

    def _sketch_queries(self, texts: list[str], places: np.ndarray) -> None:
        keys, long = self.data.near_queries.sketches(texts)
        self.data.near_queries.look(keys[long], places[long], self.near_leaks["query"])

    def _sketch_documents(
        self, texts: list[str], keys: np.ndarray, places: np.ndarray, groups: np.ndarray, relevant: np.ndarray
    ) -> None:
        sketches, long = self.data.near_documents.sketches(texts)
        new = long & (self.documents.find(keys, "first", near.ABSENT) >= places)
        new &= self.data.documents.find(keys, "first", near.ABSENT) == near.ABSENT
        self.data.near_documents.look(sketches[new], places[new], self.near_leaks["document"])


def grades_of(record: QueryRecord, labels: LabelRange) -> list[float]:
    """What decides the relevance of each document: its label, or the end of the range by list where a line has "neg" and a teacher's
    scores: scores of "neg", or such of "pos" as are no whole numbers.
    """
    split = len(record.documents) - record.negatives
    positives, negatives = record.labels[:split], record.labels[split:]
    if negatives and not (all(map(float.is_integer, positives)) and set(negatives) == {labels.min_label}):
        return [labels.max_label] * split + [labels.min_label] * record.negatives
    return list(record.labels)


def pair_keys(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Keys of (query, document) from the keys of both, [P] uint64 each."""
    return mix(queries ^ mix(documents, 5), 6)
