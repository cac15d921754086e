"""Labels of more than two grades: what losses make of them, what is said of it, and what a run goes on with."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_rows
from safetensors.torch import load_file

from rankery import InputError, train
from rankery.checking.check import check
from rankery.config import load_config
from rankery.data.encoding import logit
from rankery.losses import listwise_ce, listwise_ce_top, listwise_kl
from rankery.objective import LOSSES
from rankery.training.engine import start_engine
from rankery.training.run import Run, build

WORDS = ("sun", "moon", "sea", "rain", "hill")


def labelled(path: Path, grades: Sequence[float], queries: int = 1, **others: object) -> str:
    """Queries whose documents have these labels."""
    rows = [
        {
            "query": f"sun {i}",
            "pos": [f"{word} {i}" for word in WORDS[: len(grades)]],
            "pos_scores": list(grades),
            **others,
        }
        for i in range(queries)
    ]
    return str(write_rows(path, rows))


def built(config: dict, **changes: object) -> Run:
    parsed = load_config(config, {"val_dataset": None, **changes})
    return build(parsed, start_engine(parsed))


def loss_on(run: Run, logits: Sequence[float]) -> float:
    """The loss of the data's first query, if the model gave these logits."""
    targets = torch.from_numpy(run.train_data.targets(np.arange(len(logits))))
    return run.objective.mean(torch.tensor(logits), targets, [len(logits)])


def test_each_grade_is_learnt_against_the_lower_ones() -> None:
    """By hand: two documents of grade 2 of 2, one of grade 1, two of grade 0."""
    s, t = [2.0, 0.5, 1.0, -1.0, 0.0], [1.0, 1.0, 0.5, 0.0, 0.0]
    below_top = math.exp(1.0) + math.exp(-1.0) + math.exp(0.0)
    top = sum(math.log(math.exp(x) + below_top) - x for x in s[:2]) / 2
    middle = math.log(math.exp(1.0) + math.exp(-1.0) + math.exp(0.0)) - 1.0
    total, count = listwise_ce(torch.tensor(s), torch.tensor(t), [5])
    assert (float(total), int(count)) == (pytest.approx((top + 0.5 * middle) / 1.5, rel=1e-6), 1)
    assert float(listwise_ce_top(torch.tensor(s), torch.tensor(t), [5])[0]) == pytest.approx(top, rel=1e-6)


def test_a_relevant_document_is_not_pushed_below_one_that_is_not() -> None:
    """Of equal scores, the gradient raises the middle grade above the lowest; the top grade alone does not tell them apart."""
    logits, targets = torch.zeros(3, requires_grad=True), torch.tensor([1.0, 0.5, 0.0])
    listwise_ce(logits, targets, [3])[0].backward()
    top, middle, lowest = logits.grad.tolist()
    assert top < middle < lowest
    alone = torch.zeros(3, requires_grad=True)
    listwise_ce_top(alone, targets, [3])[0].backward()
    assert alone.grad[1] == alone.grad[2] > 0


def test_two_grades_have_one_loss_in_both_forms() -> None:
    torch.manual_seed(0)
    sizes = (4, 7, 2, 9)
    for grade in (1.0, 0.5, 1 / 3):
        logits, targets = torch.randn(sum(sizes), requires_grad=True), (torch.rand(sum(sizes)) < 0.4) * grade
        (total, count), (top, top_count) = (form(logits, targets, sizes) for form in (listwise_ce, listwise_ce_top))
        assert count == top_count
        torch.testing.assert_close(total, top)
        one, other = (torch.autograd.grad(value, logits)[0] for value in (total, top))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_nothing_waits_for_a_device() -> None:
    for form in (listwise_ce, listwise_ce_top):
        logits = torch.zeros(9, device="meta", requires_grad=True)
        total, count = form(logits, torch.zeros(9, device="meta"), (4, 5))
        total.backward()
        assert count.device.type == logits.grad.device.type == "meta"


