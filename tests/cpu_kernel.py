"""A stand-in for the GPU's flash attention, registered for CPUs under torch's own operators: `varlen_attn` runs whole, and exactly.

It takes what the kernel takes, half precision of one dtype and int32 bounds, and refuses the rest as loudly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankery.models import varlen

HAS_OPERATOR = varlen.kernel() is not None and "window_size_left" in str(
    torch.ops.aten._flash_attention_forward.default._schema
)


@contextmanager
def cpu_kernel() -> Iterator[list[torch.dtype]]:
    """While it lasts, packed pairs go to the kernel on CPUs; gives the dtypes of its calls, the comparison's among them."""
    calls: list[torch.dtype] = []
    library = torch.library.Library("aten", "IMPL")

    def forward(query: Any, key: Any, value: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, *rest: Any, **more: Any) -> Any:  # fmt: skip
        _check(query, key, value, cum_seq_q, max_q)
        calls.append(query.dtype)
        pieces = _pieces(query, key, value, cum_seq_q, rest[1], more)
        out = torch.cat([p @ v for p, _, _, v, _ in pieces], dim=1).transpose(0, 1).to(query.dtype)
        nothing = torch.zeros(query.shape[1], len(query))
        return out, nothing, torch.zeros(2, dtype=torch.int64), torch.zeros(0), torch.zeros(0)

    def backward(grad_out: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, *rest: Any, **more: Any) -> Any:  # fmt: skip
        found: list[list[torch.Tensor]] = [[], [], []]
        pieces = _pieces(query, key, value, cum_seq_q, rest[1], more)
        for (p, q, k, v, scale), piece in zip(pieces, _cut(grad_out, cum_seq_q), strict=True):
            towards = piece @ v.mT
            inner = p * (towards - (towards * p).sum(-1, keepdim=True)) * scale
            for into, gradient in zip(found, (inner @ k, inner.mT @ q, p.mT @ piece), strict=True):
                into.append(gradient)
        joined = [torch.cat(parts, dim=1).transpose(0, 1) for parts in found]
        # Heads that share a key add up.
        return tuple(
            gradient.unflatten(1, (x.shape[1], -1)).sum(2).to(x.dtype)
            for gradient, x in zip(joined, (query, key, value), strict=True)
        )

    devices = varlen.DEVICES
    try:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        varlen.DEVICES = (*devices, "cpu")
        varlen._usable.cache_clear()
        yield calls
    finally:
        varlen.DEVICES = devices
        varlen._usable.cache_clear()
        library._destroy()


def _check(query: Any, key: Any, value: Any, bounds: Any, longest: int) -> None:
    if query.dtype not in varlen.HALF or not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(
            f"FlashAttention only support fp16 and bf16 data type, got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if bounds.dtype != torch.int32 or longest != int(bounds.diff().max()):
        raise RuntimeError("cu_seqlens_q must have dtype int32, and max_seqlen_q be that of the longest")


def _cut(rows: torch.Tensor, bounds: torch.Tensor) -> list[torch.Tensor]:
    """Stretches of [N, H, D] as [H, n, D] in fp32."""
    return [rows[a:b].transpose(0, 1).float() for a, b in itertools.pairwise(bounds.tolist())]


def _pieces(query: Any, key: Any, value: Any, bounds: Any, causal: bool, options: dict[str, Any]) -> Iterator[Any]:
    """(softmax, q, k, v, scale) of each stretch, [H, n, n] and [H, n, D]."""
    scale = query.shape[-1] ** -0.5 if options.get("scale") is None else options["scale"]
    back, forth = (options.get(f"window_size_{side}") for side in ("left", "right"))
    heads = query.shape[1] // key.shape[1]
    for q, k, v in zip(*(_cut(x, bounds) for x in (query, key, value)), strict=True):
        k, v = (x.repeat_interleave(heads, dim=0) for x in (k, v))
        at = torch.arange(q.shape[1])
        distance = at[:, None] - at
        seen = (distance <= (back if back is not None and back >= 0 else len(at))) & (
            -distance <= (0 if causal else forth if forth is not None and forth >= 0 else len(at))
        )
        yield (q @ k.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1), q, k, v, scale
