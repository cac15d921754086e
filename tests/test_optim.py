"""Schedule and parameter groups: hand-computed values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rankery.config import TrainConfig
from rankery.errors import InputError
from rankery.training.optim import build_optimizer, gradient_norm, lr_factor, set_lr


def settings(**changes: object) -> TrainConfig:
    return TrainConfig(model_name_or_path="m", train_dataset="t", output_dir="o", **changes)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.classifier = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1)


def test_warm_up_is_linear_and_decay_a_cosine() -> None:
    factors = [lr_factor(update, 10, 0.2) for update in range(10)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[6] == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 8)))
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert 0 < factors[-1] < 0.05


def test_without_warm_up_the_decay_starts_at_once() -> None:
    assert lr_factor(0, 10, 0.0) == 1.0
    assert lr_factor(1, 10, 0.0) < 1.0


def test_biases_and_norms_do_not_decay() -> None:
    model = Small()
    optimizer = build_optimizer(model, settings(weight_decay=0.1), fused=False)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.1 if name in ("body.weight", "classifier.weight") else 0.0), name


def test_learning_rate_groups() -> None:
    model = Small()
    optimizer = build_optimizer(model, settings(lr=1e-4, lr_groups={"^classifier": 1e-3, "bias$": 5e-4}), fused=False)
    set_lr(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"classifier.weight": 5e-4, "classifier.bias": 2.5e-4, "body.bias": 2.5e-4, "body.weight": 5e-5}
    for name, rate in expected.items():
        assert rates[id(model.get_parameter(name))] == pytest.approx(rate), name
    with pytest.raises(InputError, match="'head' finds no parameter; names look like"):
        build_optimizer(model, settings(lr_groups={"head": 1.0}), fused=False)


def test_gradient_norm_is_that_of_all_gradients_together() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0]), torch.tensor([2.0])
    assert float(gradient_norm(parameters)) == pytest.approx(3.0)
