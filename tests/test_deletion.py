"""Deleting stays inside: what a listing names elsewhere, or behind a link, is not touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankery.models.folders import files_in, regular_file, remove


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    for name in ("thesis.txt", "deep/notes.txt", "state.json", "rankery.json"):
        (folder / name).write_text(json.dumps({"files": ["thesis.txt", "deep/notes.txt", "deep"]}))
    return folder


@pytest.mark.parametrize("listing", ["rankery.json", "state.json"])
def test_a_listing_deletes_plain_names_of_regular_files_only(tmp_path: Path, precious: Path, listing: str) -> None:
    model = tmp_path / "model"
    (model / "templates").mkdir(parents=True)
    (model / "model.safetensors").write_text("ours")
    (model / "templates" / "rag.jinja").write_text("ours")
    (model / "own.txt").write_text("the user's")
    (model / "linked").symlink_to(precious)
    (model / "thesis.txt").symlink_to(precious / "thesis.txt")
    names = [
        "model.safetensors", "templates", "linked", "linked/thesis.txt", "linked/deep", "thesis.txt", "../elsewhere/thesis.txt",
        str(precious / "thesis.txt"), "templates/../../elsewhere/thesis.txt", "..", ".", "", "/", None, 3, ["own.txt"], "a\0b",
    ]  # fmt: skip
    (model / listing).write_text(json.dumps({"files": names}))
    before = {name: (precious / name).read_text() for name in files_in(precious)}
    remove(model)
    assert {name: (precious / name).read_text() for name in files_in(precious)} == before
    assert sorted(path.name for path in model.iterdir()) == ["linked", "own.txt", "thesis.txt"]
    assert (model / "own.txt").read_text() == "the user's"
    assert not list(tmp_path.glob(".old-*"))


@pytest.mark.parametrize("where", ["the folder itself", "its model"])
def test_folders_that_are_links_are_not_emptied(tmp_path: Path, precious: Path, where: str) -> None:
    before = files_in(precious)
    checkpoint = tmp_path / "checkpoint_3"
    if where == "its model":
        checkpoint.mkdir()
        (checkpoint / "state.json").write_text(json.dumps({"files": ["model/thesis.txt", "model/deep"]}))
        (checkpoint / "model").symlink_to(precious)
    else:
        checkpoint.symlink_to(precious)
    remove(checkpoint)
    assert files_in(precious) == before


@pytest.mark.parametrize("name", ["..", "../x", "/etc/passwd", "a//b", "./a", "", None, 7, "a\0", "gone", "folder"])
def test_names_that_stand_for_no_file(tmp_path: Path, name: object) -> None:
    (tmp_path / "folder").mkdir()
    assert regular_file(tmp_path / "folder", name) is None
    (tmp_path / "folder" / "a").write_text("")
    assert regular_file(tmp_path / "folder", "a") == tmp_path / "folder" / "a"
