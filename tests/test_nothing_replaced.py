"""No verb replaces in silence what a user has made: each refuses a file or folder that is there, and leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_bert, write_rows

import rankery
from rankery import CrossEncoder, InputError
from rankery.cli import main

MINE = "mine"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Data, and a model that rankery has saved."""
    folder = tmp_path_factory.mktemp("given")
    data = write_rows(folder / "data.jsonl", [{"query": "moon", "pos": ["moon sea"], "neg": ["sea", "sun"]}])
    base = make_bert(folder / "base")
    CrossEncoder.from_pretrained(base, max_len=32).save_pretrained(folder / "model")
    return {"data": str(data), "base": str(base), "model": str(folder / "model")}


EVALUATE = ["evaluate", "--baseline", "random", "--data", "{data}", "--output", "{out}"]
# Words of the command, what lies in {out}, what is said.
CASES: dict[str, tuple[list[str], str, str]] = {
    "train": (
        ["train", "model_name_or_path={base}", "train_dataset={data}", "output_dir={out}"], "notes.txt", "is not empty",
    ),
    "train overwrite": (
        ["train", "model_name_or_path={base}", "train_dataset={data}", "output_dir={out}", "overwrite=true"],
        "metrics.jsonl",
        "holds metrics.jsonl, written by something else",
    ),
    "distil": (
        ["distil", "--teacher", "{model}", "--student", "{base}", "--data", "{data}", "--val", "{data}", "--output", "{out}", "max_len=32"],
        "comparison.json",
        "which is not empty",
    ),
    "score": (["score", "--model", "{model}", "--data", "{data}", "--output", "{out}/file"], "file", "is there already"),
    "mine": (["mine", "--data", "{data}", "--output", "{out}/file"], "file", "is there already"),
    "check --fix": (["check", "{data}", "--fix", "{out}/file"], "file", "is there already"),
    "check --json": (["check", "{data}", "--json", "{out}/file"], "file", "is there already"),
    "check --html": (["check", "{data}", "--html", "{out}/file"], "file", "is there already"),
    "calibrate": (["calibrate", "--model", "{model}", "--data", "{data}", "--html", "{out}/file"], "file", "is there already"),
    "compare": (["compare", "{out}", "{out}", "--output", "{out}/file"], "file", "is there already"),
    "export": (["export", "--model", "{model}", "--to", "seq-cls", "--output", "{out}"], "notes.txt", "is there already"),
    "demo": (["demo", "--output", "{out}"], "notes.txt", "holds something else"),
    "demo overwrite": (["demo", "--output", "{out}", "--overwrite"], "notes.txt", "holds something else"),
    **{
        f"evaluate {name}": (EVALUATE, name, f"{name}, which no evaluation wrote there")
        for name in ("metrics.json", "queries.csv", "report.html", "qrels.trec", "run.trec", "evaluation.json")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_verb_refuses(case: str, given: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words, name, said = CASES[case]
    file = tmp_path / "out" / name
    file.parent.mkdir()
    file.write_text(MINE)
    assert main([word.format(**given, out=file.parent) for word in words]) == 2
    assert said in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in file.parent.iterdir()] == [(name, MINE)]


def test_an_evaluation_replaces_its_own(given: dict[str, str], tmp_path: Path) -> None:
    """Again without a word; beside what is somebody else's, and over it where that is wanted; what an older rankery wrote too."""

    def evaluate(*baselines: str, overwrite: bool = False) -> None:
        rankery.evaluate(baselines=baselines, data=given["data"], output=tmp_path / "out", overwrite=overwrite)

    evaluate("random")
    evaluate("random")
    (tmp_path / "out" / "runs").mkdir()
    other = tmp_path / "out" / "runs" / "BM25.trec"
    other.write_text(MINE)
    with pytest.raises(InputError, match=r"would replace \S+BM25.trec, which no evaluation wrote there"):
        evaluate("random", "bm25")
    assert other.read_text() == MINE
    evaluate("random", "bm25", overwrite=True)
    assert other.read_text() != MINE
    (tmp_path / "out" / "evaluation.json").unlink()
    evaluate("random", "bm25")


def test_an_exported_model_is_another_ones(given: dict[str, str], tmp_path: Path) -> None:
    """A model that rankery has saved is not replaced either, unless told."""
    words = ["export", "--model", given["model"], "--to", "seq-cls", "--output"]
    CrossEncoder.from_pretrained(given["model"]).save_pretrained(tmp_path / "mine")
    before = (tmp_path / "mine" / "model.safetensors").stat().st_mtime_ns
    assert main([*words, str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "model.safetensors").stat().st_mtime_ns == before
