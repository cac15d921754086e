"""Calibration: fits, what is held out, measures, thresholds, and a model that carries it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, make_bert, make_data, make_decoder, marked, spoil, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from rankery import CrossEncoder, InputError, LLMDecoder, calibrate, train
from rankery.calibrating.calibrate import calibrated
from rankery.calibrating.fit import best_fit, fit, fitted_without, folds_of, held_out
from rankery.calibrating.measures import (
    binned,
    brier,
    expected_calibration_error,
    log_loss,
    precision_and_recall,
    threshold,
)
from rankery.cli import main
from rankery.data.records import read_records
from rankery.evaluation.baselines import bm25_scores
from rankery.models.calibration import PARAMETERS, Calibration, read_calibration
from rankery.models.export import export
from rankery.models.opening import open_reranker

PAIRS = [("sun", "sun sun"), ("sun", "sea"), ("moon", "hill moon stone"), ("moon", "")]


def drawn(pairs: int, slope: float, intercept: float, queries: int = 50) -> tuple[np.ndarray, ...]:
    """(scores, relevance drawn from a known probability, query of each pair)."""
    random = np.random.default_rng(0)
    scores = random.normal(1.0, 3.0, pairs)
    relevant = random.random(pairs) < expit(slope * scores + intercept)
    return scores, relevant, random.integers(0, queries, pairs).astype(str).astype(object)


def test_the_truth_is_found() -> None:
    scores, relevant, _ = drawn(200_000, 0.4, 0.0)
    assert fit("temperature", scores, relevant).parameters["temperature"] == pytest.approx(2.5, rel=0.02)
    scores, relevant, _ = drawn(200_000, 0.4, -2.0)
    assert fit("platt", scores, relevant).parameters == pytest.approx({"slope": 0.4, "intercept": -2.0}, rel=0.03)
    found = fit("isotonic", scores, relevant).probabilities(np.array([-1.0, 2.0, 5.0]))
    assert found == pytest.approx(expit(0.4 * np.array([-1.0, 2.0, 5.0]) - 2), abs=0.03)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_platt_is_where_both_sums_vanish(shift: float) -> None:
    """The condition of the optimum, with Platt's targets; also for scores far from 0."""
    scores, relevant, _ = drawn(500, 0.7, -1.0)
    scores = scores + shift
    positives, others = relevant.sum(), (~relevant).sum()
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (others + 2))
    wrong = fit("platt", scores, relevant).probabilities(scores) - targets
    assert abs(wrong.mean()) < 1e-4
    assert abs((wrong * (scores - scores.mean())).mean()) < 1e-4


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_isotonic_is_the_rising_fit_of_least_squares(rows: list[tuple[int, bool]]) -> None:
    """Against the min-max formula of isotonic regression (Barlow et al. 1972), and whatever the order of the pairs."""
    scores, relevant = np.array([float(s) for s, _ in rows]), np.array([r for _, r in rows])
    positives = int(relevant.sum())
    targets = np.where(relevant, (positives + 1) / (positives + 2), 1 / (len(rows) - positives + 2))
    points = np.unique(scores)
    expected = [
        max(
            min(targets[(scores >= low) & (scores <= high)].mean() for high in points[points >= x])
            for low in points[points <= x]
        )
        for x in points
    ]
    assert fit("isotonic", scores, relevant).probabilities(points) == pytest.approx(expected)
    assert fit("isotonic", scores[::-1], relevant[::-1]).probabilities(points) == pytest.approx(expected)


@pytest.mark.parametrize("kind", PARAMETERS)
def test_no_fit_falls_or_is_certain(kind: str) -> None:
    """Separable data, scores that fall with relevance, and equal scores."""
    for scores, relevant in (
        (np.arange(10.0), np.arange(10) > 4),
        (np.arange(10.0), np.arange(10) < 5),
        (np.zeros(10), np.arange(10) > 4),
    ):
        found = fit(kind, scores, relevant).probabilities(np.linspace(-100, 100, 50))
        assert (np.diff(found) >= 0).all()
        assert np.isfinite(log_loss(fit(kind, scores, relevant).probabilities(scores), relevant))
        assert ((found[24:27] > 0) & (found[24:27] < 1)).all()


