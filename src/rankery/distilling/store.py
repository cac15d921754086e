"""A store of logits by content: data sets, runs and teachers that meet again do not score the same pair twice.

Contract: a pair's key is a hash of the teacher (weights, settings, tokenizer, template) and the two texts; values are the teacher's logits.
One SQLite file, safe to share between processes. Cost: a lookup a pair, far below a forward pass. What comes from a store was
computed among other neighbours, so it equals a fresh score to rounding, not bit for bit. Rejected: files named by hashes (a
million of them), and keys without the weights (a model folder that was trained again would answer with old scores).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rankery.data.tokens import tokenizer_digest
from rankery.errors import InputError
from rankery.models.contract import ABSENT
from rankery.models.reranker import Reranker

ORIGIN = ("_name_or_path", "transformers_version")  # of a model's config, which decide no score
AT_ONCE = 500  # keys a query: SQLite takes a limited number of parameters


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
        InputError: a file that is no store, or cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(path, timeout=600, isolation_level=None)
            self.database.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, logits BLOB) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{path}: cannot be used as a store of scores: {error}; choose another file") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def find(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The logits (float32) of the keys that are there."""
        found: dict[bytes, np.ndarray] = {}
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self.database.execute(f"SELECT key, logits FROM scores WHERE key IN ({marks})", some)
            found |= {key: np.frombuffer(value, dtype="<f4") for key, value in rows}
        return found

    def add(self, keys: Sequence[bytes], logits: np.ndarray) -> None:
        """Keeps logits, one row a key; what is there already stays.

        Raises:
            InputError: the disk is full.
        """
        rows = [(key, row.astype("<f4").tobytes()) for key, row in zip(keys, logits, strict=True)]
        try:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)
            self.database.execute("COMMIT")
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: scores could not be kept: {error}; make room") from error
