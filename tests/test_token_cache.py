"""Caches of tokenised data: damage of any kind is found and made good, and a run that reads one is told, not killed."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_data
from mutations_run import cache_mutations
from transformers import AutoTokenizer

from rankery import InputError, train
from rankery.data import encoding, token_cache
from rankery.data.encoding import EncodedPairs, encode, is_cached, open_encoded
from rankery.data.records import LabelRange
from rankery.data.template import pair_template
from rankery.training import loop

LABELS = LabelRange(0.0, 1.0)


@pytest.fixture(scope="module")
def cached(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    home = tmp_path_factory.mktemp("cached")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    template, data = pair_template(tokenizer, 32), make_data(home / "data.jsonl")
    encode([data], tokenizer, template, LABELS, home / "cache")
    return home / "cache", tokenizer, template, data


def content(data: EncodedPairs) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in data.arrays.items()}


@pytest.mark.parametrize("mutation", cache_mutations(7, 40), ids=lambda mutation: mutation.name)
def test_a_damaged_cache_is_made_again(cached: tuple, tmp_path: Path, mutation) -> None:
    """And what else lies there stays."""
    whole, tokenizer, template, data = cached
    before = content(open_encoded(whole, template, LABELS, [data]))
    folder = Path(shutil.copytree(whole, tmp_path / "cache"))
    mutation.apply(folder)
    outside = tmp_path / "outside"
    with pytest.raises(InputError, match="tokenised data could not be written") if mutation.foreign else nullcontext():
        encode([data], tokenizer, template, LABELS, folder)
        assert content(open_encoded(folder, template, LABELS, [data])) == before
    if outside.exists():
        assert [path.read_text() for path in outside.iterdir()] == ["mine"]


def test_the_bytes_are_looked_at_once(cached: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(cached[0], tmp_path / "cache"))
    original, seen = token_cache._file_digest, []
    monkeypatch.setattr(token_cache, "_file_digest", lambda path: seen.append(path.name) or original(path))
    assert is_cached(folder)
    assert is_cached(folder)
    open_encoded(folder, cached[2], LABELS, [cached[3]])
    assert sorted(seen) == sorted(encoding.FILES)
    (folder / "label.bin").write_bytes((folder / "label.bin").read_bytes())  # another file, equal as it is
    assert is_cached(folder)
    assert len(seen) == 2 * len(encoding.FILES)


def test_a_cache_that_goes_while_it_is_read(cached: tuple, tmp_path: Path) -> None:
    """Deleted, it is read on; cut short, it is an error where memory maps would end the process."""
    _, _, template, data = cached
    deleted, cut = (Path(shutil.copytree(cached[0], tmp_path / name)) for name in ("deleted", "cut"))
    one, two = (open_encoded(folder, template, LABELS, [data]) for folder in (deleted, cut))
    token_cache.delete(deleted)
    assert not deleted.exists()
    np.testing.assert_array_equal(one.build(3)[0], two.build(3)[0])
    again = pickle.loads(pickle.dumps(two))  # as workers get it that are not forked
    np.testing.assert_array_equal(again.build(3)[0], two.build(3)[0])
    os.truncate(cut / "document_tokens.bin", 40)
    with pytest.raises(InputError, match=r"document_tokens.bin: was cut short while it was being read; start again"):
        two.build(47)


def test_a_run_whose_cache_is_cut_short_goes_on(config: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its newest checkpoint, with the tokens made again."""
    settings = {**config, "dataset_cache_dir": str(tmp_path / "cache"), "save_steps": 2, "val_dataset": None}
    original = loop.train_step

    def cutting(run, number, works):
        for path in tmp_path.glob("cache/*/document_tokens.bin") if number == 7 else ():
            os.truncate(path, 0)
        return original(run, number, works)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", cutting)
        with pytest.raises(
            InputError, match=r"document_tokens.bin: was cut short while it was being read; start again, with"
        ):
            train(settings)
    resumed = train(settings, resume=True)
    whole = train(settings, output_dir=str(tmp_path / "whole"))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_what_killed_tokenisations_leave_is_cleared(
    cached: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what another process is writing, what is too new to tell, nor what somebody else has put there."""
    _, tokenizer, template, data = cached
    names = {
        kind: tmp_path / f".{'0' * 31}{number}-abcdefgh"
        for number, kind in enumerate(("dead", "new", "held", "theirs"))
    }
    for kind, folder in names.items():
        folder.mkdir()
        (folder / ("thesis.txt" if kind == "theirs" else "label.bin")).write_text("")
        if kind != "new":
            os.utime(folder, (time.time() - 100, time.time() - 100))
    (tmp_path / ".mine").mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom rankery.locks import hold_folder\n"
        "held = hold_folder(Path(sys.argv[1])); print(held, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(names["held"])], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip().isdigit()
        encode([data], tokenizer, template, LABELS, tmp_path / ("a" * 32))
        kept = {names["new"].name, names["held"].name, names["theirs"].name, ".mine", "a" * 32}
        assert {path.name for path in tmp_path.iterdir()} == kept
        holder.kill()
    token_cache.clear_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept - {names["held"].name}
    assert (names["theirs"] / "thesis.txt").exists()


def test_a_full_disk_names_the_cache(cached: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer, template, data = cached

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding, "_write", full)
    with pytest.raises(
        InputError, match=rf"{tmp_path}/cache: tokenised data could not be written: .*No space.*; make room"
    ):
        encode([data], tokenizer, template, LABELS, tmp_path / "cache")
    assert not list(tmp_path.iterdir())
