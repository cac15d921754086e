"""The exactness matrix: every engine, each kind of model and precision, in real launches of two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import launch, write_rows
from engine_cell import COLUMNS, LAUNCH_FILES, PRECISIONS, make_material, run_cell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_material(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("engine", ["single", *LAUNCH_FILES])
def test_engine_is_exact(folder: Path, engine: str, column: str, precision: str) -> None:
    """Losses, gradient norms and weights of one process; the final model; resumption, also after SIGKILL in a save."""
    outcome = run_cell(folder, engine, column, precision)
    assert outcome.equal(precision), outcome
    assert outcome.resumed_exactly, outcome


def test_zero_3_trains_in_two_processes(folder: Path) -> None:
    """The one cell that every `make test` runs."""
    outcome = run_cell(folder, "zero3", "decoder", "no")
    assert outcome.equal("no"), outcome
    assert outcome.resumed_exactly, outcome


@pytest.mark.slow
@pytest.mark.parametrize("launch_file", [LAUNCH_FILES[name] for name in ("fsdp2", "zero1", "zero2", "zero3")])
def test_gradients_accumulate_in_fp32(config: dict, tmp_path: Path, launch_file: str) -> None:
    """512 equal micro-batches a process have the mean gradient of one; a sum in bf16 would stand still after 256.

    A power of two: a weight of 1 / 320 would be rounded in bf16.
    """
    norms = []
    for pairs in (2, 1024):
        data = write_rows(tmp_path / f"{pairs}.jsonl", [{"query": "sun", "pos": ["moon sea"]}] * pairs)
        exact = {"hidden_dropout": 0, "attention_dropout": 0, "mixed_precision": "bf16", "epochs": 1, "token_budget": 1}
        own = {"train_dataset": data, "val_dataset": "", "batch_size": pairs // 2, "output_dir": tmp_path / str(pairs)}
        words = [f"{key}={value}" for key, value in {**config, **exact, **own}.items()]
        done = launch(launch_file, *words, RANKERY_CPU_ENGINES="1")
        assert done.returncode == 0, done.stdout + done.stderr
        (row,) = (json.loads(line) for line in (tmp_path / str(pairs) / "metrics.jsonl").open())
        norms.append(row["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
