"""A store of logits by content: data sets, runs and teachers that meet again do not score the same pair twice.

Contract: a pair's key is a hash of the teacher (weights, settings, tokenizer, template) and the two texts; values are the teacher's logits.
One SQLite file, safe to share between processes. A score has a CRC-32 behind it, with its key; one that is damaged or no number
counts as absent, and is scored and kept again. Cost: a lookup a pair, far below a forward pass. What comes from a store was
computed among other neighbours, so it equals a fresh score to rounding, not bit for bit. Rejected: files named by hashes (a
million of them), and keys without the weights (a model folder that was trained again would answer with old scores).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from rankery.data.tokens import tokenizer_digest
from rankery.errors import InputError
from rankery.models.contract import ABSENT
from rankery.models.reranker import Reranker

ORIGIN = ("_name_or_path", "transformers_version")  # of a model's config, which decide no score
AT_ONCE = 500  # keys a query: SQLite takes a limited number of parameters
WAIT_S = 60.0  # for other programs that use a store
CHECK_BYTES, LOGIT_BYTES = 4, 4


def teacher_digest(reranker: Reranker) -> str:
    """Hash of everything that decides a score: weights as loaded, the model's and our settings, tokenizer, template."""
    digest = hashlib.blake2b(digest_size=16)
    config = json.loads(reranker.model.config.to_json_string(use_diff=False))
    # Keys that are as they were before there were such keys are left out: stores stay valid.
    settings = {key: value for key, value in reranker.settings().items() if key not in ABSENT or value != ABSENT[key]}
    described = [
        reranker.template.to_dict(), settings, str(type(reranker.model).__name__),
        {key: value for key, value in config.items() if key not in ORIGIN},
        [[adapter.r, adapter.lora_alpha] for adapter in getattr(reranker.model, "peft_config", {}).values()],
        tokenizer_digest(reranker.tokenizer),
    ]  # fmt: skip
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(reranker.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def pair_key(teacher: str, query: str, document: str) -> bytes:
    """16 bytes that stand for a teacher's score of a pair."""
    digest = hashlib.blake2b(teacher.encode(), digest_size=16)
    for text in (query, document):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


class Store:
    """Logits by key; `with Store(path) as store`.

    Raises:
        InputError: a file that is no store, is damaged, cannot be written, or stays locked by another program.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._said("cannot be used as a store of scores", "choose another file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            self.database.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, logits BLOB) WITHOUT ROWID")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def find(self, keys: Sequence[bytes], labels: int = 1) -> dict[bytes, np.ndarray]:
        """The logits (float32, [labels]) of the keys that are there, whole and finite.

        Args:
            keys: of `pair_key`.
            labels: logits of a pair.
        """
        found: dict[bytes, np.ndarray] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            with self._said("scores could not be read", "choose another file"):
                rows = self.database.execute(f"SELECT key, logits FROM scores WHERE key IN ({marks})", some).fetchall()
            for key, value in rows:
                logits = _logits(key, value, labels)
                if logits is not None:
                    found[key] = logits
        return found

    def add(self, keys: Sequence[bytes], logits: np.ndarray) -> None:
        """Keeps logits, one row a key.

        Raises:
            InputError: the disk is full.
        """
        values = [row.astype("<f4").tobytes() for row in logits]
        rows = [(key, value + _check(key, value)) for key, value in zip(keys, values, strict=True)]
        with self._said("scores could not be kept", "make room"):
            self.database.execute("BEGIN IMMEDIATE")
            try:
                self.database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
                self.database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # as after a full disk, where SQLite has done so
                    self.database.execute("ROLLBACK")
                raise

    @contextmanager
    def _said(self, what: str, fix: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if "locked" in str(error):
                fix = f"another program has held it for {WAIT_S:g} s: end that, or choose another file"
            raise InputError(f"{self.path}: {what}: {error}; {fix}") from error


def _logits(key: bytes, value: object, labels: int) -> np.ndarray | None:
    """The logits of a row; None where it is damaged. An older rankery wrote no check."""
    if not isinstance(value, bytes) or len(value) not in (size := labels * LOGIT_BYTES, size + CHECK_BYTES):
        return None
    logits, check = value[:size], value[size:]
    if check and check != _check(key, logits):
        return None
    found = np.frombuffer(logits, dtype="<f4")
    return found if np.isfinite(found).all() else None


def _check(key: bytes, logits: bytes) -> bytes:
    return zlib.crc32(key + logits).to_bytes(CHECK_BYTES, "little")
