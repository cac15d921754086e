"""Optimiser, learning-rate schedule and clipping.

Contract: the schedule is a pure function of the update's number, so that processes, resumption and skipped updates cannot
shift it. Rejected: scheduler objects, which step once a process under some engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import nn

from rankery.config import TrainConfig
from rankery.errors import InputError


def lr_factor(update: int, updates: int, warmup_proportion: float) -> float:
    """Share of the peak learning rate at update 0 ... updates - 1.

    Linear warm-up over ceil(updates x warmup_proportion) updates, then cosine decay to zero (Loshchilov and Hutter 2017,
    without restarts). The first update already learns.
    """
    warmup = math.ceil(updates * warmup_proportion)
    if update < warmup:
        return (update + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (update - warmup) / max(1, updates - warmup)))


def build_optimizer(model: nn.Module, config: TrainConfig, fused: bool) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or plain SGD; no weight decay on biases and norms; each group knows its peak lr.

    Raises:
        InputError: a pattern of lr_groups that finds no parameter.
    """
    if problems := unused_groups(model, config.lr_groups):
        raise InputError(problems)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = [pattern for pattern in config.lr_groups if re.search(pattern, name)]
        lr = config.lr_groups[found[-1]] if found else config.lr
        decay = config.weight_decay if parameter.dim() > 1 else 0.0  # biases and norm weights have one dimension
        groups.setdefault((lr, decay), []).append(parameter)
    settings = [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": d} for (lr, d), p in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, fused=fused)
    return torch.optim.AdamW(settings, lr=config.lr, fused=fused)


def unused_groups(model: nn.Module, lr_groups: Mapping[str, float]) -> list[str]:
    """A problem for each pattern of lr_groups that finds no parameter."""
    names = [name for name, _ in model.named_parameters()]
    return [
        f"lr_groups: {pattern!r} finds no parameter; names look like {names[-1]}"
        for pattern in lr_groups
        if not any(re.search(pattern, name) for name in names)
    ]


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def gradient_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """2-norm of all gradients together, over all shards."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
