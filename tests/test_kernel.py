"""torch's variable-length attention itself, on a kernel that tests/cpu_kernel.py registers for CPUs: where it is called, and is right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cpu_kernel import HAS_OPERATOR, cpu_kernel
from test_packing import LENGTHS, logits_and_gradients, rows, scorer_of
from test_varlen import KINDS

from rankery.data.collate import pack, pad
from rankery.models import varlen
from rankery.models.packing import PREFIX
from rankery.training.offload import activations_on_cpu

pytestmark = pytest.mark.skipif(not HAS_OPERATOR, reason="before torch 2.11 the operator has another signature")
LAYERS = 3


@pytest.fixture
def calls() -> Iterator[list[torch.dtype]]:
    with cpu_kernel() as made:
        yield made


def layers_called(calls: list[torch.dtype]) -> int:
    """Calls since the last look, without those of the comparisons."""
    made = len(calls) - varlen._usable.cache_info().currsize
    calls[:] = [torch.bfloat16] * varlen._usable.cache_info().currsize
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_used_wherever_it_may_be(kind: str, calls: list[torch.dtype]) -> None:
    """Scoring comes first, in inference mode; then training, under autocast, where a decoder's q and k are fp32 and v bf16."""
    scorer = scorer_of(kind, "sdpa")
    expected, gradients = logits_and_gradients(scorer, pad(rows(), 1))
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    batch = pack(rows(), chunked=False)

    def close(logits: torch.Tensor) -> None:
        assert float((logits.float() - expected).abs().max()) < 0.08 * float(expected.abs().max())

    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        close(scorer(*batch.arguments))
    assert layers_called(calls) == LAYERS
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, found = logits_and_gradients(scorer, batch)
    close(logits)
    assert layers_called(calls) == LAYERS
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert all(float((found[name] - gradient).abs().max()) < 0.08 * scale for name, gradient in gradients.items())
    with torch.inference_mode():
        close(scorer.bfloat16()(*batch.arguments))
    assert layers_called(calls) == LAYERS
    assert "rows" not in batch.packing.__dict__, "chunks were made that nobody needs"


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("way", ["checkpointing", "offload", "no_grad"])
def test_whatever_surrounds_its_first_call(kind: str, way: str, calls: list[torch.dtype]) -> None:
    scorer = scorer_of(kind, "sdpa").bfloat16().train()
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    if way == "checkpointing":
        scorer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with activations_on_cpu(way == "offload", torch.device("cpu")), torch.set_grad_enabled(way != "no_grad"):
        logits = scorer(*pack(rows(), chunked=False).arguments)
    assert layers_called(calls) == LAYERS
    if way != "no_grad":
        logits.sum().backward()
        assert layers_called(calls) == (LAYERS if way == "checkpointing" else 0)


def test_memory_that_runs_out_is_not_remembered(calls: list[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of("bert", "sdpa").bfloat16()
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    batch = pack(rows(), chunked=False)

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patched:
        patched.setattr(varlen, "_plain", full)
        with pytest.raises(torch.OutOfMemoryError):
            scorer(*batch.arguments)
    calls.clear()
    scorer(*batch.arguments)
    assert layers_called(calls) == LAYERS


def test_fp32_makes_chunks_where_they_are_asked_for(calls: list[torch.dtype]) -> None:
    scorer = scorer_of("bert", "sdpa")
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    expected, _ = logits_and_gradients(scorer, pack(rows()))
    logits, _ = logits_and_gradients(scorer, pack(rows(), chunked=False))
    assert torch.equal(logits, expected)
    assert not calls
    assert len(expected) == len(LENGTHS)
