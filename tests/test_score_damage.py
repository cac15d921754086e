"""What `rankery score` and `distil` read back: damaged blocks and stored scores are made again, damaged results never delivered."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import make_data

from rankery import CrossEncoder, InputError
from rankery.distilling import store as store_module
from rankery.distilling import teacher as teacher_module
from rankery.distilling.compare import distil
from rankery.distilling.parts import Parts
from rankery.distilling.store import Store, pair_key
from rankery.distilling.teacher import Teacher, score_file
from rankery.locks import FolderLock


@pytest.fixture(scope="module")
def teacher(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    CrossEncoder.from_pretrained(bert, seed=0).save_pretrained(folder)
    return Teacher(CrossEncoder.from_pretrained(folder), name=str(folder))


@pytest.fixture
def half(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[], bytes], Path, bytes, list]:
    """(goes on with a run that was killed before it put the output together, its parts, the whole output, blocks scored)."""
    monkeypatch.setattr(teacher_module, "BLOCK_PAIRS", 4)
    data, out, scored = make_data(tmp_path / "data.jsonl", 3), tmp_path / "out.jsonl", []
    whole = score_file([teacher], [data], tmp_path / "whole.jsonl").read_bytes()
    original, assemble = teacher_module.block_logits, teacher_module._assemble
    monkeypatch.setattr(teacher_module, "block_logits", lambda *given: scored.append(1) or original(*given))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teacher_module, "_assemble", stopped)
    with pytest.raises(KeyboardInterrupt):
        score_file([teacher], [data], out)
    monkeypatch.setattr(teacher_module, "_assemble", assemble)
    scored.clear()
    return lambda: score_file([teacher], [data], out).read_bytes(), tmp_path / "out.jsonl.parts", whole, scored


def nan_block(path: Path) -> None:
    Parts(path.parent.with_suffix(""), {}).write(int(path.stem), np.full(4, np.nan, dtype=np.float32))


BLOCKS: dict[str, Callable[[Path], object]] = {
    "as it was": lambda path: None,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 4),
    "empty": lambda path: os.truncate(path, 0),
    "8 bytes": lambda path: path.write_bytes(b"\0" * 8),
    "of an older rankery": lambda path: os.truncate(path, path.stat().st_size - 16),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "no number": nan_block,
    "another block": lambda path: path.write_bytes(path.with_name("00000002.f32").read_bytes()),
    "fewer pairs": lambda path: Parts(path.parent.with_suffix(""), {}).write(1, np.zeros(3, dtype=np.float32)),
}


@pytest.mark.parametrize("damage", BLOCKS)
def test_a_damaged_block_is_scored_again(half: tuple, damage: str) -> None:
    goes_on, parts, whole, scored = half
    BLOCKS[damage](parts / "00000001.f32")
    assert goes_on() == whole
    assert len(scored) == (damage != "as it was")
    assert not parts.exists()


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_block_is_an_error_and_no_wait(half: tuple, kind: str) -> None:
    goes_on, parts, _, _ = half
    block = parts / "00000001.f32"
    block.rename(parts.parent / "moved")
    {
        "folder": block.mkdir,
        "link": lambda: block.symlink_to(parts.parent / "moved"),
        "pipe": lambda: os.mkfifo(block),
    }[kind]()
    with pytest.raises(InputError, match=r"00000001.f32: is in the way, and no file; move it"):
        goes_on()


@pytest.mark.parametrize("where", ["parts", "output"])
def test_a_damaged_output_is_not_delivered(half: tuple, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Killed with the output put together, or in its place with the folder still there."""
    goes_on, parts, whole, _ = half
    out = parts.with_suffix("")

    def killed(self: Parts) -> None:
        if where == "output":
            self.whole.replace(self.output)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "deliver", killed)
        with pytest.raises(KeyboardInterrupt):
            goes_on()
    file = out if where == "output" else parts / "whole.jsonl"
    assert file.read_bytes() == whole
    file.write_bytes(whole[:-20])
    if where == "output":  # for all that is known, somebody's own
        with pytest.raises(InputError, match="there already"):
            goes_on()
        file.unlink()
    assert goes_on() == whole


