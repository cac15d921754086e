"""Losses: hand-computed values, properties, gradients, precision."""

from __future__ import annotations

import math

import pytest
import torch

from rankery.losses import LOSSES, point_ce, point_mse


def test_hand_computed_values() -> None:
    logits, targets = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.25])
    s = 1 / (1 + math.exp(-2))
    total, count = point_ce(logits, targets)
    assert count == 2
    assert float(total) == pytest.approx(math.log(2) - 0.25 * math.log(s) - 0.75 * math.log(1 - s), rel=1e-6)
    total, count = point_mse(logits, targets)
    assert float(total) == pytest.approx(0.25 + (s - 0.25) ** 2, rel=1e-6)


def test_classes() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    total, count = point_ce(logits, torch.tensor([0.5, 1.0]))
    expected = math.log(math.e + 2) - 0 + math.log(2 + math.exp(3)) - 3
    assert (float(total), count) == (pytest.approx(expected, rel=1e-6), 2)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_add_up_over_cuts(name: str) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(16), torch.rand(16)
    whole, count = LOSSES[name](logits, targets)
    parts = [LOSSES[name](a, b) for a, b in zip(logits.split(5), targets.split(5), strict=True)]
    assert sum(n for _, n in parts) == count
    torch.testing.assert_close(sum(total for total, _ in parts), whole)


def test_gradient_of_point_ce_is_score_minus_target() -> None:
    logits = torch.randn(8, dtype=torch.float32, requires_grad=True)
    targets = torch.rand(8)
    point_ce(logits, targets)[0].backward()
    torch.testing.assert_close(logits.grad, torch.sigmoid(logits.detach()) - targets)


@pytest.mark.parametrize("name", LOSSES)
def test_computed_in_fp32(name: str) -> None:
    total, _ = LOSSES[name](torch.randn(4, dtype=torch.bfloat16), torch.rand(4))
    assert total.dtype == torch.float32
    extreme, _ = LOSSES[name](torch.tensor([-200.0, 200.0]), torch.tensor([1.0, 0.0]))
    assert torch.isfinite(extreme)
