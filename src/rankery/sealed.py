"""Our own JSON files: written with a digest of their content, and checked by digest and schema when they are read.

Contract: what `read_sealed` returns is what `sealed` was given, or a ValueError says in a few words why not; files of an older
rankery have no digest and are checked by their schema alone. Cost: a hash of some kilobytes. Rejected: a digest in a file beside,
which a copy or a rename parts from what it stands for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

DIGEST = "digest"
LARGEST_BYTES = 64 << 20  # none of ours comes near
T = TypeVar("T", bound="Schema")


class Schema(BaseModel):
    """What one of our files has to hold; more is allowed, since a newer rankery may keep more."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


def sealed(content: Mapping[str, Any]) -> str:
    """The content as JSON, with a digest of it."""
    return json.dumps({**content, DIGEST: _digest(content)})


def read_sealed(file: Path, schema: type[T]) -> dict[str, Any]:
    """The content of a file, without the digest.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, no JSON object, changed since it was written, or not as `schema` says.
    """
    if file.is_symlink() or not file.is_file():
        raise ValueError("it is no regular file")
    if file.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it has {file.stat().st_size} bytes")
    content = _parsed(file.read_bytes())
    digest = content.pop(DIGEST, None)
    if digest is not None and digest != _digest(content):
        raise ValueError("it changed since it was written")
    try:
        return schema.model_validate(content).model_dump()
    except ValidationError as error:
        keys = dict.fromkeys(".".join(map(str, problem["loc"][:2])) for problem in error.errors())
        raise ValueError(f"no valid {', '.join(keys)}"[:200]) from error


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode())
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(content))  # as it will be read: keys are texts, tuples are lists
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
