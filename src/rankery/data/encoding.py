"""Records -> token ids on disk, tokenised once, read from there ever after.

Contract: `encode` gives the same arrays for the same files, tokenizer, template and label range; the key of the cache folder
is a hash of all of them, and a folder appears whole or not at all (written aside, renamed); a damaged one is made again. Each query
is stored once, each document once a pair, both cut to the room they can ever have. Cost: one tokenisation; then a start reads
everything once (1 GB/s) to check it, and memory grows by 60 bytes a pair, whatever the texts. Rejected: tokenising in the data loader (again every epoch, and
lengths are unknown when steps are planned), and Arrow data sets (sequences of joined ids store each query once a document).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from rankery.data.files import content_digest, text_hash
from rankery.data.records import LabelRange, QueryRecord, read_records
from rankery.data.template import PairTemplate
from rankery.data.token_cache import Tokens, clear_abandoned, delete, read_meta, write_meta
from rankery.data.tokens import text_ids, tokenizer_digest
from rankery.errors import InputError
from rankery.locks import hold_folder

CACHE_VERSION = 4  # of what the arrays hold, a part of their name; runs that go on ask for the same
CACHE_FORMAT = 5  # of the folder
RECORDS_AT_ONCE = 512
NAMED = 8  # lines in a message
# Teacher scores of 0 and 1 have no logit: they are taken as this far from the ends (logits of -9.2 and 9.2).
SCORE_FLOOR = 1e-4
GAIN_FLOOR = np.float32(1e-8)  # a gain of 0 in logarithms: as far below 1 as a score of 0 is in logits
# The arrays of a cache folder. Q queries, P pairs (one document each); *_tokens hold ids of all texts in a row.
ARRAYS = {
    "query_end": "int64",  # [Q] where each query's ids end in query_tokens
    "query_length": "int32",  # [Q] tokens before any cut; of a longer text, one more than the room
    "document_end": "int64",  # [P]
    "document_length": "int32",  # [P] the same
    "pair_query": "int32",  # [P] index of the pair's query
    "label": "float32",  # [P] as in the file
    "teacher_logit": "float32",  # [P] as in the file; NaN: the file has none
    "key": "uint64",  # [P] hash of the two texts, to break ties
    "line": "int32",  # [P] line in its file
    "file": "uint16",  # [P] index in the list of files
    "listed": "int8",  # [P] 1: in pos, -1: in neg, whatever its score; 0: its line has no lists
}
TOKENS = ("query_tokens", "document_tokens")
FILES = tuple(f"{name}.bin" for name in (*ARRAYS, *TOKENS))


@dataclass(frozen=True)
class EncodedPairs:
    """(query, document, label) pairs; see ARRAYS for the names and shapes of `arrays`. Token ids are on the disk."""

    arrays: dict[str, Any]
    template: PairTemplate
    labels: LabelRange
    paths: tuple[str, ...]
    lengths: np.ndarray  # [P] tokens of each joined, truncated pair
    heads: np.ndarray  # [P] of these, tokens of the shared prefix: pairs of one query with as many begin alike
    by_gain: bool = (
        False  # labels are grades: without a teacher's logits, a softmax over a query is in proportion to them
    )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def queries(self) -> int:
        return len(self.arrays["query_end"])

    def build(self, pair: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(input_ids, token_type_ids or None) of one pair, [tokens]."""
        query = int(self.arrays["pair_query"][pair])
        query_ids = _piece(self.arrays["query_tokens"], self.arrays["query_end"], query)
        document_ids = _piece(self.arrays["document_tokens"], self.arrays["document_end"], pair)
        return self.template.build(query_ids, document_ids)

    def targets(self, pairs: np.ndarray) -> np.ndarray:
        """What is learnt of pairs, [pairs, 2] float32: the label, scaled evenly from [min_label, max_label] to [0, 1], and the
        teacher's logit; where the file has none that of the scaled label, or of grades its logarithm.
        """
        low, high = self.labels.min_label, self.labels.max_label
        scaled = ((self.arrays["label"][pairs] - low) / (high - low)).astype(np.float32)
        logits = self.arrays["teacher_logit"][pairs]
        own = np.log(np.maximum(scaled, GAIN_FLOOR)) if self.by_gain else logit(scaled)
        return np.stack([scaled, np.where(np.isnan(logits), own, logits)], axis=1)

    def labelled_by_lists(self) -> EncodedPairs:
        """The same with max_label for what is listed in pos and min_label for neg; a teacher's logits stay, or become those of the
        labels before. Lines without lists keep their labels.
        """
        listed, labels = np.asarray(self.arrays["listed"]), self.labels
        by_list = np.where(listed > 0, labels.max_label, labels.min_label)
        changed = {
            "label": np.where(listed == 0, self.arrays["label"], by_list).astype(np.float32),
            "teacher_logit": self.targets(np.arange(len(self)))[:, 1],
        }
        return replace(self, arrays={**self.arrays, **changed})

    def where(self, pair: int) -> str:
        """`file:line` of a pair, for messages."""
        return f"{self.paths[self.arrays['file'][pair]]}:{self.arrays['line'][pair]}"

    def named(self, pairs: Iterable[int]) -> str:
        """The lines of some pairs, each once and the first eight, for messages."""
        places = list(dict.fromkeys(map(self.where, pairs)))
        return ", ".join(places[:NAMED]) + (", ..." if len(places) > NAMED else "")