@given(st.lists(st.sampled_from("abcdefghij"), min_size=10, max_size=40).map(lambda rest: [*"abcdefghij", *rest]))
@settings(max_examples=50, deadline=None)
def test_folds_hold_whole_queries_evenly(queries: list[str]) -> None:
    fold = folds_of(queries, 3)
    by_query = {query: set(fold[[q == query for q in queries]]) for query in queries}
    assert all(len(folds) == 1 for folds in by_query.values())
    assert sorted(next(iter(folds)) for folds in by_query.values()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert folds_of(queries[::-1], 3).tolist() == fold[::-1].tolist()


def test_held_out_probabilities_see_nothing_of_their_fold() -> None:
    """Neither of its labels nor through the choice of the kind."""
    scores, relevant, query = drawn(400, 0.5, -1.0)
    fold = folds_of(query.tolist(), 0)
    before = held_out(fitted_without(best_fit, scores, relevant, fold), scores, fold)
    for held in range(5):
        changed = np.where(fold == held, ~relevant, relevant)
        after = held_out(fitted_without(best_fit, scores, changed, fold), scores, fold)
        assert (after[fold == held] == before[fold == held]).all()
        assert (after[fold != held] != before[fold != held]).any()


def test_measures_by_hand() -> None:
    p, relevant = np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, False, True, False])
    assert log_loss(p, relevant) == pytest.approx(-np.log([0.9, 0.2, 0.3, 0.8]).mean())
    assert brier(p, relevant) == pytest.approx((0.01 + 0.64 + 0.49 + 0.04) / 4)
    bins = binned(p, relevant, bins=2)
    assert bins.probability == pytest.approx([0.25, 0.85])
    assert bins.relevant == pytest.approx([0.5, 0.5])
    assert expected_calibration_error(bins) == pytest.approx((0.25 + 0.35) / 2)
    assert log_loss(np.array([0.0]), np.array([True])) == pytest.approx(34.54, abs=0.01)


def test_measures_do_not_see_the_order_of_ties() -> None:
    p, relevant = np.repeat([0.2, 0.6], 20), np.arange(40) % 20 < 7
    for order in (np.arange(40)[::-1], np.random.default_rng(0).permutation(40)):
        assert binned(p[order], relevant[order], bins=6).relevant == pytest.approx([0.35] * 6)
        bins = binned(p[order], relevant[order], bins=4)
        assert expected_calibration_error(bins) == pytest.approx(0.2)


def test_thresholds_by_hand() -> None:
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.6])
    relevant = np.array([True, False, True, True, False])
    assert threshold("precision", 0.6, p, relevant) == pytest.approx(0.3)  # 3 of 5
    assert threshold("precision", 0.65, p, relevant) == pytest.approx(0.65)  # 2 of 3
    assert threshold("precision", 0.7, p, relevant) == pytest.approx(0.85)
    assert threshold("recall", 0.6, p, relevant) == pytest.approx(0.65)
    assert threshold("recall", 0.7, p, relevant) == pytest.approx(0.3)
    assert threshold("precision", 0.9, 1 - p, relevant) is None


def test_intervals_are_of_queries() -> None:
    random = np.random.default_rng(0)
    taken, relevant = np.ones(4000, dtype=bool), random.random(4000) < 0.3
    value, low, high = precision_and_recall(taken, relevant, np.arange(4000).astype(str), 0)["precision"]
    error = np.sqrt(value * (1 - value) / 4000)
    assert value == relevant.mean()
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=error / 4)
    # All of one query alike: as many independent values as queries.
    query = np.arange(4000) // 40
    of_query = random.random(100) < 0.3
    value, low, high = precision_and_recall(taken, of_query[query], query.astype(str), 0)["precision"]
    error = np.sqrt(value * (1 - value) / 100)
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=error / 2)
    nothing = precision_and_recall(~taken, relevant, np.arange(4000), 0)
    assert np.isnan(nothing["precision"]).all()
    assert nothing["recall"] == (0.0, 0.0, 0.0)


@pytest.mark.skipif(not (SHARED / "wikiqa").is_dir(), reason="../shared/data/wikiqa is absent")
def test_bm25_scores_of_real_queries_become_probabilities() -> None:
    records = list(read_records([SHARED / "wikiqa" / "train.jsonl"]))
    scores = bm25_scores(records).astype(np.float64)
    relevant = np.array([label > 0 for record in records for label in record.labels])
    query = np.array([record.query for record in records for _ in record.documents], dtype=object)
    wanted = {"precision": 0.5, "recall": 0.9}
    _, judged, cuts = calibrated(scores, relevant, query, folds_of(query.tolist(), 1), wanted, 0)
    assert log_loss(judged.after, relevant) < log_loss(np.full(len(scores), relevant.mean()), relevant) - 0.02
    assert expected_calibration_error(binned(judged.after, relevant)) < 0.02
    for cut in cuts:
        value, low, high = cut.held_out[cut.wanted]
        assert low < value < high
        assert low - 0.05 < cut.least < high + 0.05
        assert cut.there[cut.wanted][0] >= cut.least


