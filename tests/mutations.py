"""Damage to a folder's JSON and text files, in every way that a file comes to be wrong; deterministic by seed.

Contract: `mutations(folder)` lists what can be done, one fault each; `apply` does one of them in a copy. A verdict on what follows is
the caller's: a clean error, an equal result, or a finding. For model folders, run folders and data files alike.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRONG = [None, True, -1, 0, 10**10, 1.5, 1e308, "", "x" * 1000, "../../etc/passwd", [], {}, [[]], {"a": None}]
GARBAGE = [b"", b"\xff\xfe\x00", b"null", b"[]", b"{", b'"text"', b"\x00" * 64, b"[" * 20_000, b'{"a": 1e999}']
MOST_KEYS = 60  # of one object, so that a vocabulary does not drown the rest


@dataclass(frozen=True)
class Mutation:
    """One fault of one file: `content` in place of what it holds, None for no file at all."""

    file: str
    what: str
    content: bytes | None

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        if self.content is None:
            path.unlink()
        else:
            path.write_bytes(self.content)


def mutations(folder: Path, names: list[str] | None = None) -> list[Mutation]:
    """All faults of the named files; None: of every JSON file of the folder."""
    names = sorted(path.name for path in folder.glob("*.json")) if names is None else names
    contents = {name: (folder / name).read_bytes() for name in names}
    found = []
    for name, content in contents.items():
        found.append(Mutation(name, "gone", None))
        found += [Mutation(name, f"garbage {i}", garbage) for i, garbage in enumerate(GARBAGE)]
        found += [Mutation(name, f"cut at {part}/4", content[: len(content) * part // 4]) for part in (1, 2, 3)]
        found += [Mutation(name, f"is {other}", contents[other]) for other in names if other != name]
        found += _of_json(name, content)
    return found


def sample(folder: Path, count: int, seed: int, names: list[str] | None = None) -> list[Mutation]:
    every = mutations(folder, names)
    return random.Random(seed).sample(every, min(count, len(every)))


def _of_json(name: str, content: bytes) -> Iterator[Mutation]:
    try:
        said = json.loads(content)
    except ValueError:
        return
    for path in _paths(said):
        yield Mutation(name, f"without {'.'.join(map(str, path))}", _changed(said, path, None, remove=True))
        for wrong in WRONG:
            what = f"{'.'.join(map(str, path))} = {wrong!r:.20}"
            yield Mutation(name, what, _changed(said, path, wrong, remove=False))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places in JSON, nested ones too; of long lists and objects the first."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for i, (key, inner) in enumerate(items):
        if i < (MOST_KEYS if isinstance(value, dict) and len(path) < 2 else 2):
            yield from _paths(inner, (*path, key))


def _changed(said: Any, path: tuple[Any, ...], value: Any, remove: bool) -> bytes:
    changed = json.loads(json.dumps(said))
    place = changed
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(changed).encode()