def test_the_form_is_that_of_the_data(config: dict, tmp_path: Path) -> None:
    """Two grades keep the arithmetic that they had, so that runs on them resume to the bit."""

    def form(name: str, grades: Sequence[float], **changes: object) -> object:
        data = labelled(tmp_path / f"{name}.jsonl", grades)
        settings = {
            "train_dataset": data,
            "loss_type": "listwise_ce",
            "output_dir": str(tmp_path / name),
            "max_label": 2.0,
        }
        return built(config, **settings, **changes).objective.terms[0][2]

    assert form("graded", [2, 1, 0]) is LOSSES["listwise_ce"] is listwise_ce
    assert form("two", [1, 0, 0]) is form("other_two", [2, 1, 1]) is listwise_ce_top
    assert form("top", [2, 1, 0], listwise_grades="top") is listwise_ce_top


def test_kl_wants_probabilities_in_proportion_to_gains(config: dict, tmp_path: Path) -> None:
    def run(name: str, grades: Sequence[float], low: float, high: float, **changes: object) -> Run:
        data = labelled(tmp_path / f"{name}.jsonl", grades)
        settings = {"train_dataset": data, "loss_type": "listwise_kl", "min_label": low, "max_label": high}
        return built(config, **settings, output_dir=str(tmp_path / name), **changes)

    graded = run("graded", [3, 1, 0, 0], 0, 3)
    learnt = torch.from_numpy(graded.train_data.targets(np.arange(4)))[:, 1].softmax(dim=0)
    assert learnt.tolist() == pytest.approx([0.75, 0.25, 0.0, 0.0], abs=1e-6)
    assert loss_on(graded, [math.log(3), 0.0, -30.0, -30.0]) == pytest.approx(0.0, abs=1e-4)
    flat = run("flat", [3, 1, 0, 0], 0, 3, teacher_temperature=2.0)
    wanted = np.array([3**0.5, 1.0]) / (3**0.5 + 1)
    scores = [*np.log(wanted).tolist(), -30.0, -30.0]
    assert loss_on(flat, scores) == pytest.approx(0.0, abs=5e-3)
    from_one = run("from_one", [4, 2, 1, 1], 1, 4)
    assert np.array_equal(from_one.train_data.targets(np.arange(4)), graded.train_data.targets(np.arange(4)))
    # What stays as it was: the top grade alone, two grades, and a teacher's scores.
    for name, grades, changes in (
        ("top", [2, 1, 0], {"listwise_grades": "top"}),
        ("two", [2, 0, 0], {}),
        ("scores", [1.5, 1, 0], {}),
    ):
        targets = run(name, grades, 0, 2, **changes).train_data.targets(np.arange(3))
        assert np.array_equal(targets[:, 1], logit(targets[:, 0])), name


def test_a_teachers_logits_stand_beside_grades(config: dict, tmp_path: Path) -> None:
    data = labelled(tmp_path / "data.jsonl", [2, 1, 0], pos_logits=[3.0, 4.0, -1.0])
    run = built(config, train_dataset=data, loss_type="listwise_kl", max_label=2.0)
    assert run.train_data.targets(np.arange(3))[:, 1].tolist() == [3.0, 4.0, -1.0]
    assert "grades" not in run.summary
    teacher = torch.tensor([3.0, 4.0, -1.0])
    assert loss_on(run, [0.0, 1.0, 2.0]) == pytest.approx(
        float(listwise_kl(torch.tensor([0.0, 1.0, 2.0]), teacher, [3])[0])
    )


@pytest.mark.parametrize("loss", ["lambda_rank", "listwise_ce", "listwise_kl", "pairwise_ranknet", "point_ce"])
def test_gains_begin_at_min_label(config: dict, tmp_path: Path, loss: str) -> None:
    """Labels of 1 to 5 are those of 0 to 4."""
    found = []
    for low in (0, 1):
        data = labelled(tmp_path / f"{low}.jsonl", [low + grade for grade in (4, 2, 3, 0, 1)])
        settings = {"train_dataset": data, "loss_type": loss, "min_label": float(low), "max_label": low + 4.0}
        found.append(
            loss_on(built(config, **settings, output_dir=str(tmp_path / f"out{low}")), [0.3, 2.0, -1.0, 0.5, 1.0])
        )
    assert found[0] == found[1] > 0


