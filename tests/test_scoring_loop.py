"""The loop of prediction: what does not fit is cut again, and what an accelerator would wait for is done on a thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, make_bert, make_data
from hypothesis import given
from hypothesis import strategies as st

from rankery import CrossEncoder, LLMDecoder, train
from rankery.data import packing
from rankery.data.packing import chunk_points
from rankery.data.plan import MICRO_BATCH_OVERHEAD, cut_points
from rankery.models import reranker as module
from rankery.models.ahead import ahead
from rankery.models.reranker import Reranker
from rankery.training import step, validation

PAIRS = [(WORDS[i // 10], " ".join(WORDS[: i % 11 + 1])) for i in range(60)]


@pytest.fixture(params=["packed", "padded", "shared"])
def reranker(request: pytest.FixtureRequest, bert: Path, llama: Path) -> Reranker:
    made: Reranker = (
        LLMDecoder.from_pretrained(llama) if request.param == "shared" else CrossEncoder.from_pretrained(bert, seed=0)
    )
    made.packing = "off" if request.param == "padded" else "auto"
    assert made.layout == request.param
    return made


def test_what_does_not_fit_into_memory_is_cut_again(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = reranker.compute_score(PAIRS)
    logits = Reranker._logits
    sizes: list[int] = []

    def small_device(self: Reranker, scorer: Any, batch: Any) -> torch.Tensor:
        sizes.append(batch.input_ids.numel())
        if batch.input_ids.numel() > 50:
            raise torch.OutOfMemoryError("injected")
        return logits(self, scorer, batch)

    monkeypatch.setattr(Reranker, "_logits", small_device)
    for batch_size in (None, 40):
        torch.testing.assert_close(reranker.compute_score(PAIRS, batch_size=batch_size), expected, atol=1e-5, rtol=1e-5)
    assert max(sizes) > 400
    with pytest.raises(torch.OutOfMemoryError):
        reranker.compute_score([("sun", " ".join(WORDS * 3))])


def test_all_but_the_model_runs_on_a_thread(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on accelerators: the thread that scores neither tokenises nor plans nor lays out."""
    where: dict[str, set[str]] = {}

    def watched(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            where.setdefault(name, set()).add(threading.current_thread().name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, call)

    expected = reranker.compute_score(PAIRS)
    for owner, name in (
        (module, "encode_pairs"),
        (module, "met"),
        (module, "deal"),
        (Reranker, "_batch"),
        (Reranker, "_logits"),
    ):
        watched(owner, name)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 16)
    monkeypatch.setattr(module, "ahead", lambda pieces, threaded: ahead(pieces, True))
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, atol=1e-5, rtol=1e-5)
    assert where.pop("_logits") == {"MainThread"}
    assert len(where) == 4
    assert all("MainThread" not in names for names in where.values())


def test_rounded_lengths_end_where_the_table_of_positions_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor cores want multiples of 8, and a model may have 21 positions: in scoring, training and validation."""
    base = make_bert(tmp_path / "base", max_position_embeddings=21)
    reranker = CrossEncoder.from_pretrained(base, seed=0)
    reranker.packing = "off"
    expected = reranker.compute_score(PAIRS)
    for place in (module, step, validation):
        monkeypatch.setattr(place, "pad_multiple", lambda device: 8)
    torch.testing.assert_close(reranker.compute_score(PAIRS), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        reranker.compute_score(PAIRS, max_length=19), reranker.compute_score(PAIRS, 1, 19), atol=1e-5, rtol=1e-5
    )
    data = str(make_data(tmp_path / "data.jsonl"))
    train(
        {"model_name_or_path": str(base), "train_dataset": data, "val_dataset": data, "output_dir": str(tmp_path / "out")},
        max_len=21, packing="off", epochs=1, log_with="none",
    )  # fmt: skip


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60))
def test_chunks_of_many_rows_are_searched_over_lengths(lengths: list[int]) -> None:
    """About as good as the search over rows, which takes a hundred milliseconds for a large GPU's micro-batch."""
    falling = np.sort(np.array(lengths))[::-1]

    def cost(points: Any) -> int:
        return sum(int(part[0]) * len(part) + MICRO_BATCH_OVERHEAD for part in np.split(falling, points))

    total = sum(lengths)
    few = chunk_points(falling, total)
    assert few.tolist() == list(cut_points(np.ones(len(falling), dtype=np.int64), falling, total))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "ROWS_SEARCHED", 0)
        many = chunk_points(falling, total)
    assert all(falling[point - 1] != falling[point] for point in many)
    assert cost(many) <= cost(few) + MICRO_BATCH_OVERHEAD
