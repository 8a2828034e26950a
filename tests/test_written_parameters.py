"""Parameters that a model's own code changes by hand: right, or refused with what works."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rank_threads import run_on_threads
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.planning import plan
from workbench.workload import Workload

STEPS = 4


class Inside(nn.Linear):
    """Normalises its own weight before use: not the same if done twice, or on a share."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.div_(1.0 + self.weight.norm())
        return F.linear(x, self.weight, self.bias)


class ThroughData(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.mul_(0.9)
        return super().forward(x)


class Assigned(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data / (1.0 + self.weight.data.norm())
        return super().forward(x)


class Drawn(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        nn.init.normal_(self.weight)
        return super().forward(x)


class OfSamples(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.bias.mul_(0.9).add_(x.mean())
        return super().forward(x)


class Outside(nn.Module):
    """Clamps the weight of a layer before that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.second.weight.mul_(0.9).clamp_(-0.2, 0.2)
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def halved(module: nn.Module, _: Any) -> None:
    with torch.no_grad():
        module.weight.div_(1.0 + module.weight.norm())  # type: ignore[union-attr, operator]


def hooked() -> nn.Module:
    model = around(nn.Linear)
    model[2].register_forward_pre_hook(halved)  # type: ignore[index, operator, union-attr]
    return model


def around(kind: type[nn.Linear]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), kind(6, 4), nn.Tanh(), nn.Linear(4, 3))


MODELS = {
    "inside": partial(around, Inside),
    "through data": partial(around, ThroughData),
    "assigned": partial(around, Assigned),
    "outside": Outside,
    "hook": hooked,
    "drawn": partial(around, Drawn),
    "of samples": partial(around, OfSamples),
}
SAME_EVERYWHERE = ["inside", "through data", "assigned", "outside", "hook"]


def work(name: str) -> Workload:
    source = np.random.default_rng(0)
    torch.manual_seed(0)
    return Workload(
        model=MODELS[name](),
        data=(source.normal(size=(10, 4)), source.integers(0, 3, 10)),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        batch_size=5,
        dtype="float64",
    )


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("data=2", {}),
        ("tensor=2", {}),
        ("sharded=2", {"stage": 1}),
        ("pipeline=2", {"accumulate": 2}),
    ],
)
def test_every_rank_writes_the_same_to_a_whole_parameter(
    name: str, strategy: str, options: dict[str, Any]
) -> None:
    made = work(name)
    one = run_on_threads(made, "serial", STEPS, accumulate=options.get("accumulate", 1))
    many = run_on_threads(made, strategy, STEPS, **options)
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
@pytest.mark.parametrize("stage", [2, 3])
def test_a_share_cannot_be_changed_by_hand(name: str, stage: int) -> None:
    with pytest.raises(PlanError) as refused:
        plan(work(name), "sharded=2", stage=stage)
    said = str(refused.value)
    assert f"sharded=2 with stage={stage} gives ranks shares" in said
    assert "weight' by hand" in said
    assert said.endswith("use stage=1, or data=2.")


@pytest.mark.parametrize("name", ["drawn", "of samples"])
@pytest.mark.parametrize("strategy", ["data=2", "sharded=2", "tensor=2", "pipeline=2"])
def test_what_ranks_would_write_differently_is_refused(name: str, strategy: str) -> None:
    with pytest.raises(PlanError, match=r"layer '2' .* by hand .* ranks would get .* use serial"):
        plan(work(name), strategy)
    assert plan(work(name), "serial").ranks == 1


def test_reading_and_making_arrays_of_a_parameter_is_no_write() -> None:
    class Reads(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scaled = self.weight.detach().clone().mul_(2.0)
            return F.linear(x, self.weight * scaled.sum().relu_(), self.bias)

    MODELS["reads"] = partial(around, Reads)
    made = work("reads")
    one, many = (run_on_threads(made, s, STEPS) for s in ("serial", "sharded=2"))
    for key, value in one.state.items():
        np.testing.assert_allclose(many.state[key], value, atol=1e-9, err_msg=key)
