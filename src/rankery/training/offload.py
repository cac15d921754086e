"""Activations in the CPU's memory between the forward and the backward pass, under any engine.

Contract: as torch.autograd.graph.save_on_cpu, and bit for bit the gradients of a pass without it; weights stay where they are,
which autograd saves beside the activations. Rejected: save_on_cpu itself, which copies every weight of the model at every
micro-batch, and under FSDP2 the gathered ones.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def activations_on_cpu(wanted: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Surrounds a forward pass; nothing unless wanted."""
    if not wanted:
        return nullcontext()
    pinned = device.type != "cpu"  # page-locked memory: copies that do not wait for each other

    def pack(tensor: torch.Tensor) -> torch.Tensor | tuple[torch.device, torch.Tensor]:
        if is_weight(tensor):
            return tensor
        kept = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        kept.copy_(tensor.detach(), non_blocking=pinned)
        return tensor.device, kept

    def unpack(packed: torch.Tensor | tuple[torch.device, torch.Tensor]) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        there, kept = packed
        return kept.to(there, non_blocking=pinned)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def is_weight(tensor: torch.Tensor) -> bool:
    """A parameter, or a view of one; autocast's copies of them are activations to us."""
    base = tensor if tensor._base is None else tensor._base
    return isinstance(base, torch.nn.Parameter)
