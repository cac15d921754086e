"""What an engine does of its own: overflows under loss scaling, errors that all processes raise."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from rankery.errors import InputError
from rankery.training.engine import Engine, repeated_layers

ALONE = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0, is_main_process=True)


def test_overflow_skips_the_update_and_halves_the_scale() -> None:
    """fp16's loss scaling; the arithmetic here is fp32, what is checked is who decides and what is left alone."""
    engine = Engine(ALONE, "single", "fp16")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, loss = torch.optim.SGD([weight], lr=1.0), torch.tensor(1.0)
    engine.backward((weight * torch.tensor([1.0, 2.0, 2.0])).sum(), is_last=True)
    before = engine.scaler.get_scale()
    assert weight.grad is not None
    assert weight.grad.equal(before * torch.tensor([1.0, 2.0, 2.0]))
    assert engine.update(optimizer, 1.5, loss) == (pytest.approx(3.0), True)
    torch.testing.assert_close(weight.detach(), 1 - torch.tensor([0.5, 1.0, 1.0]))  # clipped from 3 to 1.5
    kept = weight.detach().clone()
    weight.grad = torch.full((3,), float("inf"))
    norm, updated = engine.update(optimizer, 1.5, loss)
    assert (norm, updated) == (float("inf"), False)
    assert weight.equal(kept)
    assert engine.scaler.get_scale() == before / 2
    weight.grad = None
    engine.backward(weight.sum(), is_last=True)
    assert engine.update(optimizer, 0.0, loss)[1]
    weight.grad = torch.ones(3)
    kept = weight.detach().clone()
    assert not engine.update(optimizer, 1.5, torch.tensor(float("nan")))[1]
    assert weight.equal(kept)


@pytest.mark.parametrize("kind", ["single", "fsdp2"])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("which", ["loss", "gradient"])
def test_what_is_not_finite_updates_nothing(kind: str, optimizer_class: type, which: str) -> None:
    """Nor does any step after it: the host may look later. The optimiser's state stays as it was, too."""
    engine, odd = Engine(ALONE, kind, "no"), float("nan")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = optimizer_class([weight], lr=1.0, fused=kind == "single")
    weight.grad = torch.ones(3)
    assert engine.update(optimizer, 1.0, torch.tensor(1.0))[1]
    kept, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    assert not weight.equal(torch.ones(3))
    weight.grad = torch.tensor([1.0, odd if which == "gradient" else 1.0, 1.0])
    engine.update(optimizer, 1.0, torch.tensor(odd if which == "loss" else 1.0))
    weight.grad = torch.ones(3)
    engine.update(optimizer, 1.0, torch.tensor(1.0))
    assert weight.equal(kept)
    for name, value in state["state"].get(0, {}).items():
        assert value is None or torch.equal(torch.as_tensor(value), torch.as_tensor(optimizer.state[weight][name]))


def test_errors_are_raised_by_all() -> None:
    engine = Engine(ALONE, "single", "no")

    def fails() -> None:
        raise InputError("full")

    for run in (engine.on_main, engine.everywhere):
        with pytest.raises(InputError, match="full") as caught:
            run(fails)
        assert caught.value.shared
    assert engine.everywhere(lambda: 3) == 3


def test_layers_are_the_longest_stack() -> None:
    short, long = torch.nn.ModuleList([torch.nn.Linear(1, 1)]), torch.nn.ModuleList([torch.nn.ReLU() for _ in range(3)])
    assert repeated_layers(torch.nn.ModuleDict({"a": short, "b": long})) == list(long)
