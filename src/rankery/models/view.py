"""A scorer as scoring needs it, whatever others do with it at the same time: in evaluation mode, with the fastest attention.

Contract: nothing that others see is changed, so that several threads may score while another one trains; weights are shared, and
seen as they are. Cost: nothing for a scorer that is so already; else a dictionary for each module, a millisecond for a model of 200.
Rejected: a switch to evaluation mode and back, under a lock too: a training step of another thread would run without dropout.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch

from rankery.models.budget import best_attention

M = TypeVar("M", bound=torch.nn.Module)
OWN_STATE = ("_parameters", "_buffers", "_modules")  # dictionaries by name


def scoring_view(scorer: M, device: torch.device, dtype: torch.dtype, packed: bool) -> M:
    """The scorer itself, or its weights behind modules of their own that are in evaluation mode and attend as is fastest there."""
    model: Any = scorer.model
    attention = best_attention(model, device, dtype, packed)
    as_it_is = attention == model.config._attn_implementation
    if as_it_is and not any(module.training or keeps_notes(module) for module in scorer.modules()):
        return scorer
    view = _twin(scorer, {}, {})
    if not as_it_is:
        view.model.set_attn_implementation(attention)  # type: ignore[union-attr, operator]
    return view


def keeps_notes(module: torch.nn.Module) -> bool:
    """Whether its forward pass writes into its buffers: rotary frequencies that follow the longest sequence seen."""
    kind = str(getattr(module, "rope_type", ""))
    return "dynamic" in kind or "longrope" in kind


def _twin(module: M, twins: dict[int, Any], configs: dict[int, Any]) -> M:
    """A module in evaluation mode with the same parameters, hooks and buffers, and a configuration of its own."""
    if id(module) in twins:
        return twins[id(module)]  # type: ignore[no-any-return]
    twin = twins[id(module)] = object.__new__(type(module))
    twin.__dict__.update(module.__dict__, training=False)
    twin.__dict__.update({name: dict(module.__dict__[name]) for name in OWN_STATE})
    for name, child in module._modules.items():
        twin._modules[name] = child if child is None else _twin(child, twins, configs)
    if keeps_notes(module):
        twin._buffers = {name: x if x is None else x.clone() for name, x in module._buffers.items()}
    if "config" in twin.__dict__:
        twin.__dict__["config"] = deepcopy(module.__dict__["config"], configs)
    return twin
