"""Damage to run folders and caches, and the verdict on what a run makes of it: the inputs of fuzzing, the same for the same seed.

A mutation changes a copy of a whole folder. `run_verdict` resumes the run and compares it: "" where it said so in one line or ended
with the same weights and nothing outside changed; else the finding. Used by tests (a few of each kind) and by fuzzing (all of them).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "mine"
VALUES: list[Any] = [
    None, True, -1, 0, 7, 1 << 70, 0.5, -1e308, float("nan"), float("inf"), "", "x", "*", "..", "../outside/thesis.txt", "é" * 50_000,
    [], [1], [None], {}, {"a": 1}, [[[[]]]],
]  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """A change to a folder; `foreign`: it leaves something that is nobody's to delete, so that an error is right."""

    name: str
    apply: Callable[[Path], object]
    foreign: bool = False


def damaged(path: Path, kind: str, rng: random.Random) -> None:
    """Damage to one file, whatever is in it."""
    content = path.read_bytes()
    at = rng.randrange(max(1, len(content)))
    simple: Mapping[str, bytes] = {
        "empty": b"",
        "cut": content[:at],
        "one byte less": content[:-1],
        "flipped": content[:at]
        + bytes([(content[at] if content else 0) ^ (1 << rng.randrange(8))])
        + content[at + 1 :],
        "zeroed": content[:at] + b"\0" * len(content[at:]),
        "longer": content + b"\0\0\0\0",
        "doubled": content + content,
        "deep": b"[" * 100_000,
        "object": b"{}",
        "utf-16": content[:2000].decode("latin-1").encode("utf-16"),
    }
    if kind in simple:
        path.write_bytes(simple[kind])
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))


BYTES = ("empty", "cut", "one byte less", "flipped", "zeroed", "longer", "doubled", "deep", "object", "utf-16")
KINDS = (*BYTES, "gone", "folder", "pipe", "dangling")


def outside_of(folder: Path) -> Path:
    """A folder beside, that links lead to and nobody may touch."""
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "thesis.txt").write_text(MARK)
    return outside


def linked(path: Path, folder: Path) -> None:
    """The file becomes a link to one outside, whose text nobody may change."""
    target = outside_of(folder) / "thesis.txt"
    path.unlink()
    path.symlink_to(target)


def changed_json(path: Path, rng: random.Random, line: bool = False) -> None:
    """One value of a JSON file, or of one of its lines, becomes another, goes, or gets another name; its digest stays."""
    lines = path.read_text().splitlines() if line else [path.read_text()]
    at = rng.randrange(len(lines))
    content = json.loads(lines[at])
    holders = list(_holders(content))
    holder, key = holders[rng.randrange(len(holders))]
    how = rng.randrange(4)
    if how == 0 and isinstance(holder, dict):
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    else:
        others = [value for value in VALUES if value != holder[key]]
        holder[key] = others[rng.randrange(len(others))]
    lines[at] = json.dumps(content)
    path.write_text("\n".join(lines) + ("\n" if line else ""))


def _holders(content: Any) -> Iterator[tuple[Any, Any]]:
    """(object or list, key) of every value."""
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, dict | list):
            yield from _holders(value)


def run_mutations(folder: Path, seed: int, count: int) -> list[Mutation]:
    """So many mutations of a run's folder, of all kinds by turns."""
    rng = random.Random(seed)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    states = [name for name in files if name.endswith(("run.json", "state.json", "published.json"))]
    rows = [name for name in files if name.endswith(".jsonl")]
    # Other programs' files in a model folder are the concern of whoever opens models; ours are all of a run.
    ours = [name for name in files if not name.endswith("config.yaml")]
    made: list[Mutation] = []
    for number in range(count):
        own = random.Random(rng.random())
        turn = number % 5
        if turn in (0, 1):
            name = own.choice(states)
            made.append(Mutation(f"{number} {name} value", _bound(changed_json, name, own)))
        elif turn == 2:
            name = own.choice(rows)
            made.append(Mutation(f"{number} {name} value", _bound(changed_json, name, own, True)))
        elif turn == 3:
            name, kind = own.choice(ours), own.choice(KINDS)
            made.append(Mutation(f"{number} {name} {kind}", _bound(damaged, name, kind, own)))
        else:
            made.append(_structural(number, folder, files, own))
    return made


def _bound(change: Callable[..., None], name: str, *given: Any) -> Callable[[Path], object]:
    return lambda folder: change(folder / name, *given)


