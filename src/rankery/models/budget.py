"""What a device computes well: tokens a micro-batch, attention kernel, memory settings. Pure functions of model and device.

Rejected: timing budgets at start; noise would choose different cuts in different runs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from functools import lru_cache
from typing import Any

import torch

from rankery.models.packing import INNER, PREFIX

CPU_BUDGET = 2048  # activations of a small encoder stay near the caches, and cuts by length stay fine
CPU_WHOLE_BYTES = 2 << 30  # a group whose activations are smaller is computed whole: its parts would be computed twice
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


def default_token_budget(config: Any, device: torch.device, training: bool, largest: int = 0) -> int:
    """Tokens of a micro-batch (padding included) for a transformers config on a device.

    The memory of the machine counts on a GPU only; CPUs with less of it would cut another way, and round differently.

    Args:
        config: of the model.
        device: that computes.
        training: whether activations are kept for a backward pass.
        largest: tokens of the largest example that should not be split.
    """
    text = config.get_text_config()
    # A family that names neither (Perceiver) counts as one of BERT's size.
    layers, width = getattr(text, "num_hidden_layers", 12), getattr(text, "hidden_size", 768)
    if device.type == "cpu":
        # In fp32 a token takes about 100 bytes for each unit of the model's width in each layer (benchmarks/group_memory.py).
        return max(CPU_BUDGET, min(largest, CPU_WHOLE_BYTES // (100 * width * layers)))
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 8 << 30
    # About 34 half-precision activations of the model's width a layer are kept for the backward pass (Korthikanti et
    # al. 2022, section 4); a third of the memory is theirs. Prediction keeps a few layers' worth only.
    bytes_per_token = 34 * width * (layers if training else 4)
    fitting = memory // 3 // bytes_per_token
    return max(2048, min(1 << 17, 1 << (int(fitting).bit_length() - 1)))


def computes_bf16() -> bool:
    """Whether this machine's accelerator has bfloat16, or else its CPU is faster in it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return _cpu_is_faster_in_bf16()


@lru_cache(maxsize=1)
def _cpu_is_faster_in_bf16() -> bool:
    """A measurement of a few milliseconds: with the same instructions one CPU is twice as fast as in fp32, another half as fast.

    Nothing in between is known, so that noise does not decide; it chooses precisions for people who named none.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(8):
            begun = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - begun)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32]


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """transformers' attention implementation that is fastest there.

    torch's fused CPU kernel loses to plain matrix products in bf16, forward and backward (docs/decisions.md).
    """
    return "eager" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def best_attention(model: Any, device: torch.device, dtype: torch.dtype, packed: bool) -> str:
    """`attention_for`, where a transformers model has that implementation, one that packs if `packed`; the model's own where
    somebody chose it, or where its class has no choice."""
    own = str(model.config._attn_implementation)
    current, wanted = own.removeprefix(PREFIX), attention_for(device, dtype)
    if current not in INNER or not model._can_set_attn_implementation():
        return own
    inner = wanted if wanted == "eager" or getattr(model, "_supports_sdpa", False) else current
    return PREFIX + inner if packed else inner


def set_attention(model: Any, device: torch.device, dtype: torch.dtype, packed: bool) -> None:
    """Switches a transformers model to its `best_attention`."""
    best = best_attention(model, device, dtype, packed)
    if best != model.config._attn_implementation:
        model.set_attn_implementation(best)


def pad_multiple(device: torch.device) -> int:
    """Sequence lengths are rounded up to this: tensor cores want 8, CPUs nothing."""
    return 1 if device.type == "cpu" else 8


def keep_large_blocks() -> bool:
    """Makes glibc keep freed large blocks, instead of returning each and faulting its pages in again; True when done.

    RANKERY_KEEP_BLOCKS=0 leaves the allocator alone. Other C libraries and systems are left alone too.
    """
    if os.environ.get("RANKERY_KEEP_BLOCKS", "1") == "0" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) and libc.mallopt(M_TRIM_THRESHOLD, 1 << 30))
