"""`rankery tune`: what it measures, what it keeps, and what a training makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from rankery import InputError, train
from rankery.cli import main
from rankery.models.scorer import Scorer
from rankery.training.tune import fastest, tune
from rankery.training.tuned import TUNED_FILE, read_tuned


@pytest.fixture
def tunable(config: dict, tmp_path: Path) -> dict:
    return {**config, "dataset_cache_dir": str(tmp_path / "cache"), "batch_size": 40}


def test_smallest_of_the_fast_ones_wins() -> None:
    assert fastest({512: [90.0, 91, 92], 1024: [99.0, 98.5, 10], 2048: [100.0, 1, 101], 4096: [98.0, 97, 99]}) == 1024
    assert fastest({512: [1.0]}) == 512


def test_trainings_take_what_was_kept(tunable: dict, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in tunable.items()]
    assert main(["tune", *words]) == 0
    said = capsys.readouterr().out
    (budget,) = read_tuned(tmp_path / "cache" / TUNED_FILE).values()
    assert f"{budget:,}" in said
    assert "<- kept" in said
    assert not Path(tunable["output_dir"]).exists()
    marked = dict.fromkeys(read_tuned(tmp_path / "cache" / TUNED_FILE), 777)
    (tmp_path / "cache" / TUNED_FILE).write_text(json.dumps(marked))
    train(tunable)
    assert "micro-batches of 777 tokens" in capsys.readouterr().out
    written = Path(tunable["output_dir"]) / "config.yaml"
    assert yaml.safe_load(written.read_text())["token_budget"] == 777
    # Of another precision nothing is known; a budget that is given wins; a rerun does not look.
    train(tunable, mixed_precision="bf16", output_dir=str(tmp_path / "bf16"))
    train(tunable, token_budget=555, output_dir=str(tmp_path / "given"))
    (tmp_path / "cache" / TUNED_FILE).write_text("{broken")
    train(str(written), output_dir=str(tmp_path / "rerun"))
    said = capsys.readouterr().out
    assert "micro-batches of 2048 tokens" in said
    assert "micro-batches of 555 tokens" in said
    assert "micro-batches of 777 tokens" in said
    train(tunable, output_dir=str(tmp_path / "damaged"))
    assert "micro-batches of 2048 tokens" in capsys.readouterr().out


def test_budgets_beyond_the_memory_are_left_out(tunable: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    original, most = Scorer.forward, [520]

    def limited(model: Scorer, input_ids: torch.Tensor, *rest: object) -> torch.Tensor:
        if input_ids.numel() > most[0]:
            raise torch.OutOfMemoryError("injected")
        return original(model, input_ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Scorer, "forward", limited)
    said: list[str] = []
    settings = {**tunable, "batch_size": 80, "max_len": 40}
    assert tune(settings, say=said.append) == 512
    assert len(said) == 3, said  # a head, one budget, the file
    most[0] = 60  # a pair, as is scored when a model is opened, and no more
    with pytest.raises(InputError, match="512 tokens does not fit into memory; set a smaller max_len"):
        tune(settings, say=said.append)
