"""The command line: what evaluate, rerank and demo print and write, and what they say of bad input."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from conftest import make_bert, run_python, spoil, write_rows

from rankery import demo, demo_data, train
from rankery.cli import main


@pytest.fixture
def model(config: dict, capsys: pytest.CaptureFixture) -> str:
    folder = str(train(config, epochs=1))
    capsys.readouterr()
    return folder


def test_evaluate_writes_what_other_tools_read(
    config: dict, model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import ir_measures
    from ir_measures import AP, RR, nDCG

    out = tmp_path / "evaluation"
    assert main(["evaluate", "--model", model, "--data", config["val_dataset"], "--output", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    qrels = ir_measures.read_trec_qrels(str(out / "qrels.trec"))
    found = ir_measures.calc_aggregate(
        [nDCG @ 10, RR @ 10, AP], qrels, ir_measures.read_trec_run(str(out / "run.trec"))
    )
    ours = [metrics[name] for name in ("nDCG@10", "MRR@10", "MAP")]
    assert ours == pytest.approx([found[nDCG @ 10], found[RR @ 10], found[AP]], abs=1e-9)
    table = capsys.readouterr().out
    assert all(name in table for name in metrics)


def test_evaluate_takes_the_models_own_label_range(config: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Labels 1 to 3: 1 is not relevant, though it is above 0."""
    rows = [{"query": f"sun {i}", "pos": ["sun sun", "sea", "hill"], "pos_scores": [3, 1, 1]} for i in range(6)]
    data = str(write_rows(tmp_path / "graded.jsonl", rows))
    folder = str(train(config, train_dataset=data, val_dataset=None, min_label=1, max_label=3, epochs=1))
    for words, least in (([], 0), (["--relevant-above", "0.5"], 1)):
        main(["evaluate", "--model", folder, "--data", data, "--output", str(tmp_path / "e"), *words])
        recall = json.loads((tmp_path / "e" / "metrics.json").read_text())["MAP"]
        assert (recall == 1) >= bool(least)
    capsys.readouterr()


def test_rerank_files(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"id": 7, "query": "sun", "documents": ["sea", "sun sun"]}])
    target = tmp_path / "new" / "r.jsonl"
    assert main(["rerank", "--model", model, "--input", str(source), "--output", str(target), "--normalize"]) == 0
    (row,) = map(json.loads, target.read_text().splitlines())
    scores = [entry["score"] for entry in row["ranking"]]
    assert row["id"] == 7
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)


def test_rerank_reads_gzip_and_writes_utf8(model: str, tmp_path: Path) -> None:
    """Under an ASCII terminal, and with half a character in a key that is kept."""
    source = tmp_path / "q.jsonl.gz"
    rows = [{"query": "月亮", "documents": ["sea", "太阳"]}, {"id": "\ud800", "query": "sun", "documents": ["sea"]}]
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    code = "import sys; from rankery.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["rerank", "--model", model, "--input", str(source)]
    done = run_python(f"import sys; sys.stdout.reconfigure(encoding='ascii')\n{code}", *words)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["query"] for row in found] == ["月亮", "sun"]
    assert {entry["document"] for entry in found[0]["ranking"]} == {"sea", "太阳"}
    assert "太阳" in done.stdout
    assert found[1]["id"] == "\ud800"
    source.write_bytes(source.read_bytes()[:-12])
    done = run_python(code, *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "q.jsonl.gz: cannot be read: Compressed file ended" in done.stderr


def test_rerank_writes_no_score_that_is_no_number(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spoil(Path(model), "snow")
    rows = [{"query": "sun", "documents": ["sea"]}, {"query": "moon", "documents": ["snow", "sea"]}]
    source, target = write_rows(tmp_path / "q.jsonl", rows), tmp_path / "r.jsonl"
    assert main(["rerank", "--model", model, "--input", str(source), "--output", str(target)]) == 2
    said = "q.jsonl:2: 1 of 2 scores of the model are not finite, the first at pair 0, query 'moon', document 'snow'"
    assert said in capsys.readouterr().err
    assert not target.exists(), "half a result looks like a short one"


def test_rerank_packs_what_ends_in_gz(model: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"query": "sun", "documents": ["sea", "sun"]}] * 2)
    for name in ("r.jsonl", "r.jsonl.gz"):
        assert main(["rerank", "--model", model, "--input", str(source), "--output", str(tmp_path / name)]) == 0
    assert gzip.decompress((tmp_path / "r.jsonl.gz").read_bytes()) == (tmp_path / "r.jsonl").read_bytes()