@pytest.fixture
def model(config: dict, tmp_path: Path) -> Path:
    data = marked(tmp_path / "train.jsonl", 48)
    return train(
        config, train_dataset=data, val_dataset=None, epochs=6, lr=3e-3, hidden_dropout=0.0, attention_dropout=0.0
    )


@pytest.fixture
def dev(tmp_path: Path) -> str:
    return marked(tmp_path / "dev.jsonl", 24, offset=50)


def test_a_model_carries_its_calibration(
    config: dict, model: Path, dev: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = json.loads((model / "rankery.json").read_text())
    raw = CrossEncoder.from_pretrained(model).compute_score(PAIRS)
    assert main(["calibrate", "--model", str(model), "--data", dev, "--recall", "0.9", "--precision", "0.3"]) == 0
    said = capsys.readouterr().out
    for text in (
        "24 queries, 96 pairs, 25.0% of them relevant",
        "ECE (15 bins of equal mass)",
        "for recall 0.9, chosen on all queries",
    ):
        assert text in said
    after = json.loads((model / "rankery.json").read_text())
    kept = after.pop("calibration")
    assert after == before
    reranker = open_reranker(model)
    probabilities = reranker.compute_score(PAIRS, calibrated=True)
    assert (reranker.compute_score(PAIRS) == raw).all()
    expected = read_calibration({"calibration": kept}, "").probabilities(raw.numpy())
    assert probabilities.numpy() == pytest.approx(expected, abs=1e-6)
    documents = ["sea", "sun sun", "hill moon"]
    plain, shown = reranker.rerank("sun", documents), reranker.rerank("sun", documents, calibrated=True)
    assert [entry.index for entry in plain] == [entry.index for entry in shown]
    assert all(0 < entry.score < 1 for entry in shown)
    reranker.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "rankery.json").read_text())["calibration"] == kept
    # A model trained further has no calibration: its weights are other ones.
    further = train(config, model_name_or_path=str(model), epochs=1, output_dir=str(tmp_path / "further"))
    assert open_reranker(further).calibration is None
    capsys.readouterr()
    write_rows(tmp_path / "q.jsonl", [{"query": "sun", "documents": documents}])
    assert main(["rerank", "--model", str(model), "--input", str(tmp_path / "q.jsonl"), "--calibrated"]) == 0
    ranking = json.loads(capsys.readouterr().out)["ranking"]
    assert [entry["score"] for entry in ranking] == [entry.score for entry in shown]
    assert (
        main(["rerank", "--model", str(model), "--input", str(tmp_path / "q.jsonl"), "--calibrated", "--normalize"])
        == 2
    )
    assert "normalize and calibrated are both set" in capsys.readouterr().err


