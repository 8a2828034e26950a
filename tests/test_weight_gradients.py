"""Gradients of weights that add themselves up: the same sums as those of autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.layers import weight_gradients
from workbench.layers.weight_gradients import WeightGradients
from workbench.plan import memory
from workbench.workload import Workload


@pytest.fixture(autouse=True)
def _all_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_gradients, "LARGE_NUMEL", 0)


class Sums:
    """Where gradients go here: one sum per parameter."""

    def __init__(self) -> None:
        self.found: dict[int, Tensor] = {}

    def add(self, parameter: nn.Parameter, product: Any) -> bool:
        seen = id(parameter) in self.found
        room = self.found.setdefault(id(parameter), torch.full_like(parameter, torch.nan))
        product.write(room.detach(), seen)
        return True


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (partial(nn.Conv1d, 4, 6, 3, padding=1), (2, 4, 9)),
    "1d, same": (partial(nn.Conv1d, 4, 6, 4, padding="same", dilation=2), (2, 4, 9)),
    "2d": (partial(nn.Conv2d, 4, 6, 3), (2, 4, 7, 5)),
    "2d, strides and groups": (
        partial(nn.Conv2d, 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, bias=False),
        (2, 4, 7, 5),
    ),
    "2d, valid": (partial(nn.Conv2d, 4, 6, 3, padding="valid"), (2, 4, 7, 5)),
    "2d, reflected": (
        partial(nn.Conv2d, 4, 6, 3, padding=(1, 2), padding_mode="reflect"),
        (2, 4, 7, 5),
    ),
    "2d, one sample": (partial(nn.Conv2d, 4, 6, 3), (4, 7, 5)),
    "3d": (partial(nn.Conv3d, 2, 3, 2, dilation=(1, 2, 1)), (2, 2, 4, 5, 3)),
    "linear": (partial(nn.Linear, 4, 6), (3, 4)),
    "linear on sequences": (partial(nn.Linear, 4, 6, bias=False), (2, 5, 4)),
    "linear on one vector": (partial(nn.Linear, 4, 6), (4,)),
}


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_a_layer_gives_the_gradients_that_autograd_gives(name: str, later: bool) -> None:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = make().double()
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = [layer(x) for x in inputs]
    torch.stack([y.square().sum() for y in expected]).sum().backward()
    whole = {key: p.grad.clone() for key, p in layer.named_parameters()}
    of_inputs = [x.grad for x in inputs]
    layer.zero_grad()
    for x in inputs:
        x.grad = None

    weights, sums = WeightGradients(), Sums()
    weights.add = sums.add
    weights.watch(layer, halves=True)
    for x, y, of_x in zip(inputs, expected, of_inputs, strict=True):
        queue: WeightGradients.Queue = []
        result = layer(x)
        torch.testing.assert_close(result, y, rtol=0, atol=1e-12)
        with weights.collecting(queue if later else None):
            result.square().sum().backward()
        torch.testing.assert_close(x.grad, of_x, rtol=0, atol=1e-12)
        if name != "2d, one sample":
            assert layer.weight.grad is None
            assert len(queue) == later
        weights.work_off(queue)
    found = sums.found.get(id(layer.weight), layer.weight.grad)
    torch.testing.assert_close(found, whole["weight"], rtol=0, atol=1e-12)
    if "bias" in whole:
        torch.testing.assert_close(layer.bias.grad, whole["bias"], rtol=0, atol=1e-12)


def test_a_gradient_that_the_model_asks_for_itself_is_left_to_autograd() -> None:
    layer = nn.Linear(3, 1).double()
    plain = nn.Linear(3, 1).double()
    plain.load_state_dict(layer.state_dict())
    weights, sums = WeightGradients(), Sums()
    weights.add = sums.add
    weights.watch(layer, halves=False)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def penalty(of: nn.Linear) -> Tensor:
        (slope,) = torch.autograd.grad(torch.tanh(of(x)).sum(), x, create_graph=True)
        return slope.square().sum()

    penalty(plain).backward()
    loss = penalty(layer)
    assert not sums.found
    with weights.collecting():
        loss.backward()
    total = sum(t for t in (layer.weight.grad, sums.found.get(id(layer.weight))) if t is not None)
    torch.testing.assert_close(total, plain.weight.grad, rtol=0, atol=1e-12)


def test_a_hook_of_the_users_still_sees_the_gradient() -> None:
    layer, seen = nn.Linear(3, 2), []
    weights, sums = WeightGradients(), Sums()
    weights.add = sums.add
    weights.watch(layer, halves=False)
    layer.weight.register_hook(seen.append)
    with weights.collecting():
        layer(torch.ones(4, 3)).sum().backward()
    assert len(seen) == 1
    assert not sums.found


def test_in_bfloat16_by_autocast_a_layer_is_left_to_torch() -> None:
    layer = nn.Linear(3, 2)
    weights = WeightGradients()
    weights.watch(layer, halves=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(torch.ones(4, 3))
    assert result.dtype == torch.bfloat16
    with weights.collecting():
        result.sum().backward()
    assert layer.weight.grad is not None


class Tied(nn.Module):
    """One weight multiplies twice, and once more outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(torch.tanh(self.b(x)))
        return hidden + x @ self.a.weight


