"""Comparisons: the same numbers as ir-measures from the same files, tests that agree with scipy's, files, page, and bad input."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from browser import visit
from conftest import SHARED, run_python, spoil, write_rows
from scipy import stats

import rankery
from rankery import CrossEncoder, train
from rankery.cli import main
from rankery.data.records import LabelRange, read_records
from rankery.errors import InputError
from rankery.evaluation import measures as measures_module
from rankery.evaluation.inputs import Texts, of_records
from rankery.evaluation.measures import Measured, measure_runs, wanted
from rankery.evaluation.output import run_files
from rankery.evaluation.report import probabilities
from rankery.evaluation.significance import bootstrap_intervals, holm, randomisation_p
from rankery.evaluation.slices import dimensions_of, slices
from rankery.evaluation.systems import System, names_of, score_system
from rankery.evaluation.trec import TextFile, TrecFile
from rankery.models.calibration import Calibration, write_calibration
from rankery.processes import Group

MEASURES = [
    "nDCG@10",
    "nDCG",
    "RR",
    "RR@3",
    "AP",
    "AP@5",
    "P@5",
    "R@20",
    "P(rel=2)@5",
    "Rprec",
    "Judged@10",
    "Success@1",
]


def write_trec(folder: Path, seed: int = 0, queries: int = 40, ties: bool = True) -> tuple[Path, Path]:
    """(qrels, run): unjudged documents, queries that only one of them has, equal scores, ids that are no ASCII."""
    random = np.random.default_rng(seed)
    judged, ranked = [], []
    for q in range(queries):
        for d in range(int(random.integers(1, 30))):
            document = f"d{d}é"
            if random.random() < 0.7 and q != 3:
                judged.append(f"q{q} 0 {document} {random.choice([0, 0, 0, 1, 2])}")
            if random.random() < 0.9 and q != 5:
                score = random.integers(0, 6) if ties else random.random()
                ranked.append(f"q{q}\tQ0  {document} {d + 1} {score} someone")
    (folder / "qrels.txt").write_text("\n".join([*judged, "q5 0 d1 1"]) + "\n", encoding="utf-8")
    (folder / f"run{seed}.txt").write_text("\n".join(ranked) + "\n\n", encoding="utf-8")
    return folder / "qrels.txt", folder / f"run{seed}.txt"


def ir_values(qrels: Path, run: Path, names: list[str]) -> dict[str, dict[str, float]]:
    """Measure -> query -> value, by ir-measures on whole files."""
    parsed = {ir_measures.parse_measure(name): name for name in names}
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    judged, ranked = ir_measures.read_trec_qrels(str(qrels)), ir_measures.read_trec_run(str(run))
    for metric in ir_measures.iter_calc(list(parsed), list(judged), list(ranked)):
        found[parsed[metric.measure]][metric.query_id] = metric.value
    return found


@pytest.mark.parametrize("at_once", [1, 37, 10**6])
def test_every_value_of_every_query_is_that_of_ir_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(measures_module, "AT_ONCE", at_once)
    qrels, run = write_trec(tmp_path)
    measured = measure_runs(TrecFile.qrels(qrels), [TrecFile.run(run)], wanted(MEASURES))
    expected = ir_values(qrels, run, MEASURES)
    assert "q5" in measured.queries
    assert len(measured.queries) == 39 or "q3" not in measured.queries
    for m, name in enumerate(MEASURES):
        found = dict(zip(measured.queries, measured.values[0, m].tolist(), strict=True))
        assert found == pytest.approx(expected[name], abs=1e-9), name


def test_lines_of_a_query_may_be_apart_and_files_packed(tmp_path: Path) -> None:
    qrels, run = write_trec(tmp_path, ties=False)
    lines = run.read_text().splitlines()
    shuffled = [lines[i] for i in np.random.default_rng(1).permutation(len(lines))]
    (tmp_path / "shuffled.gz").write_bytes(gzip.compress("\n".join(shuffled).encode()))
    whole, apart = TrecFile.run(run), TrecFile.run(tmp_path / "shuffled.gz")
    assert {query: whole[query] for query in whole} == {query: apart[query] for query in apart}
    assert whole.lines == apart.lines
    measured = measure_runs(TrecFile.qrels(qrels), [whole, apart], wanted(MEASURES))
    assert np.array_equal(measured.values[0], measured.values[1])


def test_a_run_is_read_in_parts_however_few_documents_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qrels.txt").write_text("".join(f"q{q} 0 d0 1\n" for q in range(40)))
    (tmp_path / "run.txt").write_text("".join(f"q{q} Q0 d{d} 1 {-d} x\n" for q in range(40) for d in range(50)))
    qrels, run = TrecFile.qrels(tmp_path / "qrels.txt"), TrecFile.run(tmp_path / "run.txt")
    monkeypatch.setattr(measures_module, "AT_ONCE", (tmp_path / "run.txt").stat().st_size // 8)
    sizes = [len(judged) for judged in measures_module._chunks(qrels, [run, run])]
    assert (sum(sizes), max(sizes)) == (40, 6)
    assert measure_runs(qrels, [run], wanted(["RR"])).values.min() == 1


def test_what_lines_that_are_apart_name_twice(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("q1 Q0 a 1 3 x\nq2 Q0 a 1 2 x\nq1 Q0 b 2 1 x\nq2 Q0 a 1 1 x\n")
    with pytest.raises(InputError, match="names a again for query q2, in lines that are apart; expected it once"):
        TrecFile.run(tmp_path / "run.txt")


def test_an_id_with_a_space_of_another_script_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("q1 Q0 d1\x85 1 0.5 x\r\nq1 Q0 d2 2 0.25 x\r\n", encoding="utf-8", newline="")
    assert TrecFile.run(tmp_path / "run.txt")["q1"] == {"d1": 0.5, "d2": 0.25}


def test_equal_scores(tmp_path: Path) -> None:
    """The page shows the order that was measured; scores that differ beyond float32 are equal to trec_eval."""
    (tmp_path / "qrels.txt").write_text("q 0 a 1\nq 0 b 0\nq 0 c 0\n")
    (tmp_path / "run.txt").write_text("q Q0 a 1 0.123456789 x\nq Q0 b 2 0.123456789 x\nq Q0 c 3 0.123456788 x\n")
    found = rankery.evaluate(
        runs=tmp_path / "run.txt", qrels=tmp_path / "qrels.txt", measures="RR", output=tmp_path / "out"
    )
    assert found.systems["run"].metrics["RR"] == pytest.approx(1 / 3)
    (tmp_path / "run.txt").write_text("q Q0 a 1 7 x\nq Q0 b 2 7 x\nq Q0 c 3 7 x\n")
    found = rankery.evaluate(
        runs=tmp_path / "run.txt", qrels=tmp_path / "qrels.txt", measures="RR RR@3", output=tmp_path / "out"
    )
    assert found.systems["run"].metrics == {"RR": pytest.approx(1 / 3), "RR@3": 1.0}
    assert "equal scores in 1 queries: trec_eval takes the last document id first, RR@k the first" in str(found)
    assert re.findall(r"(\d\. \w[\w ]*), score 7", (tmp_path / "out/report.html").read_text()) == [
        "1. not relevant", "2. not relevant", "3. relevant",
    ]  # fmt: skip
    (tmp_path / "run.txt").write_text("q Q0 a 1 0.123456789 x\nq Q0 b 2 0.123456788 x\n")
    assert "run has equal scores in 1 queries" in str(
        rankery.evaluate(runs=tmp_path / "run.txt", qrels=tmp_path / "qrels.txt")
    )


def test_a_run_of_one_large_score_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q 0 a 1\n")
    (tmp_path / "run.txt").write_text("q Q0 a 1 1e15 x\n")
    rankery.evaluate(runs=tmp_path / "run.txt", qrels=tmp_path / "qrels.txt", output=tmp_path / "out")
    assert "Scores of run" in (tmp_path / "out" / "report.html").read_text()


def test_bad_lines_are_all_said(tmp_path: Path) -> None:
    run = tmp_path / "run.txt"
    run.write_bytes(b"q1 Q0 d1 1 0.5 x\nq1 Q0 d1 2 0.4 x\nq1 Q0 d2 3 nan x\nq1 d3 4 0.2\nq1 Q0 \xff 4 0.2 x\n")
    with pytest.raises(InputError) as caught:
        TrecFile.run(run)
    problems = caught.value.problems
    assert [problem.split(":")[1] for problem in problems] == ["2", "3", "4", "5"]
    assert "names d1 again for query q1" in problems[0]
    assert "finite number as score" in problems[1]
    (tmp_path / "qrels.txt").write_text("q1 0 d1 0.5\n")
    with pytest.raises(InputError, match="whole number as relevance"):
        TrecFile.qrels(tmp_path / "qrels.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        TrecFile.run(tmp_path / "empty.txt")


def test_texts_by_id(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"_id": "1", "title": "Moon", "text": "far"}, {"id": 2, "contents": "月"}])
    (tmp_path / "a.tsv").write_text("1\tMoon far\n2\t月\n", encoding="utf-8")
    for name in ("a.jsonl", "a.tsv"):
        texts = TextFile(tmp_path / name)
        assert [texts.get(i) for i in ("2", "1", "3")] == ["月", "Moon far", None]
    (tmp_path / "bad.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n[]\n{"id": 3}\nx\n')
    with pytest.raises(InputError) as caught:
        TextFile(tmp_path / "bad.jsonl")
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["2", "3", "4", "5"]


def test_measures_that_cannot_be_are_all_said() -> None:
    with pytest.raises(InputError) as caught:
        wanted(["nDCG@10", "nonsense", "NumRet", "P@"])
    assert len(caught.value.problems) == 3
    assert wanted(["AP", "AP(rel=3)"], level=2) == {
        "AP": ir_measures.AP(rel=2),
        "AP(rel=3)": ir_measures.AP(rel=3),
    }


def scipy_p(differences: np.ndarray, samples: float) -> float:
    return stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=samples, vectorized=True, rng=1
    ).pvalue


@pytest.mark.parametrize("seed", range(6))
def test_few_queries_are_enumerated_as_scipy_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    differences = np.round(random.normal(0.15, 0.3, 11), 1)  # equal values, and zeros, among them
    assert randomisation_p(differences, seed) == pytest.approx(scipy_p(differences, np.inf), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.04])
def test_many_queries_agree_with_scipy(shift: float) -> None:
    differences = np.random.default_rng(7).normal(shift, 0.25, 200)
    ours, theirs = randomisation_p(differences, 3), scipy_p(differences, 20_000)
    assert ours == pytest.approx(theirs, abs=5 * np.sqrt(theirs * (1 - theirs) * (1e-4 + 5e-5)) + 1e-4)


def test_what_chance_cannot_tell_apart() -> None:
    assert randomisation_p(np.zeros(9), 0) == 1
    assert randomisation_p(np.full(5, 0.1), 0) == 2 / 2**5
    assert randomisation_p(np.full(500, 0.1), 0) == 1 / 10_001
    with pytest.raises(InputError, match="NaN or none"):
        randomisation_p(np.array([]), 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_intervals_of_several_systems_are_those_of_each() -> None:
    values = np.random.default_rng(0).random((80, 3))
    together = bootstrap_intervals(values, 5)
    for k in range(3):
        assert together[k] == pytest.approx(bootstrap_intervals(values[:, [k]], 5)[0])
        normal = 1.96 * values[:, k].std() / np.sqrt(80)
        assert together[k] == pytest.approx(values[:, k].mean() + np.array([-normal, normal]), abs=0.01)


def test_names_tell_systems_apart() -> None:
    systems = [
        System("model", "out/a/model"), System("model", "out/b/model"), System("baseline", "bm25"),
        System("baseline", "bases/minilm"), System("run", "runs/theirs.trec.gz"), System("model", "bases/theirs"),
    ]  # fmt: skip
    assert names_of(systems) == ["a/model", "b/model", "BM25", "cosine of minilm", "runs/theirs", "bases/theirs"]
    assert names_of(systems[:1]) == ["model"]
    assert names_of([System("model", "x"), System("run", "x")]) == ["x (model)", "x (run)"]
    same = [System("run", "a/x.trec"), System("run", "a/x.trec.gz"), System("model", "a/x")]
    assert names_of(same) == ["a/x.trec", "a/x.trec.gz", "x (model)"]
    with pytest.raises(InputError, match="baseline bm25 is there twice"):
        names_of([systems[2], systems[2]])


def test_slices_have_about_the_same_size_and_every_query_once(tmp_path: Path) -> None:
    values = np.array([1, 1, 1, 1, 2, 3, 4, 5, 6, np.nan])
    parts = slices({"length": values, "constant": np.ones(10), "cut": np.arange(10) < 3})
    assert [(p.dimension, p.label, int(p.queries.sum())) for p in parts] == [
        ("length", "1", 4), ("length", "2 to 3", 2), ("length", "4 to 6", 3), ("cut", "yes", 3), ("cut", "no", 7),
    ]  # fmt: skip
    (tmp_path / "run").write_text("a Q0 x 1 1 t\na Q0 y 2 0 t\n")
    measured = Measured(
        ["a", "b"], np.zeros((1, 1, 2)), np.array([[2, 0]]), np.array([1, 0]), np.ones((1, 2)), np.zeros(1), [],
        np.array([[1, 0]]), np.array([[True, False]]), np.zeros(1, bool),
    )  # fmt: skip
    texts = Texts({"a": "four", "b": "b"}.get, {"x": "12", "y": "1234"}.get)
    found = dimensions_of(measured, TrecFile.run(tmp_path / "run"), texts, {"m": {"b"}}, {"r": np.array([2.0, np.nan])})
    assert found["query, characters"].tolist() == [4, 1]
    assert found["documents, characters on average"][0] == 3
    assert found["relevant document cut by m"].tolist() == [False, True]
    assert found["place of the best relevant document in r"][0] == 2


def test_the_place_of_the_best_relevant_document(tmp_path: Path) -> None:
    """Of each query; it is one over RR, ties too, and nowhere where the run has none."""
    qrels, run = write_trec(tmp_path)
    measured = measure_runs(TrecFile.qrels(qrels), [TrecFile.run(run)], wanted(["RR"]))
    reciprocal = np.nan_to_num(1 / measured.place[0], nan=0.0)
    assert reciprocal == pytest.approx(measured.values[0, 0])
    assert np.isnan(measured.place).any()
    rankery.evaluate(runs=run, qrels=qrels, output=tmp_path / "out")
    assert "place of the best relevant document in run0" in (tmp_path / "out" / "report.html").read_text()


def test_probabilities_are_left_as_they_are() -> None:
    assert probabilities(np.array([0.2, 1.0])).tolist() == [0.2, 1.0]
    assert probabilities(np.array([0.0, 1000.0, -1000.0])).tolist() == [0.5, 1.0, pytest.approx(0, abs=1e-300)]


@pytest.fixture
def model(config: dict, capsys: pytest.CaptureFixture) -> str:
    folder = str(train(config, epochs=1, max_len=12))
    capsys.readouterr()
    return folder


def test_models_baselines_and_runs_side_by_side(
    config: dict, model: str, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, out = config["val_dataset"], tmp_path / "evaluation"
    assert main(["evaluate", "--model", model, "--data", data, "--output", str(tmp_path / "first")]) == 0
    single = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert re.search(
        r"95% bootstrap intervals over 6 queries: nDCG@10 0\.\d{4} to [01]\.\d{4}, MRR", capsys.readouterr().out
    )
    words = [
        "--baseline",
        "bm25",
        "--model",
        model,
        "--baseline",
        str(bert),
        "--run",
        str(tmp_path / "first" / "run.trec"),
    ]
    names = "nDCG@10 RR@10 P@2"
    assert (
        main(["evaluate", *words, "--data", data, "--measures", names, "--output", str(out), "--reference", "model"])
        == 0
    )
    printed = capsys.readouterr().out
    found = json.loads((out / "metrics.json").read_text())
    assert list(found["systems"]) == ["BM25", "model", f"cosine of {bert.name}", "run"]
    assert found["reference"] == "model"
    model_row, run_row = found["systems"]["model"], found["systems"]["run"]
    assert "difference" not in model_row or model_row["difference"] == {}
    assert run_row["metrics"] == pytest.approx(model_row["metrics"])
    assert run_row["difference"]["nDCG@10"] == {"mean": 0, "interval": [0, 0], "p": 1, "p_holm": 1}
    assert model_row["metrics"]["nDCG@10"] == pytest.approx(single["nDCG@10"], abs=1e-12)
    assert model_row["parameters"] > 1000
    assert "pairs_per_s" not in run_row
    for name, file in (("BM25", "BM25"), ("model", "model"), (f"cosine of {bert.name}", f"cosine_of_{bert.name}")):
        values = ir_values(out / "qrels.trec", out / "runs" / f"{file}.trec", names.split())
        for measure, by_query in values.items():
            assert found["systems"][name]["metrics"][measure] == pytest.approx(
                np.mean(list(by_query.values())), abs=1e-9
            )
            assert f"{np.mean(list(by_query.values())):.4f}" in printed
    rows = list(csv.DictReader((out / "queries.csv").open(encoding="utf-8")))
    bm25 = [float(row["BM25: nDCG@10"]) for row in rows]
    assert np.mean(bm25) == pytest.approx(found["systems"]["BM25"]["metrics"]["nDCG@10"])
    less = np.array(bm25) - [float(row["model: nDCG@10"]) for row in rows]
    difference = found["systems"]["BM25"]["difference"]["nDCG@10"]
    assert difference["mean"] == pytest.approx(less.mean())
    assert difference["p"] == pytest.approx(scipy_p(less, np.inf), abs=1e-12)


def test_from_python_as_from_the_command_line(config: dict, model: str, tmp_path: Path) -> None:
    data, out = config["val_dataset"], tmp_path / "evaluation"
    options = {"measures": "nDCG@10 RR@10", "reference": "BM25", "output": out}
    found = rankery.evaluate(Path(model), ["bm25", "random"], data=data, **options)
    words = ["--model", model, "--baseline", "bm25", "--baseline", "random", "--data", data, "--reference", "BM25"]
    assert main(["evaluate", *words, "--measures", "nDCG@10 RR@10", "--output", str(tmp_path / "same")]) == 0
    written = [json.loads((folder / "metrics.json").read_text()) for folder in (out, tmp_path / "same")]
    for row in (*written[0]["systems"].values(), *written[1]["systems"].values()):
        row.pop("pairs_per_s", None)
    assert written[0] == written[1]
    assert (list(found.systems), found.reference) == (["model", "BM25", "random order"], "BM25")
    assert str(found).startswith("              nDCG@10   RR@10\nmodel ")
    row = found.systems["model"]
    assert row.by_query["RR@10"].mean() == pytest.approx(row.metrics["RR@10"])
    less = row.by_query["nDCG@10"] - found.systems["BM25"].by_query["nDCG@10"]
    assert row.difference["nDCG@10"].mean == pytest.approx(less.mean())
    assert row.difference["nDCG@10"].p == pytest.approx(scipy_p(less, np.inf), abs=1e-12)
    assert row.interval["nDCG@10"] == pytest.approx(bootstrap_intervals(row.by_query["nDCG@10"][:, None], 42)[0])
    runs = rankery.evaluate(runs=sorted((out / "runs").iterdir()), qrels=out / "qrels.trec", measures=["nDCG@10"])
    assert runs.systems["model"].metrics["nDCG@10"] == pytest.approx(row.metrics["nDCG@10"])


def test_trec_files_with_and_without_texts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, second = write_trec(tmp_path, 1)
    qrels, first = write_trec(tmp_path, 0)
    words = ["evaluate", "--qrels", str(qrels), "--run", str(first), "--run", str(second)]
    assert main([*words, "--output", str(tmp_path / "out"), "--measures", "nDCG@10 RR@3"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"run0 has no documents for [12] of 38 queries, which count 0", said)
    assert "run0 has equal scores in" in said
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]
    for name, file in (("run0", first), ("run1", second)):
        for measure, by_query in ir_values(qrels, file, ["nDCG@10", "RR@3"]).items():
            assert found[name]["metrics"][measure] == pytest.approx(np.mean(list(by_query.values())), abs=1e-9)
    assert not (tmp_path / "out" / "runs").exists(), "runs that are files already are not copied"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "d1é" in page
    assert main([*words, "--baseline", "bm25"]) == 2
    assert "--baseline bm25 needs texts" in capsys.readouterr().err
    write_rows(tmp_path / "queries.jsonl", [{"id": f"q{i}", "text": f"word{i % 7} moon"} for i in range(40)])
    write_rows(tmp_path / "documents.jsonl", [{"id": f"d{i}é", "text": f"word{i % 5} far {i}"} for i in range(30)])
    texts = ["--queries", str(tmp_path / "queries.jsonl"), "--documents", str(tmp_path / "documents.jsonl")]
    assert main([*words, "--baseline", "bm25", *texts, "--output", str(tmp_path / "out")]) == 0
    by_query = ir_values(qrels, tmp_path / "out" / "runs" / "BM25.trec", ["nDCG@10"])["nDCG@10"]
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]["BM25"]["metrics"]
    assert found["nDCG@10"] == pytest.approx(np.mean(list(by_query.values())), abs=1e-9)
    assert "word3 far 3" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "documents.jsonl").write_text('{"id": "d1é", "text": "x"}\n', encoding="utf-8")
    capsys.readouterr()
    assert main([*words, "--baseline", "bm25", *texts]) == 2
    assert "has no text for document d0é of query q0" in capsys.readouterr().err


def test_relevance_thresholds_of_judgements(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    qrels, run = write_trec(tmp_path)
    words = ["evaluate", "--qrels", str(qrels), "--run", str(run), "--relevant-above", "1", "--measures", "AP P@5"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = ir_values(qrels, run, ["AP(rel=2)", "P(rel=2)@5"])
    assert list(found.values()) == pytest.approx([np.mean(list(v.values())) for v in expected.values()], abs=1e-9)
    capsys.readouterr()


def test_bad_words_are_all_said_and_nothing_is_written(
    config: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ["--output", str(tmp_path / "out")]
    assert main(["evaluate", "--reference", "x", "--measures", "nDCG@10 foo", *out]) == 2
    said = capsys.readouterr().err
    for problem in ("no system is named", "--data and --qrels are neither there", "--reference is x", "measure 'foo'"):
        assert problem in said
    (tmp_path / "run.txt").write_text("other Q0 d 1 1 x\n")
    words = ["--run", str(tmp_path / "run.txt"), "--model", "./nowhere", "--baseline", "elsewhere"]
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert main(["evaluate", *words, "--data", str(tmp_path / "bad.jsonl"), *out]) == 2
    said = capsys.readouterr().err
    for problem in ("nowhere", "--baseline is elsewhere", "bad.jsonl:1"):
        assert problem in said
    words = ["evaluate", "--run", str(tmp_path / "run.txt"), "--data", config["val_dataset"], *out]
    assert main(words) == 2
    assert "1 of its 1 lines name no pair of the data" in capsys.readouterr().err
    (tmp_path / "qrels.txt").write_text("q0 0 d0 1\n")
    assert main(["evaluate", "--run", str(tmp_path / "run.txt"), "--qrels", str(tmp_path / "qrels.txt"), *out]) == 2
    assert "none of its 1 queries (other, ...) is among the 1 of qrels.txt (q0, ...)" in capsys.readouterr().err
    words = [
        "--baseline",
        "bm25",
        "--qrels",
        str(tmp_path / "qrels.txt"),
        "--min-label",
        "0.5",
        "--relevant-above",
        "-1",
    ]
    assert main(["evaluate", *words, "--seed", "-1", *out]) == 2
    said = capsys.readouterr().err
    for problem in (
        "min_label is 0.5; expected a whole",
        "relevant_above is -1; expected a number from 0.5",
        "seed is -1",
    ):
        assert problem in said
    words = ["--baseline", "bm25", "--data", config["val_dataset"], "--dtype", "float32"]
    assert main(["evaluate", *words, *out]) == 2
    assert "dtype: given, but for models alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_data_cannot_answer_is_said_before_models_are_opened(config: dict, model: str, tmp_path: Path) -> None:
    (Path(model) / "model.safetensors").write_bytes(b"")
    for options, message in (
        ({"data": config["val_dataset"], "relevant_above": -5}, "relevant_above is -5; expected a number, at least 0"),
        (
            {"data": soft_data(tmp_path), "measures": "nDCG@10 AP"},
            "'AP' counts relevant documents, but the labels are scores",
        ),
        (
            {"data": soft_data(tmp_path), "measures": "AP P(rel=2)@5", "relevant_above": 0.3},
            r"'P\(rel=2\)@5' counts relevant documents, but the labels are scores; expected measures without a grade",
        ),
    ):
        with pytest.raises(InputError, match=message):
            rankery.evaluate(model, **options)


def test_scores_that_are_no_numbers_are_named(config: dict, model: str) -> None:
    spoil(Path(model), "snow")
    with pytest.raises(InputError, match=r"scores of \S+model are not finite, the first at \S+val\.jsonl:\d+, query '"):
        rankery.evaluate(model, data=config["val_dataset"])


def test_a_page_of_something_else_is_not_replaced(config: dict, model: str) -> None:
    folder = Path(model).parent
    before = (folder / "report.html").read_bytes()
    with pytest.raises(InputError, match=r"would replace \S+report.html, which no evaluation wrote there"):
        rankery.evaluate(baselines="bm25", data=config["val_dataset"], output=folder)
    assert (folder / "report.html").read_bytes() == before


def test_input_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = write_rows(tmp_path / "data.jsonl", [{"query": "moon", "pos": ["moon"], "neg": ["sea"]}])
    words, out = ["evaluate", "--data", str(data)], ["--output", str(tmp_path)]
    assert main([*words, "--baseline", "bm25", "--baseline", "random", *out]) == 0
    run = tmp_path / "runs" / "BM25.trec"
    before = run.read_bytes()
    capsys.readouterr()
    assert main([*words, "--run", str(run), "--baseline", "bm25", *out]) == 2
    assert f"output would replace {run}, which is input" in capsys.readouterr().err
    assert run.read_bytes() == before
    assert main([*words, "--run", str(run), *out]) == 0, "a run is not written again"
    assert run.read_bytes() == before


def test_run_files_of_names_that_look_alike(tmp_path: Path) -> None:
    systems = [System("model", "a b"), System("run", "c"), System("model", "a_b")]
    files = run_files(tmp_path, systems, names_of(systems))
    assert {i: path.name for i, path in files.items()} == {0: "a_b.trec", 2: "a_b_2.trec"}


@pytest.mark.parametrize("labels", [1, 2])
def test_reliability_before_and_after(config: dict, labels: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = Path(train(config, epochs=1, max_len=12, num_labels=labels))
    parameters = {"slope": 0.5, "intercept": -1.0}
    write_calibration(folder, Calibration("platt", parameters, 0.0, {}))
    reranker = CrossEncoder.from_pretrained(str(folder))
    candidates, _ = of_records(list(read_records([Path(config["val_dataset"])], LabelRange(0, 1))))
    scored = score_system(System("model", str(folder)), candidates, Group(), options={})
    assert scored.calibrated is not None
    expected = reranker.compute_score(candidates.texts(), calibrated=True).numpy()
    assert scored.calibrated(scored.scores) == pytest.approx(expected, abs=1e-5)
    words = [
        "evaluate",
        "--model",
        str(folder),
        "--data",
        config["val_dataset"],
        "--output",
        str(tmp_path / "evaluation"),
    ]
    assert main(words) == 0
    capsys.readouterr()
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "calibrated</" in page
    assert ("sigmoid of the score</" in page) == (labels == 1)


def soft_data(folder: Path) -> str:
    rows = [
        {"query": f"sun {i}", "pos": ["sun sun", "sea", "hill sun"], "pos_scores": [0.9, 0.1, 0.4]} for i in range(6)
    ]
    return str(write_rows(folder / "soft.jsonl", rows))


def test_scores_as_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = soft_data(tmp_path)
    words = [
        "evaluate",
        "--baseline",
        "bm25",
        "--baseline",
        "random",
        "--data",
        data,
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["nDCG@10", "Kendall"]
    assert "no document is relevant or not" in (tmp_path / "out" / "report.html").read_text()
    assert main([*words, "--relevant-above", "0.3"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]["BM25"]["metrics"]
    assert found["Recall@10"] == found["MAP"] == 1.0


def test_the_page_in_a_browser(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With texts that would do harm as markup."""
    nasty = "<script>console.error('ran')</script><img src=http://example.invalid/x.png>"
    rows = [
        {"query": f"moon {i} {nasty}", "pos": [f"moon {i}" * (i % 3)], "neg": [f"sea {j} {nasty}" for j in range(i % 4 + 1)]}
        for i in range(9)
    ]  # fmt: skip
    data = str(write_rows(tmp_path / "data.jsonl", rows))
    out = tmp_path / "out"
    assert main(["evaluate", "--baseline", "bm25", "--baseline", "random", "--data", data, "--output", str(out)]) == 0
    capsys.readouterr()
    seen = visit(out / "report.html", tmp_path)
    assert (seen.console, seen.requests) == ([], [])
    assert seen.dom.count("<svg") >= 3
    assert "moon 8 &lt;script&gt;" in seen.dom


def test_wikiqa_by_bm25(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = SHARED / "wikiqa" / "test.jsonl"
    if not data.is_file():
        pytest.skip(f"{data} is not there")
    words = ["evaluate", "--baseline", "bm25", "--baseline", "random", "--data", str(data), "--output", str(tmp_path)]
    assert main(words) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["queries"] == 237
    assert found["systems"]["random order"]["difference"]["nDCG@10"]["p"] < 0.001
    assert "against BM25" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(config: dict, model: str, tmp_path: Path) -> None:
    words = ["evaluate", "--model", model, "--baseline", "bm25", "--data", config["val_dataset"]]
    code = "import sys; from rankery.cli import main; sys.exit(main(sys.argv[1:]))"
    found = []
    for n in ("1", "2"):
        done = run_python(code, *words, "--processes", n, "--output", str(tmp_path / n), CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("against model") == 1
        found.append(TrecFile.run(tmp_path / n / "runs" / "model.trec"))
    assert list(found[0]) == list(found[1])
    for query in found[0]:
        assert found[1][query] == pytest.approx(found[0][query], abs=1e-5)
    done = run_python(code, *words[:1], "--model", "./nowhere", *words[3:], "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.count("nowhere") == 1, "said once"
