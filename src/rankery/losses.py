"""Losses: pure functions (logits, targets) -> (sum, count), in fp32 whatever the precision of the logits.

Contract: the sum runs over the micro-batch's examples; the caller divides once, by the count of the whole step on all
processes, so that no cut changes the loss. Pair- and listwise losses will take a third argument, the groups.
Rejected: means, which weigh a small micro-batch as much as a large one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# Shapes: B pairs, C classes.
Loss = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]


def point_ce(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Cross-entropy of each pair.

    One label, logits [B]: binary cross-entropy on soft labels, -t log s - (1 - t) log(1 - s) with s = sigmoid(logit)
    (the specification's point_ce). Several labels, logits [B, C]: -log softmax(logits)[class] with class = t (C - 1).

    Args:
        logits: [B] or [B, C], any float dtype.
        targets: [B] in [0, 1].
    """
    logits, targets = logits.float(), targets.float()
    if logits.dim() == 1:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), len(targets)
    classes = (targets * (logits.shape[-1] - 1)).round().long()
    return F.cross_entropy(logits, classes, reduction="sum"), len(targets)


def point_mse(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Squared error of each pair, (sigmoid(logit) - t)^2 (the specification's point_mse, on scores in [0, 1]).

    Args:
        logits: [B], any float dtype.
        targets: [B] in [0, 1].
    """
    return F.mse_loss(logits.float().sigmoid(), targets.float(), reduction="sum"), len(targets)


LOSSES: dict[str, Loss] = {"point_ce": point_ce, "point_mse": point_mse}