def logit(scores: np.ndarray) -> np.ndarray:
    """log(s / (1 - s)) of scores in [0, 1], finite at both ends."""
    inside = np.clip(scores, SCORE_FLOOR, 1 - SCORE_FLOOR)
    return np.log(inside / (1 - inside))


def _piece(tokens: Tokens, ends: np.ndarray, index: int) -> np.ndarray:
    start = ends[index - 1] if index else 0
    return tokens[start : ends[index]]


def default_cache_folder() -> Path:
    """Where token caches live: $RANKERY_CACHE, else the user's cache folder. Deleting it costs a tokenisation, no more."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rankery"
    return Path(os.environ.get("RANKERY_CACHE", fallback))


def cache_key(paths: list[Path], tokenizer: Any, template: PairTemplate, labels: LabelRange) -> str:
    """Name of the cache folder: a hash of everything that decides what is in it."""
    parts = (
        str(CACHE_VERSION),
        content_digest(paths),
        tokenizer_digest(tokenizer),
        template.fingerprint(),
        f"{labels.min_label!r} {labels.max_label!r}",
    )
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def is_cached(folder: Path) -> bool:
    """Whether a cache folder is there and whole; a process looks at the bytes once."""
    return read_meta(folder, CACHE_FORMAT, FILES) is not None


def encode(
    paths: list[Path], tokenizer: Any, template: PairTemplate, labels: LabelRange, folder: Path, progress: Any = iter
) -> None:
    """Tokenises the files into `folder` unless a whole cache is there already. `progress` wraps the iterator of records.

    Raises:
        InputError: lines that cannot be read; the disk is full or not writable.
    """
    if is_cached(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder.parent}: cannot be written to: {error}; set dataset_cache_dir") from error
    held = hold_folder(aside)
    try:
        _write(aside, progress(read_records(paths, labels)), tokenizer, template, paths)
        if not is_cached(folder):  # else another run, which may be reading it, was faster
            if folder.exists() or folder.is_symlink():
                delete(folder)  # half a cache, or a damaged one
            aside.rename(folder)
    except OSError as error:
        if not is_cached(folder):  # else another run finished the same cache first
            raise InputError(
                f"{folder}: tokenised data could not be written: {error}; make room, or set dataset_cache_dir"
            ) from error
    finally:
        with suppress(OSError):
            delete(aside)
        if held is not None:
            os.close(held)


def open_encoded(folder: Path, template: PairTemplate, labels: LabelRange, paths: list[Path]) -> EncodedPairs:
    """Opens a cache folder: token ids are read when they are asked for, the rest is held.

    Raises:
        InputError: it is not there, or damaged.
    """
    meta = read_meta(folder, CACHE_FORMAT, FILES)
    if meta is None:
        raise InputError(f"{folder}: is no whole cache of tokenised data; start again: it is made again")
    arrays: dict[str, Any] = {name: np.fromfile(folder / f"{name}.bin", dtype=dtype) for name, dtype in ARRAYS.items()}
    arrays |= {name: Tokens(folder / f"{name}.bin", meta["token_type"]) for name in TOKENS}
    query_kept, document_kept = template.cut(
        arrays["query_length"][arrays["pair_query"]].astype(np.int64), arrays["document_length"].astype(np.int64)
    )
    lengths = (query_kept + document_kept + template.specials).astype(np.int32)
    heads = template.shared_prefix(query_kept).astype(np.int32)
    return EncodedPairs(arrays, template, labels, tuple(map(str, paths)), lengths, heads)


def _write(
    folder: Path, records: Iterable[QueryRecord], tokenizer: Any, template: PairTemplate, paths: list[Path]
) -> None:
    token_type = "uint16" if len(tokenizer) <= 1 << 16 else "uint32"
    names = [*ARRAYS, *TOKENS]
    files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("wb") for name in names}
    file_index = {str(path): index for index, path in enumerate(paths)}
    seen: dict[int, int] = {}  # pair lines: hash of a query -> its index
    ends = {"query": 0, "document": 0}
    queries = 0

    def put(name: str, values: Any) -> None:
        np.asarray(values, dtype=ARRAYS.get(name, token_type)).tofile(files[name])

    def put_texts(kind: Literal["query", "document"], texts: list[str]) -> None:
        pieces = text_ids(tokenizer, template, kind, texts, template.room + 1)
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        kept = np.minimum(lengths, template.room)
        put(f"{kind}_length", lengths)
        put(f"{kind}_end", ends[kind] + np.cumsum(kept))
        put(f"{kind}_tokens", [token for piece in pieces for token in piece[: template.room]])
        ends[kind] += int(kept.sum())

    try:
        for chunk in _chunks(records, RECORDS_AT_ONCE):
            new_queries: list[str] = []
            of_record: list[int] = []
            for record in chunk:
                index = seen.get(text_hash(record.query)) if record.is_pair_line else None
                if index is None:
                    index = queries + len(new_queries)
                    new_queries.append(record.query)
                    if record.is_pair_line:
                        seen[text_hash(record.query)] = index
                of_record.append(index)
            queries += len(new_queries)
            put_texts("query", new_queries)
            put_texts("document", [text for record in chunk for text in record.documents])
            sizes = [len(record.documents) for record in chunk]
            put("pair_query", np.repeat(of_record, sizes))
            put("label", [label for record in chunk for label in record.labels])
            put(
                "teacher_logit",
                [v for r, n in zip(chunk, sizes, strict=True) for v in r.teacher_logits or [np.nan] * n],
            )
            put("key", [text_hash(record.query, text) for record in chunk for text in record.documents])
            put("line", [line for record in chunk for line in record.lines])
            put("file", np.repeat([file_index[record.path] for record in chunk], sizes))
            put("listed", [sign for record in chunk for sign in _listed(record)])
    finally:
        for file in files.values():
            file.close()
    write_meta(folder, CACHE_FORMAT, token_type, FILES)


def _listed(record: QueryRecord) -> list[int]:
    return [int(record.has_lists)] * (len(record.documents) - record.negatives) + [-1] * record.negatives


def _chunks(records: Iterable[QueryRecord], size: int) -> Iterator[list[QueryRecord]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, size)):
        yield chunk