def test_it_is_said_at_the_start_and_by_check(config: dict, tmp_path: Path) -> None:
    data = labelled(tmp_path / "graded.jsonl", [2, 1, 1, 0], queries=3)
    settings = {**config, "train_dataset": data, "max_label": 2.0}
    both = built(settings, loss_type={"listwise_ce": 1.0, "listwise_kl": 1.0})
    for name in ("listwise_ce", "listwise_kl"):
        assert f"{name}: 3 grades, each against the lower ones, by its gain (listwise_grades=top learns" in both.summary
    top = built(settings, loss_type="listwise_ce", listwise_grades="top", output_dir=str(tmp_path / "top"))
    assert "listwise_ce: 3 grades, a query's highest alone (listwise_grades=gain learns" in top.summary
    others = built(settings, loss_type="list_mle", output_dir=str(tmp_path / "others"))
    binary = labelled(tmp_path / "binary.jsonl", [1, 0, 0])
    two = built(settings, loss_type="listwise_ce", train_dataset=binary, output_dir=str(tmp_path / "two"))
    assert "grades" not in others.summary + two.summary
    finding = check(data, max_label=2.0).finding("grades")
    assert finding is not None
    assert (finding.count, finding.of, finding.matters) == (6, 12, False)
    assert "listwise_grades=top: a query's highest alone" in finding.advice
    assert check(binary).finding("grades") is None
    soft = labelled(tmp_path / "soft.jsonl", [0.9, 0.5, 0.1])
    assert check(soft).finding("grades") is None


def test_the_option_belongs_to_its_losses(config: dict) -> None:
    with pytest.raises(
        InputError, match="listwise_grades is top, but loss_type is 'point_ce'; it belongs to listwise_ce and"
    ):
        load_config(config, {"listwise_grades": "top"})
    assert load_config(config, {"listwise_grades": "top", "loss_type": "listwise_kl"}).listwise_grades == "top"


@pytest.mark.parametrize("loss", ["listwise_ce", "listwise_kl"])
def test_a_run_ends_with_the_loss_that_it_began_with(
    config: dict, tmp_path: Path, loss: str, capsys: pytest.CaptureFixture
) -> None:
    """Also one that began before there was a choice: its run.json does not know the key."""
    data = labelled(tmp_path / "graded.jsonl", [2, 1, 1, 0, 0], queries=8)
    settings = {
        **config,
        "train_dataset": data,
        "val_dataset": None,
        "max_label": 2.0,
        "loss_type": loss,
        "batch_size": 4,
    }
    finals = {}
    for form in ("gain", "top"):
        whole = train(settings, output_dir=str(tmp_path / form), listwise_grades=form).parent
        cut = tmp_path / f"{form}_cut"
        shutil.copytree(whole, cut)
        shutil.rmtree(cut / "model")
        shutil.rmtree(cut / "checkpoints" / "checkpoint_4")
        run = json.loads((cut / "run.json").read_text())
        if form == "top":
            del run["config"]["listwise_grades"], run["digest"]  # an older rankery knew neither
            (cut / "run.json").write_text(json.dumps(run))
        capsys.readouterr()
        train(settings, output_dir=str(cut), resume=True)
        assert ("a query's highest alone, as this run began" in capsys.readouterr().out) == (form == "top")
        one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, cut))
        assert all(torch.equal(one[name], other[name]) for name in one)
        finals[form] = one
    assert any(not torch.equal(finals["gain"][name], finals["top"][name]) for name in finals["gain"])
    with pytest.raises(InputError, match=r"resume: listwise_grades was 'gain' in \S+run.json, got 'top'"):
        train(settings, output_dir=str(tmp_path / "gain"), resume=True, listwise_grades="top")


def test_the_commands_of_the_page_run(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Those of docs/losses.md, with a tiny model."""
    from rankery.cli import main

    for name in ("config", "example_data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^rankery (train .*)$", (ROOT / "docs/losses.md").read_text(encoding="utf-8"), re.MULTILINE)
    for command in commands:
        small = ["epochs=1", f"model_name_or_path={bert}", "log_with=none", "max_len=64", "mixed_precision=no"]
        assert main([*command.split(), *small]) == 0
    said = re.findall(
        r"listwise_ce: 3 grades, (each against the lower ones|a query's highest alone)", capsys.readouterr().out
    )
    assert said == ["each against the lower ones", "a query's highest alone"]
