"""On torch's meta device nothing has a value: a tensor on another device, or a read that a GPU would wait for, raises there.

So these run what an accelerator runs, forward, losses and backward, the training step and both scoring loops, without one. Packed
pairs alone: of padded ones transformers itself asks whether any is padded, and waits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS
from test_packing import HEADS, LENGTHS, QUERIES, rows, rows_of_queries, scorer_of

from rankery import CrossEncoder, LLMDecoder
from rankery.config import load_config
from rankery.data.collate import Batch, pack
from rankery.models import varlen
from rankery.models.layouts import DECODERS, ENCODERS
from rankery.models.packing import PREFIX
from rankery.models.scorer import Scorer
from rankery.objective import LOSSES, Objective
from rankery.training import validation
from rankery.training.run import Run, rehearsal
from rankery.training.step import step_batches, train_step

META = torch.device("meta")
SIZES = (3, 2, 4)
PAIRS = [(WORDS[i // 10], " ".join(WORDS[: i % 11 + 1])) for i in range(60)]
YES_NO = {"head": "yes_no", "yes_word": "yes", "no_word": "no"}


def passes(scorer: Scorer, batch: Batch) -> None:
    """Forward, every loss, backward."""
    targets = torch.rand(len(LENGTHS), 2)
    targets[:, 0].round_()
    for name, loss in LOSSES.items():
        objective = Objective(((name, 1.0, loss),))
        counts = objective.counts(targets, SIZES)
        scorer.zero_grad()
        logits = scorer(*batch.to(META).arguments)
        assert logits.shape == (len(LENGTHS),)
        objective(logits, targets.to(META), SIZES, counts).backward()
        assert all(p.grad.device == META for p in scorer.parameters() if p.grad is not None)


@pytest.mark.parametrize("inner", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_forward_every_loss_and_backward(kind: str, inner: str) -> None:
    if kind == "gemma2" and inner == "sdpa":
        pytest.skip("its capped attention is plain products only")
    scorer = scorer_of(kind, inner)
    scorer.model.set_attn_implementation(PREFIX + inner)
    scorer.to(META).train()
    passes(scorer, pack(rows()))
    if kind in DECODERS:
        passes(scorer, pack(rows_of_queries(), HEADS, QUERIES))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama", "mistral"])
def test_through_the_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if varlen.kernel() is None:
        pytest.skip("before torch 2.10")
    monkeypatch.setattr(varlen, "DEVICES", ("meta",))
    monkeypatch.setattr(varlen, "_usable", lambda *kind: True)
    scorer = scorer_of(kind, "sdpa").bfloat16()
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    batch = pack(rows(), chunked=False).to(META)
    scorer.to(META)(*batch.arguments).sum().backward()
    assert "rows" not in batch.packing.__dict__


class OnDevice(torch.optim.SGD):
    """In place of a fused optimiser, which meta has not; its update is one kernel that looks at found_inf."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, lr=0.1)
        self.defaults["fused"] = True

    def step(self, closure: Any = None) -> None:
        assert self.found_inf.device == META


def moved(run: Run) -> Run:
    run.engine.device = META
    run.engine.held = run.engine.held.to(META)
    run.model.to(META)
    run.optimizer = OnDevice(run.model.parameters())
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_type": "listwise_ce", "token_budget": 40, "gradient_checkpointing": True},  # groups in two passes
        {"max_grad_norm": 0},
    ],
)
def test_a_training_step_and_a_validation(
    config: dict, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with rehearsal(load_config({**config, **changes})) as run:
        moved(run)
        for number in range(2):
            outcome = train_step(run, number, step_batches(run)[number])
        assert outcome.numbers.values.device == META
        assert outcome.updated
        monkeypatch.setattr(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape))  # the one wait, at the end
        data = run.val_data
        logits = validation.validation_logits(run.engine, run.model, data, run.plan.budget, run.reranker.layout, 1)
        assert logits.shape == (len(data),)
        assert not np.isnan(logits.numpy()).any()


@pytest.mark.parametrize("head", ["encoder", "score", "yes_no"])
def test_the_scoring_loop(head: str, bert: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if head == "encoder":
        reranker: Any = CrossEncoder.from_pretrained(bert, seed=0)
    else:
        reranker = LLMDecoder.from_pretrained(llama, seed=0, **(YES_NO if head == "yes_no" else {}))
    reranker.scorer.to(META)
    read: list[int] = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: read.append(len(self)) or torch.zeros(self.shape))
    assert torch.equal(reranker.compute_score(PAIRS), torch.zeros(60))
    assert read == [60], "it waits once"