def test_the_page_says_what_the_text_says(model: Path, dev: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "new" / "page.html"
    words = ["calibrate", "--model", str(model), "--data", dev, "--recall", "0.9", "--html", str(file)]
    assert main(words) == 0
    page, about = file.read_text(), open_reranker(model).calibration.about
    for row in about["held_out"].values():
        assert all(f"{value:.4f}" in page for value in row.values())
    (cut,) = about["thresholds"]
    assert f"{cut['at']:.6g}" in page
    assert page.count("<title>sigmoid of the score: predicted") == page.count("<title>calibrated: predicted") == 15
    before = (model / "rankery.json").read_bytes()
    (model / "rankery.json").write_text(json.dumps({**json.loads(before), "calibration": None}))
    assert main(words) == 2
    assert "page.html: is there already; --overwrite replaces it" in capsys.readouterr().err
    assert json.loads((model / "rankery.json").read_text())["calibration"] is None
    assert main([*words[:-1], str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert (file.read_text(), (model / "rankery.json").read_bytes()) == (page, before)


def test_what_the_figures_say_is_recomputed(model: Path, dev: str) -> None:
    """The precision and recall printed for a threshold are those that a user gets from calibrated scores."""
    found = calibrate(model, dev, recall=0.8)
    reranker = open_reranker(model)
    assert reranker.calibration.about == json.loads(
        json.dumps({key: getattr(found, key) for key in reranker.calibration.about})
    )
    (cut,) = found.thresholds
    records = list(read_records([dev]))
    pairs = [(record.query, document) for record in records for document in record.documents]
    relevant = np.array([label > 0 for record in records for label in record.labels])
    taken = reranker.compute_score(pairs, calibrated=True).numpy() >= cut["at"]
    assert (taken & relevant).sum() / taken.sum() == pytest.approx(cut["there"]["precision"][0])
    assert (taken & relevant).sum() / relevant.sum() == pytest.approx(cut["there"]["recall"][0])


def test_several_labels_give_the_probability_of_relevance(config: dict, tmp_path: Path) -> None:
    """Of a model with three classes, the expected grade is calibrated: one probability a pair, in its order."""
    rows = [
        {"query": f"{word} {i}", "pos": [f"{word} {word}", f"{word} sea", "hill"], "pos_scores": [2, 1, 0]}
        for i, word in enumerate(["sun", "moon", "rain", "star", "snow", "wind", "lake", "tree"] * 3)
    ]
    data = str(write_rows(tmp_path / "graded.jsonl", rows))
    folder = train(
        config, train_dataset=data, val_dataset=None, max_label=2, num_labels=3, loss_type="point_ce", epochs=6
    )
    calibrate(folder, [data], relevant_above=1)
    reranker = open_reranker(folder)
    assert reranker.calibration.relevant_above == 1
    assert reranker.calibration.about["relevant"] == len(rows)
    found = reranker.compute_score(PAIRS, calibrated=True)
    assert found.shape == (len(PAIRS),)
    grades = reranker.rank_scores(reranker.compute_score(PAIRS))
    assert torch.equal(grades.argsort(stable=True), found.argsort(stable=True))


def test_an_exported_model_keeps_it(tmp_path: Path) -> None:
    reranker = LLMDecoder.from_pretrained(make_decoder(tmp_path / "base"), head="yes_no", yes_word="yes", no_word="no")
    reranker.calibration = Calibration("platt", {"slope": 0.5, "intercept": -1.0})
    reranker.save_pretrained(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "exported")
    left, right = (
        open_reranker(tmp_path / name).compute_score(PAIRS, calibrated=True) for name in ("saved", "exported")
    )
    assert left.numpy() == pytest.approx(right.numpy(), abs=1e-5)


def test_a_model_without_calibration_says_so(model: Path) -> None:
    reranker = open_reranker(model)
    for ask in (
        lambda: reranker.compute_score(PAIRS, calibrated=True),
        lambda: reranker.score(PAIRS, calibrated=True),
        lambda: reranker.rerank("sun", ["sea"], calibrated=True),
    ):
        with pytest.raises(InputError, match=r"no calibration.*rankery calibrate --model"):
            ask()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "beta"}, "is of kind 'beta'; expected one of temperature, platt, isotonic"),
        ({"slope": -1}, "slope is no number, or not above 0"),
        ({"intercept": "x"}, "intercept is no number"),
        ({"relevant_above": None}, "relevant_above is None"),
        ({"kind": "isotonic", "scores": [1, 0], "probabilities": [0, 1]}, "do not rise"),
        ({"kind": "isotonic", "scores": [0, 1], "probabilities": [0, 2]}, "do not rise"),
        ({"kind": "isotonic", "scores": [], "probabilities": []}, "are no lists of numbers"),
    ],
)
def test_a_damaged_calibration_does_not_load(model: Path, change: dict, message: str) -> None:
    contract = json.loads((model / "rankery.json").read_text())
    contract["calibration"] = {"kind": "platt", "slope": 1.0, "intercept": 0.0, "relevant_above": 0.0, **change}
    (model / "rankery.json").write_text(json.dumps(contract))
    with pytest.raises(InputError) as caught:
        open_reranker(model)
    assert message in str(caught.value)
    assert "rankery calibrate again" in str(caught.value)


