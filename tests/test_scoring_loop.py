"""The loop of prediction: what does not fit is cut again, and what an accelerator would wait for is done on a thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS

from rankery import CrossEncoder, LLMDecoder
from rankery.models import reranker as module
from rankery.models.ahead import ahead
from rankery.models.reranker import Reranker

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
