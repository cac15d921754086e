"""The way to torch's variable-length kernel, which runs on GPUs alone: here a plain function of its signature stands in for it.

What the kernel itself computes is checked on GPUs by benchmarks/gpu.py, and at its first use everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from test_packing import LENGTHS, logits_and_gradients, rows, scorer_of

from rankery.data.collate import pack, pad
from rankery.data.packing import packing_of
from rankery.models import varlen
from rankery.models.layouts import DECODERS, ENCODERS
from rankery.models.packing import PREFIX

KINDS = [kind for kind in (*ENCODERS, *DECODERS) if kind != "gemma2"]  # its capped attention is plain products only
calls: list[int] = []


def attention(
    q: Any, k: Any, v: Any, starts: list[int], seen: Callable[[torch.Tensor], torch.Tensor], scale: float
) -> Any:
    """Each stretch of [N, H, D] by torch's own function, with masks by how far back a key is."""
    calls.append(len(q))
    out = []
    for start, end in itertools.pairwise(starts):
        at = torch.arange(end - start)
        piece = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        mask = seen(at[:, None] - at)
        done = torch.nn.functional.scaled_dot_product_attention(*piece, attn_mask=mask, scale=scale, enable_gqa=True)
        out.append(done.transpose(0, 1))
    return torch.cat(out)


def new(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """The signature of torch 2.12."""
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q.equal(cu_seq_k)
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa == (key.shape[1] != query.shape[1])
    back, forth = (1 << 30 if w < 0 else w for w in window_size)
    width = query.shape[-1] ** -0.5 if scale is None else scale
    return attention(query, key, value, cu_seq_q.tolist(), lambda d: (d <= back) & (-d <= forth), width)


def old(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False,
    return_aux: Any = None,
) -> Any:  # fmt: skip
    """The signature of torch 2.10: no windows, no scale, as many heads of keys as of queries."""
    assert key.shape[1] == query.shape[1]
    seen = (lambda d: d >= 0) if is_causal else (lambda d: torch.ones_like(d, dtype=torch.bool))
    return attention(query, key, value, cu_seq_q.tolist(), seen, query.shape[-1] ** -0.5)


def without_bounds(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """A broken kernel: one pair sees the next."""
    whole = torch.tensor([0, len(query)], dtype=torch.int32)
    size = len(query)
    return new(query, key, value, whole, whole, size, size, scale=scale, window_size=window_size, enable_gqa=enable_gqa)


@pytest.fixture(autouse=True)
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(varlen, "takes", lambda device, dtype: True)
    varlen._usable.cache_clear()
    calls.clear()
    yield
    varlen._usable.cache_clear()


@pytest.mark.parametrize("kernel", [new, old])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_padded(kind: str, kernel: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(kind, "sdpa")
    expected, gradients = logits_and_gradients(scorer, pad(rows(), 1))
    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    logits, packed = logits_and_gradients(scorer, pack(rows()))
    layers = calls.count(sum(LENGTHS))
    windows = {"modernbert": 1, "mistral": 3, "qwen2": 2}.get(kind, 0)  # layers of three
    assert layers == (3 if kernel is new else 3 - windows)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, atol=2e-6 * scale, rtol=1e-4)


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of("bert", "sdpa")
    expected, _ = logits_and_gradients(scorer, pad(rows(), 1))
    monkeypatch.setattr(varlen, "kernel", lambda: without_bounds)
    scorer.model.set_attn_implementation(PREFIX + "sdpa")
    logits, _ = logits_and_gradients(scorer, pack(rows()))
    assert calls == [15]  # its comparison, once
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_what_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: new)
    x = torch.randn(1, 2, 24, 8)
    packing, shared = packing_of([12, 12]), packing_of([12, 20], [8, 8], [0, 0])
    assert varlen.varlen_attention(x, x, x, packing, True, None, {"scaling": 0.5}) is not None
    assert varlen.varlen_attention(x, x, x, packing, True, None, {"dropout": 0.1}) is None
    assert varlen.varlen_attention(x, x, x, packing, True, None, {"softcap": 30.0}) is None
    assert varlen.varlen_attention(x, x, x, shared, True, None, {}) is None


def test_cpus_have_no_such_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x = torch.randn(1, 2, 24, 8)
    assert varlen.varlen_attention(x, x, x, packing_of([24]), True, None, {}) is None
