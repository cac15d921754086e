"""The machine that benchmarks run on: its name and versions, the rate of its matrix products, the memory of a process."""

from __future__ import annotations

import os
import platform
import resource
import time

import torch


def machine() -> str:
    """Machine and versions, for the record."""
    import sentence_transformers
    import transformers

    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, sentence-transformers {sentence_transformers.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


def matrix_rate(dtype: torch.dtype, device: str = "cpu", size: int = 2048, rounds: int = 5) -> float:
    """Floating-point operations a second of a square matrix product: the best of some."""
    left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        left @ right
        synchronize()
        times.append(time.perf_counter() - begun)
    return 2.0 * size**3 / min(times[1:])


def peak_memory() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize() -> None:
    """Waits for an accelerator's queue, so that what was asked of it is in the time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
