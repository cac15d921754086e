"""What chooses the best model, where a metric cannot vary; and models and judgements whose numbers say nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import make_data, write_rows
from test_metrics import make_pairs

import rankery
from rankery import InputError, train
from rankery.data.records import read_records
from rankery.distilling.measured import HeldOut, comparison, measure
from rankery.distilling.score import open_teachers
from rankery.distilling.students import STUDENTS
from rankery.evaluation.information import constant_value, judgements_note, orders_nothing, why_constant
from rankery.training.comparison import compare
from rankery.training.history import read_history


def one_each(path: Path) -> str:
    """Validation of one document a query, as many relevant as in the training: no order to judge, and something to learn."""
    rows = [json.loads(line) for line in make_data(path).read_text().splitlines()]
    pairs = [(row["query"], row["pos"] if i % 4 == 0 else row["neg"], int(i % 4 == 0)) for i, row in enumerate(rows)]
    return str(
        write_rows(path, [{"query": query, "content": texts[0], "label": label} for query, texts, label in pairs])
    )


@pytest.mark.parametrize(
    ("labels", "query", "metric", "value", "why"),
    [
        ([1, 0, 1], [0, 1, 2], "nDCG@10", 2 / 3, "every query has one document"),
        ([1, 1, 1, 1], [0, 0, 1, 1], "MAP", 1.0, "every document has a label above 0"),
        ([0, 0, 0, 0], [0, 0, 1, 1], "nDCG@10", 0.0, "no document has a label above 0"),
        ([1, 1, 0, 0], [0, 0, 1, 1], "MRR@10", 0.5, "no query has both relevant and other documents"),
        ([1, 0, 1, 0], [0, 0, 1, 1], "Recall@10", 1.0, "no query has enough documents"),
        ([1, 2, 1, 2], [0, 0, 1, 1], "nDCG@10", None, ""),  # graded: the order matters, though all are relevant
        ([1, 0, 0, 0], [0, 0, 1, 1], "nDCG@10", None, ""),
    ],
)
def test_metrics_that_no_order_changes(
    labels: list[float], query: list[int], metric: str, value: float | None, why: str
) -> None:
    pairs = make_pairs(labels, query=query)
    found = constant_value(pairs, metric, min_label=0)
    assert found == (value if value is None else pytest.approx(value))
    assert found is None or why in why_constant(pairs, 0)


@pytest.mark.parametrize(
    ("scores", "query", "expected"),
    [
        ([1.0, 1.0, 2.0, 2.0 + 1e-6], [0, 0, 1, 1], True),  # a score for each query
        ([1.0, 1.01, 2.0, 2.0], [0, 0, 1, 1], False),
        ([1.0, 2.0, 3.0], [0, 1, 2], False),  # one document a query: all pairs are looked at
        ([1.0, 1.0, 1.0], [0, 1, 2], True),
        ([1.0], [0], False),
        ([2.0, 5.0, 2.0, 5.0], [0, 1, 0, 1], True),  # apart in the file
    ],
)
def test_scores_that_order_nothing(scores: list[float], query: list[int], expected: bool) -> None:
    assert orders_nothing(np.array(scores), np.array(query)) is expected


def test_the_loss_chooses_where_the_metric_cannot(config: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It falls at every evaluation, and nDCG@10 stays: the best is the last, patience waits, and a resumption goes on so."""
    held_out = one_each(tmp_path / "one.jsonl")
    settings = {**config, "val_dataset": held_out, "epochs": 3, "lr": 3e-3, "patience": 1, "num_max_checkpoints": 3}
    folder = train(settings).parent
    said = capsys.readouterr().out
    assert "note: nDCG@10 is 0.2500 whatever the order of documents in" in said
    assert "every query has one document; give each its candidates; the best model is that of the least" in said
    assert "the best by loss, of step 18" in said
    assert "The model is better than what it started from" in said
    history = read_history(folder, "x")
    losses = [row["val/loss"] for row in history.evaluations()]
    assert losses == sorted(losses, reverse=True)
    assert len({row["val/nDCG@10"] for row in history.evaluations()}) == 1
    assert history.final()["loss"] == losses[-1]
    page = (folder / "report.html").read_text()
    assert "the model is of step 18" in page
    assert "nDCG@10 is 0.2500 whatever the order" in page
    weights = (folder / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "checkpoint_18")
    train(settings, resume=True)
    assert "the best by loss, of step 18" in capsys.readouterr().out
    assert (folder / "model" / "model.safetensors").read_bytes() == weights