def test_two_scorings_of_one_output(half: tuple) -> None:
    goes_on, parts, whole, _ = half
    with FolderLock(parts) as lock:
        lock.take()
        with pytest.raises(InputError, match=rf"{parts}: is in use by process {os.getpid()} on"):
            goes_on()
    assert goes_on() == whole


STORED: dict[str, Callable[[bytes], object]] = {
    "cut short": lambda value: value[:-1],
    "8 bytes more": lambda value: value + b"\0" * 8,
    "one bit": lambda value: bytes([value[0] ^ 1]) + value[1:],
    "no number": lambda value: np.array([np.nan], dtype="<f4").tobytes(),
    "text": lambda value: "x",
    "empty": lambda value: b"",
}


@pytest.mark.parametrize("damage", STORED)
def test_a_damaged_stored_score_is_made_again(tmp_path: Path, damage: str) -> None:
    file, keys = tmp_path / "store", [pair_key("t", "q", str(i)) for i in range(3)]
    values = np.array([[1.5], [-2.0], [3.0]], dtype=np.float32)
    with Store(file) as store:
        store.add(keys, values)
    database = sqlite3.connect(file)
    (value,) = database.execute("SELECT logits FROM scores WHERE key = ?", [keys[1]]).fetchone()
    database.execute("UPDATE scores SET logits = ? WHERE key = ?", [STORED[damage](value), keys[1]])
    database.commit()
    database.close()
    with Store(file) as store:
        assert sorted(store.find(keys)) == sorted([keys[0], keys[2]])
        store.add(keys[1:2], values[1:2])
        assert [store.find(keys)[key].tolist() for key in keys] == values.tolist()


def test_scores_that_an_older_rankery_kept(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        store.database.execute("INSERT INTO scores VALUES (?, ?)", [b"k", np.array([1, 2], dtype="<f4").tobytes()])
        assert store.find([b"k"], 2)[b"k"].tolist() == [1, 2]


def test_a_locked_or_broken_store_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WAIT_S", 0.1)
    file = tmp_path / "store"
    with Store(file) as store:
        other = sqlite3.connect(file)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(
            InputError, match=r"another program has held it for 0.1 s: end that, or choose another file"
        ):
            store.find([b"k"])
        with pytest.raises(InputError, match="another program has held it"):
            store.add([b"k"], np.zeros((1, 1)))
        other.rollback()
        store.add([b"k"], np.zeros((1, 1)))
        other.close()
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * len(content[4096:])
    file.write_bytes(content)
    with Store(file) as store, pytest.raises(InputError, match=r"scores could not be read: .*; choose another file"):
        store.find([b"k"])


def test_scores_of_a_distillation_that_changed(config: dict, teacher: Teacher, tmp_path: Path) -> None:
    words = (
        teacher.name,
        config["model_name_or_path"],
        config["train_dataset"],
        config["val_dataset"],
        tmp_path / "distil",
    )
    settings = {"max_len": 48, "lr": 1e-3, "epochs": 1, "log_with": "none", "batch_size": 4}
    distil(*words, overrides=settings)
    out = tmp_path / "distil"
    assert not list(out.rglob(".lock"))
    mark = json.loads((out / "distil.json").read_text())
    assert {"scored", "digest"} <= mark.keys()
    scores = (out / "teacher_scores.jsonl").read_text()
    (out / "teacher_scores.jsonl").write_text(scores.replace("0.", "1.", 1))
    with pytest.raises(
        InputError, match=r"teacher_scores.jsonl: has changed since it was written; bring it back, or delete"
    ):
        distil(*words, overrides=settings)
    (out / "teacher_scores.jsonl").write_text(scores)
    (out / "distil.json").write_text(json.dumps({**mark, "scored": None}))
    with pytest.raises(InputError, match=r"distil.json: is not what rankery writes there \(it changed since"):
        distil(*words, overrides=settings)
    with FolderLock(out) as lock:
        lock.take()
        with pytest.raises(InputError, match="is in use by process"):
            distil(*words, overrides=settings)
