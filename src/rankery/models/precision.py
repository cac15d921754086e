"""The product that gives the logits, in fp32 whatever the precision of the rest, so that half precision keeps the order.

Contract: in fp32 nothing changes, bit for bit; in bf16 the logits are fp32 numbers, those of other programs up to bf16's rounding.
Cost: a copy of the head's weights in fp32, B x H x L products. Rejected: heads loaded and kept in fp32, which sharded engines cast
with the rest, and a second pass over the states behind the model, which wants to know every family's head.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F

# Shapes: B pairs, H width of the states, L labels.


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on a device, here and now; None where it is off."""
    kind = device.type
    enabled = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else None


class FinalLinear(torch.nn.Linear):
    """A linear layer that gives logits, in `full_product`. Another class alone: names, weights and hooks are the layer's."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return full_product(hidden, self.weight, self.bias)


def keep_order(model: Any) -> None:
    """Makes the last linear layer of a classification head a `FinalLinear`; one in 4 bits, or of another class, stays as it is.

    It is the last that stands outside the base model and gives as many numbers as there are labels.
    """
    inside = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    heads = [
        module
        for module in model.modules()
        if type(module) in (torch.nn.Linear, FinalLinear)
        and module.out_features == model.config.num_labels
        and id(module) not in inside
    ]
    if heads:
        heads[-1].__class__ = FinalLinear


def full_product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """hidden weight' + bias in fp32 (fp64 where the weights are), whatever precision its factors have, and under autocast."""
    dtype, device = torch.promote_types(weight.dtype, torch.float32), hidden.device
    with torch.autocast(device.type, enabled=False) if autocast_dtype(device) else nullcontext():
        return F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