def test_the_last_model_where_nothing_can_choose(config: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = {**config, "val_dataset": one_each(tmp_path / "one.jsonl"), "loss_type": "listwise_ce", "batch_size": 4}
    folder = train(settings, epochs=2, patience=1, best_metric="MAP").parent
    said = capsys.readouterr().out
    assert "MAP is 0.2500 whatever the order" in said
    assert "the last model is kept, and patience (1) stops nothing" in said
    assert "model (of the last step, 6)" in said
    assert "The validation data cannot say whether the model is better" in said
    assert read_history(folder, "x").final()["loss"] == 0.0
    assert json.loads((folder / "run.json").read_text())["chosen_by"] is None


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> tuple[Path, Path]:
    """(the model of a training that collapsed, its data), without validation data."""
    folder = tmp_path_factory.mktemp("collapsed")
    data = make_data(folder / "train.jsonl")
    model = train(
        {
            "model_name_or_path": str(bert), "max_len": 48, "train_dataset": str(data), "output_dir": str(folder / "out"),
            "lr": 0.5, "batch_size": 4, "epochs": 3, "log_with": "none", "seed": 1, "save_on_epoch_end": False,
        }
    )  # fmt: skip
    return model, data


def test_a_training_that_collapsed_says_so(collapsed: tuple[Path, Path]) -> None:
    model, _ = collapsed
    for file in (model / "README.md", model.parent / "report.html"):
        assert "The model orders NOTHING" in file.read_text(), file


def test_an_evaluation_says_that_a_model_orders_nothing(collapsed: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = collapsed
    found = rankery.evaluate(model, "bm25", data=data, output=tmp_path / "out")
    assert "model orders NOTHING" in str(found)
    assert "BM25 orders NOTHING" not in str(found)
    assert "model orders NOTHING" in (tmp_path / "out" / "report.html").read_text()
    run = tmp_path / "constant.trec"
    run.write_text("".join(f"q{i // 4} Q0 d{i} 1 0.5 x\n" for i in range(48)))
    assert "constant orders NOTHING" in str(rankery.evaluate(runs=run, data=data))


def test_validation_says_that_a_model_orders_nothing(config: dict, capsys: pytest.CaptureFixture) -> None:
    train(config, lr=0.5, batch_size=4, epochs=3, save_on_epoch_end=False)
    said = capsys.readouterr().out
    assert "note: the model orders nothing now" in said
    assert "The model orders NOTHING" in said.splitlines()[-2]


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([[1, 1], [1, 1]], {}, "every document has a label above 0 and is relevant; set min_label or relevant_above"),
        (
            [[1], [0]],
            {},
            "say nothing of any system, since every order of the documents is worth the same: every query has one",
        ),
        (
            [[1, 2], [2, 3]],
            {},
            "measures of relevant documents (RR, AP, R, P) say nothing of any system: every document",
        ),
        ([[1, 2], [2, 3]], {"relevant_above": 2}, ""),
        ([[1, 2], [2, 3]], {"min_label": 1}, ""),
        ([[1, 0], [1, 1], [1, 1]], {}, "only 1 of 3 queries have documents with different labels"),
        ([[0.5, 0.5], [0.1, 0.1]], {}, "no query has documents with different labels"),
    ],
)
def test_judgements_that_say_nothing(labels: list[list[float]], options: dict, said: str, tmp_path: Path) -> None:
    rows = [
        {"query": f"q{i}", "pos": [f"word {i} {j}" for j in range(len(row))], "pos_scores": row}
        for i, row in enumerate(labels)
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    text = str(rankery.evaluate(baselines="random", data=data, **options))
    assert said in text if said else "say nothing" not in text


def test_no_judged_document_is_relevant() -> None:
    none = np.zeros((1, 2), np.int64)
    note = judgements_note(np.full((1, 2), 3), none, none > 0, 0.0)
    assert note.endswith(
        "no document has a label above 0 and is relevant; set min_label or relevant_above, which is 0, or add relevant ones"
    )


def test_runs_of_one_name_and_different_data(config: dict, tmp_path: Path) -> None:
    """The validation file changed between two runs: they do not compare, whatever it is called; a copy of it does."""
    first = train(config, epochs=1, output_dir=str(tmp_path / "first")).parent
    copy = shutil.copy(config["val_dataset"], tmp_path / "copy.jsonl")
    second = train(config, epochs=1, output_dir=str(tmp_path / "second"), val_dataset=str(copy)).parent
    assert "validated on different data" not in compare([first, second])
    make_data(Path(config["val_dataset"]), 5, offset=70)
    third = train(config, epochs=1, output_dir=str(tmp_path / "third")).parent
    assert "the runs were validated on different data: their metrics do not compare" in compare([first, third])


def test_a_page_reads_no_file_that_has_changed(config: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation file changes while the model is trained: no number of BM25 on other data stands beside the model's."""
    from rankery.training import loop

    finish = loop._finish

    def changed(*arguments: object) -> Path:
        make_data(Path(config["val_dataset"]), 5, offset=70)
        return finish(*arguments)

    monkeypatch.setattr(loop, "_finish", changed)
    page = (train(config, epochs=1).parent / "report.html").read_text()
    assert "the files have changed since the start, so BM25 is not measured on them" in page
    assert ">BM25<" not in page


def test_a_teacher_that_orders_nothing(collapsed: tuple[Path, Path], bert: Path, tmp_path: Path) -> None:
    """Where a model judges for others: mining, the doubts of check, and the comparison of a distillation."""
    model, data = collapsed
    mined = rankery.mine(data, tmp_path / "mined.jsonl", teacher=str(model), negatives=1, ranks=(1, 5))
    assert "the teacher judged NOTHING" in str(mined)
    with pytest.warns(UserWarning, match="score_with gives all documents of a query"):
        rankery.check(data, score_with=str(model))
    flat = measure(open_teachers([model]), HeldOut(list(read_records([data])), 0.0, None))
    students = dict.fromkeys(STUDENTS.values(), flat)
    assert "student, distilled orders NOTHING" in comparison(students)
    with pytest.raises(
        InputError, match=r"nDCG@10 is 0\.2500 whatever the order of the documents, so no system could be better"
    ):
        rankery.distil(model, bert, data, one_each(tmp_path / "v.jsonl"), tmp_path / "out", overrides={"max_len": 48})
    assert not (tmp_path / "out").exists()
