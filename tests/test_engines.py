"""The exactness matrix: every engine, each kind of model and precision, in real launches of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
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