@pytest.mark.parametrize("strategy", ["data=2", "data=3", "sharded=2", "data=2,sharded=2"])
def test_micro_batches_add_up_to_the_weights_of_one_process(strategy: str) -> None:
    source = np.random.default_rng(0)
    made = Workload(
        model=Tied(),
        data=(source.normal(size=(20, 4)), source.normal(size=(20, 4))),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        batch_size=7,
        dtype="float64",
    )
    options = {"stage": 1} if "sharded" in strategy else {}
    one = run_on_threads(made, "serial", 4)
    many = run_on_threads(made, strategy, 4, accumulate=3, **options)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)


def test_micro_batches_of_a_pipeline_give_a_weight_its_gradient_in_few_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four at a time: the sum of a large weight is read and written as often as there are those."""
    written: list[tuple[int, int]] = []
    rows = weight_gradients._OfLinear._rows

    def noted(self: Any) -> tuple[Tensor, Tensor]:
        written.append((self.x.shape[1] * self.grad.shape[1], len(self.x)))
        return rows(self)

    monkeypatch.setattr(weight_gradients._OfLinear, "_rows", noted)
    monkeypatch.setattr(memory, "LARGE_NUMEL", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    source = np.random.default_rng(0)
    work = Workload(
        model=model,
        data=(source.normal(size=(12, 5)), source.normal(size=(12, 3))),
        loss=nn.MSELoss(),
        batch_size=12,
        dtype="float64",
    )
    run = run_on_threads(work, "pipeline=2", 1, accumulate=6)
    # Six micro-batches of two samples: eight rows at once, then four.
    assert sorted(written) == [(21, 4), (21, 8), (35, 4), (35, 8)]
    one = run_on_threads(work, "serial", 1)
    for name, value in one.state.items():
        np.testing.assert_allclose(run.state[name], value, rtol=0, atol=1e-12, err_msg=name)
    kept = run.plan.memory(1).activations_bytes
    monkeypatch.setattr(memory, "LARGE_NUMEL", 1 << 16)
    assert kept - run.plan.memory(1).activations_bytes == 2 * 3 * (7 + 3) * 8


@pytest.mark.parametrize("strategy", ["pipeline=2", "pipeline=2,tensor=2", "pipeline=2,channel=2"])
@pytest.mark.parametrize("groups", [4, 12])
def test_halves_of_grouped_convolutions_that_are_split(strategy: str, groups: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=groups), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(12, 3, 1), nn.Flatten(), nn.Linear(75, 3))
    source = np.random.default_rng(0)
    work = Workload(
        model=model,
        data=(source.normal(size=(8, 3, 5, 5)), source.normal(size=(8, 3))),
        loss=nn.MSELoss(),
        batch_size=8,
        dtype="float64",
    )
    want = run_on_threads(work, "serial", 3)
    got = run_on_threads(work, strategy, 3, schedule="zb-h1", accumulate=4)
    for key, value in want.state.items():
        np.testing.assert_allclose(got.state[key], value, atol=1e-9, err_msg=key)