def _structural(number: int, folder: Path, files: list[str], rng: random.Random) -> Mutation:
    """A file becomes another, or a link; a folder takes another's name, or is a link to outside; something is added."""
    name, other = rng.choice(files), rng.choice(files)
    places = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir())
    place, second = rng.choice(places), rng.choice(places)
    kind = rng.choice(("swap", "link", "folder link", "folder swap", "added", "folder gone"))

    def apply(copy: Path) -> None:
        if kind == "swap":
            shutil.copy(copy / other, copy / "swap")
            (copy / "swap").replace(copy / name)
        elif kind == "link":
            linked(copy / name, copy)
        elif kind in ("folder link", "folder gone"):
            shutil.rmtree(copy / place)
            if kind == "folder link":
                (copy / place).symlink_to(outside_of(copy))
        elif kind == "folder swap":
            if place != second and not place.startswith(f"{second}/") and not second.startswith(f"{place}/"):
                (copy / place).rename(copy / "swap")
                (copy / second).rename(copy / place)
                (copy / "swap").rename(copy / second)
        else:
            added = rng.choice(
                ("adapter_config.json", "notes.txt", "model.py", ".hidden", "model.safetensors.index.json")
            )
            (copy / place / added).write_text("{}")

    return Mutation(
        f"{number} {kind} {name if kind in ('swap', 'link') else place} {other if kind == 'swap' else second}", apply
    )


def cache_mutations(seed: int, count: int) -> list[Mutation]:
    """So many mutations of a cache of tokenised data."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        own = random.Random(rng.random())
        kind = own.choice((*KINDS, "value", "link", "swap", "added", "folder link", "resealed"))
        foreign = kind in ("folder", "pipe", "added")

        def apply(folder: Path, own: random.Random = own, kind: str = kind) -> None:
            files = sorted(path for path in folder.iterdir() if path.is_file())
            path, other = own.choice(files), own.choice(files)
            if kind == "value":
                changed_json(folder / "meta.json", own)
            elif kind == "link":
                linked(path, folder)
            elif kind == "swap":
                shutil.copy(other, folder / "swap")
                (folder / "swap").replace(path)
            elif kind == "added":
                (folder / "notes.txt").write_text(MARK)
                path.write_bytes(b"")
            elif kind == "folder link":
                shutil.rmtree(folder)
                folder.symlink_to(outside_of(folder))
            elif kind == "resealed":
                content = json.loads((folder / "meta.json").read_text())
                del content["digest"]
                content["files"][f"../outside/{path.name}"] = content["files"].popitem()[1]
                (folder / "meta.json").write_text(json.dumps(content))
            else:
                damaged(path, kind, own)

        made.append(Mutation(f"{number} {kind}", apply, foreign))
    return made


def run_verdict(
    config: Mapping[str, Any], copy: Path, mutation: Mutation, right: Callable[[Path, str], bool], other: Path
) -> str:
    """What is wrong with how a run and a comparison take a mutation; "" where nothing is.

    Args:
        config: of the run; `copy` is its folder.
        copy: of a whole run's folder, not changed yet.
        mutation: the change.
        right: whether a final model has the weights that it should have, given what the run has said.
        other: folder of another run, to compare with.
    """
    from rankery import InputError, train
    from rankery.training.comparison import compare

    mutation.apply(copy)
    findings = []

    def checked(verb: str, does: Callable[[], object]) -> bool:
        try:
            does()
            return True
        except InputError as error:
            if any("\n" in problem or len(problem) > 1000 for problem in error.problems):
                findings.append(f"{verb}: no short line: {error!s:.200}")
        except OSError as error:
            if error.filename is None:
                findings.append(f"{verb}: an error that names no file: {error}")
        except Exception as error:
            findings.append(f"{verb}: {type(error).__name__}: {error!s:.200}")
        return False

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        checked("compare", lambda: compare([copy, other], copy.parent / "page.html"))
        resumed = checked("resume", lambda: train({**config, "output_dir": str(copy), "resume": True}))
        if resumed and not right(copy / "model", said.getvalue()):
            findings.append("resume: another model")
        if not resumed:
            checked("overwrite", lambda: train({**config, "output_dir": str(copy), "overwrite": True}))
    outside = copy.parent / "outside"
    if outside.exists() and [path.read_text() for path in sorted(outside.iterdir())] != [MARK]:
        findings.append("something outside was changed")
    return "; ".join(findings)