def test_what_is_refused(model: Path, dev: str, bert: Path, tmp_path: Path) -> None:
    """Nothing is written, and nothing scored where the folder says no."""
    checkpoint = next((model.parent / "checkpoints").glob("checkpoint_*"))
    few = str(make_data(tmp_path / "few.jsonl", 4))
    before = (model / "rankery.json").read_bytes()
    for folder, data, options, message in (
        (bert, dev, {}, "holds no rankery.json"),
        (checkpoint / "model", dev, {}, "belongs to a checkpoint"),
        (model, few, {}, "has 4 queries; expected at least 5"),
        (model, dev, {"relevant_above": 1}, "no document has a label above 1"),
        (model, dev, {"relevant_above": -1}, "every document has a label above -1"),
        (
            model,
            dev,
            {"precision": 0, "recall": 2},
            "precision is 0; expected a number above 0 and up to 1\nrecall is 2",
        ),
        (model, dev, {"min_label": float("nan"), "seed": -1}, "min_label is nan; expected a finite number\nseed is -1"),
        (model, dev, {"html": dev, "overwrite": True}, "dev.jsonl: is input; choose another place"),
        (model, str(tmp_path / "none.jsonl"), {}, "does not exist"),
    ):
        with pytest.raises(InputError) as caught:
            calibrate(folder, [data], **options)
        assert message in str(caught.value)
    assert (model / "rankery.json").read_bytes() == before
    calibrate(model, [dev])
    with pytest.raises(InputError, match="has a calibration; --overwrite"):
        calibrate(model, [dev])
    first = (model / "rankery.json").read_bytes()
    calibrate(model, [dev], overwrite=True)
    assert (model / "rankery.json").read_bytes() == first


def test_what_a_page_does_not_replace(model: Path, dev: str) -> None:
    """A page in the model's folder is as good as anywhere."""
    before = (model / "rankery.json").read_bytes()
    with pytest.raises(InputError, match=r"rankery.json: is input; choose another place"):
        calibrate(model, dev, html=model / "rankery.json", overwrite=True)
    assert (model / "rankery.json").read_bytes() == before
    calibrate(model, dev, html=model / "calibration.html")
    calibrate(model, dev, html=model / "calibration.html", overwrite=True)
    assert ".." not in (model / "calibration.html").read_text()


def test_labels_that_are_scores_want_a_threshold(model: Path, tmp_path: Path) -> None:
    rows = [{"query": f"sun {i}", "pos": ["sun", "sea", "hill"], "pos_scores": [0.9, 0.2, 0.0]} for i in range(6)]
    data = write_rows(tmp_path / "soft.jsonl", rows)
    with pytest.raises(InputError, match="the labels are scores; expected relevant_above"):
        calibrate(model, data)
    assert calibrate(model, data, relevant_above=0.5).relevant == len(rows)


def test_scores_that_are_no_numbers_are_named(model: Path, dev: str) -> None:
    spoil(model, "snow")
    with pytest.raises(InputError, match=r"not finite, the first at \S+dev\.jsonl:\d+, query '"):
        calibrate(model, dev)


def test_scores_that_fall_with_relevance(model: Path, dev: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(dev).read_text().splitlines()]
    turned = [{"query": row["query"], "pos": row["neg"], "neg": row["pos"]} for row in rows]
    with pytest.raises(InputError, match="do not rise with relevance"):
        calibrate(model, [str(write_rows(tmp_path / "turned.jsonl", turned))])


def test_a_precision_out_of_reach_is_said(model: Path, tmp_path: Path) -> None:
    """Two documents of the same text, one relevant: no threshold takes one without the other, but by rounding."""
    rows = [
        {"query": word, "pos": [word], "neg": [word, "hill"]}
        for word in ("sun", "moon", "rain", "star", "snow", "wind")
    ]
    said = calibrate(model, [str(write_rows(tmp_path / "same.jsonl", rows))], precision=0.9)
    assert re.search(r"no threshold reaches precision 0\.9 on this data: the most is 0\.[56]", str(said))
    assert open_reranker(model).calibration.about["thresholds"][0]["at"] is None


def test_copies_load_and_older_contracts_too(model: Path, dev: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "older")
    assert open_reranker(tmp_path / "older").calibration is None
    calibrate(model, [dev])
    contract = json.loads((model / "rankery.json").read_text())
    assert contract["format_version"] == 1


def test_base_models_are_not_calibrated(tmp_path: Path, dev: str) -> None:
    folder = make_bert(tmp_path / "base")
    with pytest.raises(InputError, match="save the model with rankery first"):
        calibrate(folder, [dev])
