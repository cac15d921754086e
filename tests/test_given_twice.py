"""A key or an option that is there twice is an error: every reader takes one of the two in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankery import InputError
from rankery.cli import main
from rankery.config import load_config, parse_overrides


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["lr=1e-3", "lr=2e-3"], "lr is set twice"),
        (["lr=1e-3", "--lr=1e-3"], "lr is set twice"),
        (["labels.lr=1e-3", "labels.lr=1e-3"], "labels.lr is set twice"),
        (["loss_type={point_ce: 1, point_ce: 2}"], "loss_type is .*which sets point_ce twice"),
    ],
)
def test_on_the_command_line(words: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=f"command line: {problem}"):
        parse_overrides(words)
    assert parse_overrides(["lr=1e-3", "labels.lr=2e-3", "loss_type={point_ce: 1}"])


def test_two_names_of_one_key_on_the_command_line() -> None:
    with pytest.raises(InputError, match="both epoch and epochs are set"):
        load_config({}, parse_overrides(["epoch=1", "epochs=2"]))


def test_in_a_file(tmp_path: Path) -> None:
    """At any depth, all at once; what a merge overrides is no repetition."""
    file = tmp_path / "a.yaml"
    file.write_text("lr: 1\nloss_type:\n  point_ce: 1\n  listwise_ce: 1\n  point_ce: 2\nlr: 2\n")
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert sorted(caught.value.problems) == [
        f"{file}:5: point_ce is set twice; keep one",
        f"{file}:6: lr is set twice; keep one",
    ]
    file.write_text(
        "model_name_or_path: x\ntrain_dataset: y\noutput_dir: z\nlr_groups: &a {b: 1.0}\nloss_type: {<<: *a, b: 2.0}\n"
    )
    with pytest.raises(InputError, match="loss_type is 'b'"):
        load_config(file)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config", "a", "--config", "b"],
        ["evaluate", "--data", "a", "--data", "b"],
        ["evaluate", "--seed", "1", "--seed=1"],
        ["score", "--output", "a", "--output", "b"],
        ["rerank", "--model", "a", "--model", "b"],
        ["check", "a", "--max-len", "1", "--max-len", "2"],
    ],
)
def test_options(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "is there twice; expected it once" in capsys.readouterr().err
