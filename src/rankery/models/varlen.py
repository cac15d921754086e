"""torch's variable-length attention on NVIDIA and AMD GPUs: packed pairs attend as they lie, without a place of padding.

Contract: `varlen_attention` gives what the chunks of packing.py give, or None where the kernel does not do what is asked: fp32, CPUs,
shared queries, dropout on probabilities, capped scores. Before it is first used for a kind of input, the kernel's result and
gradients are compared with the plain formula on three short pairs; where it fails or differs, it is not used. Under autocast it
computes in autocast's precision, as torch's own attention does, whatever precision each input came in (rotary positions are
fp32). Cost: that comparison, once. Rejected: flash-attn's package as a dependency, which is the same kernel and compiles for an
hour; the comparison amid the caller's pass, whose modes (inference, autocast, checkpointing) would decide for the whole process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

from rankery.data.packing import Packing, packing_of
from rankery.models.precision import autocast_dtype

# Shapes: N tokens, H heads (of keys and values there may be fewer), D width of a head.
HALF = (torch.float16, torch.bfloat16)
DEVICES = ("cuda",)
WIDEST = 256  # head width that flash attention takes


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, causal: bool, window: int | None,
    options: Mapping[str, Any],
) -> torch.Tensor | None:  # fmt: skip
    """Attention of [1, H, N, D] within each pair: [1, N, H, D], or None.

    `window`: how many tokens back (and forth, if not causal) a token sees, itself included; None: all.
    """
    cast, width = autocast_dtype(query.device), query.shape[-1]
    dtype = query.dtype if cast is None else cast
    if (
        packing.trunks
        or options.get("dropout")
        or options.get("softcap")
        or width > WIDEST
        or not takes(query.device, dtype)
    ):
        return None
    if cast is None and not query.dtype == key.dtype == value.dtype:
        return None
    if not _usable(query.device, dtype, width, query.shape[1] // key.shape[1], causal, window is not None):
        return None
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    return _call(q, k, v, packing, causal, window, options.get("scaling") or width**-0.5)[None]


def takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed pairs will go to the kernel there, unless a family asks for what it has not: nobody needs their chunks."""
    return device.type in DEVICES and dtype in HALF and kernel() is not None


@lru_cache(maxsize=1)
def kernel() -> Callable[..., torch.Tensor] | None:
    """torch's function; None before torch 2.10."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn  # type: ignore[no-any-return]


def _call(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, causal: bool, window: int | None,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    """Of [N, H, D]: the arguments have changed their names since torch 2.10."""
    function = kernel()
    assert function is not None
    known = inspect.signature(function).parameters
    back = -1 if window is None else window - 1
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = (back, 0 if causal else back)
    elif window is None:
        options["is_causal"] = causal
    else:
        raise NotImplementedError("this torch's variable-length attention has no windows")
    if "scale" in known:
        options["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    if key.shape[1] < query.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    return function(query, key, value, packing.bounds, packing.bounds, packing.longest, packing.longest, **options)


@lru_cache(maxsize=64)
def _usable(
    device: torch.device, dtype: torch.dtype, width: int, heads_a_key: int, causal: bool, windowed: bool
) -> bool:
    """Whether the kernel agrees with the plain formula there, forward and backward, to the precision of the dtype.

    Found out on a thread of its own, where torch's modes are as they are at first.

    Raises:
        torch.OutOfMemoryError: which says nothing about the kernel, and is not remembered.
    """
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(_agrees, device, dtype, width, heads_a_key, causal, windowed).result()


def _agrees(
    device: torch.device, dtype: torch.dtype, width: int, heads_a_key: int, causal: bool, windowed: bool
) -> bool:
    packing = packing_of([5, 1, 9]).to(device)
    window, tokens = 3 if windowed else None, 15
    # No random numbers: dropout masks are drawn from the same generator.
    waves = [torch.arange(tokens * heads * width, device=device).sin() for heads in (heads_a_key, 1, 1)]
    rows = [wave.view(tokens, -1, width).to(dtype) for wave in waves]

    def called(*rows: torch.Tensor) -> torch.Tensor:
        return _call(rows[0], rows[1], rows[2], packing, causal, window, width**-0.5)

    def plain(*rows: torch.Tensor) -> torch.Tensor:
        return _plain(rows[0], rows[1], rows[2], [5, 1, 9], causal, window)

    try:
        got, expected = (_with_gradients(way, [x.clone().requires_grad_() for x in rows]) for way in (called, plain))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return all(torch.allclose(a.float(), b.float(), atol=0.05, rtol=0.05) for a, b in zip(got, expected, strict=True))


def _with_gradients(function: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad((out.float() * out.detach().float()).sum(), inputs)]


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], causal: bool, window: int | None
) -> torch.Tensor:
    """softmax(q k' / sqrt(D)) v of each pair, in fp32."""
    out = []
    for q, k, v in zip(*(x.float().split(lengths) for x in (query, key, value)), strict=True):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        at = torch.arange(len(q), device=q.device)
        distance = at[:, None] - at
        seen = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            seen = seen & (distance.abs() < window)
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(out)