@pytest.mark.parametrize("words", [["evaluate", "--proc", "2"], ["evaluate", "--mod", "x"]])
def test_options_have_their_whole_names(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert f"unrecognized arguments: {words[1]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", 'q.jsonl:1: "query" is missing; expected {"query": a string'),
        (b"x", "q.jsonl:1: is not JSON"),
        (b"\xff", "q.jsonl:1: is not UTF-8"),
        (b"[]", "q.jsonl:1: is a list; expected"),
        (b'{"query": "\\ud800", "documents": ["a"]}', 'q.jsonl:1: "query" is a string with a lone surrogate'),
        (b'{"query": "a", "documents": "b"}', "q.jsonl:1: \"documents\" is the string 'b'; expected"),
        (b'{"query": "a", "documents": ["b", 3]}', 'q.jsonl:1: "documents"[1] is a number; expected'),
    ],
)
def test_rerank_of_bad_lines(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture, line: bytes, message: str
) -> None:
    (tmp_path / "q.jsonl").write_bytes(line + b"\n")
    assert main(["rerank", "--model", model, "--input", str(tmp_path / "q.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_places_that_cannot_be_written(config: dict, model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = write_rows(tmp_path / "q.jsonl", [{"query": "sun", "documents": ["sea"]}])
    for words in (
        ["rerank", "--model", model, "--input", str(source), "--output", str(source)],
        ["rerank", "--model", model, "--input", str(source), "--output", str(source / "below")],
        ["evaluate", "--model", model, "--data", config["val_dataset"], "--output", str(source / "below")],
    ):
        assert main(words) == 2
        assert "output is" in capsys.readouterr().err
    assert source.read_text()


def test_what_the_system_refuses_is_one_line(config: dict, model: str, tmp_path: Path) -> None:
    """Standard output without room, a result that cannot be written, data that cannot be read."""
    source = write_rows(tmp_path / "q.jsonl", [{"query": "sun", "documents": ["sea"]}])
    code = "import sys; from rankery.cli import main; sys.exit(main(sys.argv[1:]))"
    full = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n" + code
    evaluate = ["evaluate", "--model", model, "--data", config["val_dataset"]]
    no_memory = [f"{key}={value}" for key, value in {**config, "train_dataset": "/proc/self/mem"}.items()]
    for program, words, status, message in (
        (full, ["rerank", "--model", model, "--input", str(source)], 1, "No space left on device"),
        (full, evaluate, 1, "No space left on device"),
        (code, ["rerank", "--model", model, "--input", str(source), "--output", "/dev/full"], 1, "No space left"),
        (code, ["train", *no_memory, "overwrite=true"], 2, "/proc/self/mem: cannot be read: [Errno 5]"),
    ):
        done = run_python(program, *words)
        assert done.returncode == status, done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line


def test_results_that_are_folders_are_said_before_scoring(
    config: dict, model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "e" / "qrels.trec").mkdir(parents=True)
    words = ["--model", model, "--data", config["val_dataset"], "--output", str(tmp_path / "e")]
    assert main(["evaluate", *words]) == 2
    assert "qrels.trec, which cannot be written" in capsys.readouterr().err
    assert not (tmp_path / "e" / "metrics.json").exists()


def test_the_folder_of_a_training_is_no_model(config: dict, model: str, capsys: pytest.CaptureFixture) -> None:
    run, source = str(Path(model).parent), config["val_dataset"]
    for words in (["evaluate", "--data", source], ["calibrate", "--data", source], ["rerank", "--input", source]):
        assert main([*words, "--model", run]) == 2
        assert capsys.readouterr().err == (
            f"error: {run}: is the folder of a training; expected that of its model, {run}/model\n"
        )


def test_numbers_out_of_range(model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = str(write_rows(tmp_path / "q.jsonl", [{"query": "sun", "documents": ["sea"]}]))
    for words, message in (
        (["--batch-size", "-1"], "batch_size is -1"),
        (["--top-k", "-1"], "top_k is -1"),
        (["--device", "gpu"], "device is 'gpu'; expected cpu"),
    ):
        assert main(["rerank", "--model", model, "--input", source, *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--relevant-above", "--min-label"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_evaluate_wants_finite_labels(option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Said before the model is opened, which is not there."""
    words = ["evaluate", "--model", "./nowhere", "--data", "example_data/binary.jsonl", "--output", str(tmp_path / "e")]
    assert main([*words, option, value]) == 2
    assert f"{option[2:].replace('-', '_')} is {value}; expected a finite number" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_overrides_may_stand_anywhere(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1e-5\n")
    assert main(["train", "lr=x", "--config", str(file), "--epochs=y", "query_format={}"]) == 2
    said = capsys.readouterr().err
    assert "lr is 'x'" in said
    assert "epochs is 'y'" in said
    assert "query_format" not in said


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    base = make_bert(tmp_path / "base", max_position_embeddings=256)
    sizes = {"train_queries": 24, "dev_queries": 6, "test_queries": 8, "test_candidates": 6}
    monkeypatch.setattr(demo, "base_model_path", lambda: base)
    monkeypatch.setattr(demo, "build", lambda folder, model: demo_data.build(folder, model, **sizes))
    assert main(["demo", "--output", str(tmp_path / "out")]) == 0
    model = tmp_path / "out" / "run" / "model"
    mine = (model / "README.md").stat().st_mtime_ns
    assert main(["demo", "--output", str(tmp_path / "out")]) == 2
    assert f"holds a finished demo, with its model in {model}; --overwrite" in capsys.readouterr().err
    assert (model / "README.md").stat().st_mtime_ns == mine
    assert main(["demo", "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    text = capsys.readouterr().out
    names = ("random order", "BM25", "base model's cosine", "fine-tuned", "gain over the best other")
    found = [re.findall(rf"^{name} +(.+)$", text, re.MULTILINE)[-1].split() for name in names]
    *others, tuned, gain = [[float(value) for value in row] for row in found]
    best = [max(column) for column in zip(*others, strict=True)]
    assert gain == pytest.approx([t - b for t, b in zip(tuned, best, strict=True)], abs=2e-4)
    assert f"everything lies in {tmp_path / 'out'}/" in text
    lines = text.split("Use it:")[-1].strip().splitlines()
    assert len(lines) == 3
    done = run_python("\n".join(map(str.strip, lines)))
    assert "RankedDocument" in done.stdout, done.stderr
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data" / "train.jsonl").write_text("mine")
    assert main(["demo", "--output", str(project)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (project / "data" / "train.jsonl").read_text() == "mine"
