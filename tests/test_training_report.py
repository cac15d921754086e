"""The page of a training, timings beside metrics, and trainings side by side."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import make_data, write_rows

from rankery import InputError, train
from rankery.cli import main
from rankery.data.records import read_records
from rankery.evaluation.baselines import bm25_scores
from rankery.evaluation.metrics import ranking_metrics
from rankery.evaluation.runs import pairs_of
from rankery.sealed import read_sealed, sealed
from rankery.training import report, tracking
from rankery.training.comparison import compare, read_histories
from rankery.training.history import merged, read_history
from rankery.training.output import RunFile


class Tables(HTMLParser):
    """The tables of a page, by caption, as lists of rows of texts; and the names of its charts."""

    def __init__(self, page: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.charts: list[str] = []
        self.into: list[str] = []
        self.caption = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag == "caption":
            self.caption = ""
        if tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        if tag in ("th", "td"):
            self.tables[self.caption][-1].append("")
        if tag == "svg" and "aria-label" in dict(attributes):
            self.charts.append(dict(attributes)["aria-label"].split(". ")[0])
        self.into.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.into.pop()

    def handle_data(self, data: str) -> None:
        if "caption" in self.into:
            self.caption += data
        elif {"th", "td"} & set(self.into):
            self.tables[self.caption][-1][-1] += data


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


OWN_CHARTS = [
    "Loss", "Ranking of the validation data", "Learning rate", "Gradient norm before clipping", "Speed of training", "Padding",
    "Memory, the most so far",
]  # fmt: skip


def test_the_page_of_a_training(config: dict, capsys: pytest.CaptureFixture) -> None:
    folder = train(config, epochs=3, log_interval=2).parent
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    page = Tables((folder / "report.html").read_text())
    assert page.charts == OWN_CHARTS
    ((caption, table),) = ((name, rows) for name, rows in page.tables.items() if name.startswith("Validation metrics"))
    history = read_history(folder, "x")
    final, before = history.final(), history.evaluations()[0]
    best = max(history.evaluations()[1:], key=lambda row: row["val/nDCG@10"])
    assert caption.endswith(f"the model is of step {best['step']}")
    records = list(read_records([config["val_dataset"]]))
    bm25 = ranking_metrics(pairs_of(records), bm25_scores(records), seed=1)
    head, *systems = table
    assert [row[0] for row in systems] == ["BM25", "before training", "trained model"]
    for name, *values in zip(*table, strict=True):
        if name in bm25:
            assert list(values) == [f"{bm25[name]:.4f}", f"{before[f'val/{name}']:.4f}", f"{final[name]:.4f}"]
    assert "nDCG@10" in head
    chosen = dict(page.tables["Set for this run"][1:])
    assert (chosen["lr"], chosen["epochs"]) == ("0.001", "3")
    assert not {"resume", "overwrite"} & (chosen.keys() | dict(page.tables["As by default"][1:]).keys())


def test_a_training_without_validation_has_its_page(config: dict) -> None:
    folder = train(config, val_dataset=None, epochs=1, log_interval=100).parent  # one logged step: the last
    page = (folder / "report.html").read_text()
    assert Tables(page).charts == [name for name in OWN_CHARTS if "validation" not in name]
    assert "Without val_dataset nobody has measured" in page


def test_timings_have_what_the_clock_decides(config: dict) -> None:
    folder = train(config, packing="off", log_interval=2).parent
    timings, metrics = rows(folder / "timings.jsonl"), rows(folder / "metrics.jsonl")
    assert [row["step"] for row in timings] == [row["step"] for row in metrics if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert all(set(row) == {"step", "pairs_per_second", "padding", "memory_mb"} for row in timings)
    assert all(0 < row["padding"] < 1 and row["pairs_per_second"] > 0 and row["memory_mb"] > 50 for row in timings)
    assert not {"pairs_per_second", "padding", "memory_mb"} & set().union(*metrics)
    packed = train(config, output_dir=str(folder.with_name("packed"))).parent
    assert {row["padding"] for row in rows(packed / "timings.jsonl")} == {0.0}


def test_a_resumed_run_has_each_step_once(config: dict) -> None:
    config["best_metric"] = None  # the best model of a finished run is gone: the last is kept both times
    folder = train(config).parent
    page = Tables((folder / "report.html").read_text())
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint_12")
    kept = (folder / "timings.jsonl").read_text().splitlines()[:6]
    with (folder / "timings.jsonl").open("a") as file:
        file.write('{"step": 13, "pairs_per')  # killed within a line
    train(config, resume=True)
    assert [row["step"] for row in rows(folder / "timings.jsonl")] == list(range(1, 13))
    assert (folder / "timings.jsonl").read_text().splitlines()[:6] == kept
    again = Tables((folder / "report.html").read_text())
    assert [name for name in again.tables if "model is of step" in name] == [
        n for n in page.tables if "model is of step" in n
    ]
    train(config, overwrite=True, epochs=1)
    assert [row["step"] for row in rows(folder / "timings.jsonl")] == list(range(1, 7))


def test_padding_is_what_was_computed_for_nothing(config: dict, tmp_path: Path) -> None:
    """Two pairs of a step, of 7 and 5 tokens with their special ones, in one padded batch: 2 of 14."""
    data = write_rows(tmp_path / "two.jsonl", [{"query": "sun", "pos": ["sea hill sand"], "neg": ["sea"]}])
    folder = train(config, train_dataset=str(data), val_dataset=None, packing="off", batch_size=2, epochs=1).parent
    (row,) = rows(folder / "timings.jsonl")
    assert row["padding"] == pytest.approx(2 / 14)


def test_a_failed_report_fails_nothing(
    config: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*arguments: object) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr(report, "report_page", broken)
    folder = train(config, epochs=1)
    assert folder.is_dir()
    said = capsys.readouterr().out
    assert "note: report.html could not be written (RuntimeError: no page today); the model is not affected" in said
    monkeypatch.undo()
    (folder.parent / "report.html").mkdir()  # what cannot be replaced
    assert train(config, epochs=1, resume=True) == folder
    assert "note: report.html could not be written" in capsys.readouterr().out
    (folder.parent / "report.html").rmdir()
    train(config, epochs=1, resume=True)
    assert (folder.parent / "report.html").is_file()
    assert not list(folder.parent.glob(".tmp-*"))


def test_a_report_of_somebody_else_is_left(config: dict) -> None:
    folder = Path(config["output_dir"])
    folder.mkdir()
    (folder / "report.html").write_text("mine")
    with pytest.raises(InputError, match=r"holds report.html, written by something else"):
        train(config, overwrite=True)
    assert (folder / "report.html").read_text() == "mine"


@pytest.fixture
def runs(config: dict, tmp_path: Path) -> list[Path]:
    settings = [{"lr": 1e-3}, {"lr": 3e-3, "hidden_dropout": 0.2, "best_metric": ""}]
    return [train(config, output_dir=str(tmp_path / f"run{i}"), **changes).parent for i, changes in enumerate(settings)]


def test_two_trainings_side_by_side(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    page = tmp_path / "new" / "page.html"
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    differs, results = (part.splitlines() for part in said.strip().split("\n\n"))
    assert [line.split() for line in differs] == [
        ["differs", "run0", "run1"],
        ["hidden_dropout", "-", "0.2"],
        ["lr", "0.001", "0.003"],
        ["best_metric", "auto", "-"],
    ]
    table = [line.split() for line in results]
    assert table[0][:5] == ["run", "steps", "loss", "nDCG@10", "MRR@10"]
    last = [row for row in rows(runs[1] / "metrics.jsonl") if "val/loss" in row][-1]
    best = max(
        (r for r in rows(runs[0] / "metrics.jsonl") if "val/loss" in r and r["step"]), key=lambda r: r["val/nDCG@10"]
    )
    assert table[1][:4] == ["run0", "12", f"{best['val/loss']:.4f}", f"{best['val/nDCG@10']:.4f}"]
    assert table[2][:4] == ["run1", "12", f"{last['val/loss']:.4f}", f"{last['val/nDCG@10']:.4f}"]
    found = Tables(page.read_text())
    assert found.charts[:4] == ["Training loss", "Validation loss", "nDCG@10", "MRR@10"]
    assert found.charts[-3:] == ["Speed of training", "Padding", "Memory, the most so far"]
    assert page.read_text().count("<polyline") == 4 * len(found.charts)  # two lines, and their legends
    assert found.tables["Keys that differ"][1:] == [line.split() for line in differs[1:]]
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 2
    assert "is there already; --overwrite" in capsys.readouterr().err
    assert main(["compare", *map(str, runs), "--output", str(page), "--overwrite"]) == 0


def test_runs_that_go_on_and_runs_of_other_data(runs: list[Path], config: dict, tmp_path: Path) -> None:
    shutil.rmtree(runs[1] / "model")
    (runs[1] / "timings.jsonl").unlink()  # of a rankery that did not write it
    other = train(
        config, output_dir=str(tmp_path / "other"), val_dataset=str(make_data(tmp_path / "v.jsonl", 5, offset=9))
    )
    said = compare([*runs, other.parent])
    assert "the runs were validated on different data: their metrics do not compare" in said
    assert "not finished: run1" in said
    assert "loss_type" not in said
    config_file = runs[0] / "run.json"
    content = read_sealed(config_file, RunFile)
    config_file.write_text(sealed({**content, "config": {**content["config"], "loss_type": "listwise_ce"}}))
    assert "the runs have different loss_type: their losses do not compare" in compare(runs)
    (line,) = (line.split() for line in said.splitlines() if line.startswith("run1 "))
    assert line[-3:] == ["-", "-", "-"]


def test_what_compare_refuses(runs: list[Path], tmp_path: Path) -> None:
    for named, problems in (
        ([runs[0]], ["1 run is named; expected two or more"]),
        ([runs[0], runs[0] / ".." / "run0"], ["is named twice"]),
        ([runs[0], runs[1] / "model", tmp_path / "none"], ["model: holds no run.json", "none: holds no run.json"]),
    ):
        with pytest.raises(InputError) as caught:
            compare(named, tmp_path / "page.html")
        assert len(caught.value.problems) == len(problems)
        assert all(text in problem for text, problem in zip(problems, caught.value.problems, strict=True))
    assert not (tmp_path / "page.html").exists()


def test_runs_of_one_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "again" / "run0")
    names = [history.name for history in read_histories([runs[0], tmp_path / "again" / "run0"])]
    assert names == [str(runs[0]), str(tmp_path / "again" / "run0")]


def test_names_keep_their_order() -> None:
    assert merged([["a", "c"], ["a", "b", "c"], ["d"]]) == ["d", "a", "b", "c"]
    assert merged([]) == []


def test_memory_is_of_this_process() -> None:
    import psutil
    import torch

    now = psutil.Process().memory_info().rss / 2**20
    assert now * 0.9 < tracking.peak_memory_mb(torch.device("cpu"))
    assert re.fullmatch(r"\d+\.\d+", str(tracking.peak_memory_mb(torch.device("cpu"))))
