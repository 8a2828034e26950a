"""Pipelines cut through code: what it makes between two modules, and the nearest that works."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_pipeline import assert_equal, vector
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import PlanError
from workbench.models import ByteGPT, ResidualMLP
from workbench.plan import Plan
from workbench.planning import plan
from workbench.verify import verify
from workbench.workload import Workload


class Gated(nn.Module):
    """What a gate lets through is made by code at the start, and used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x)) * self.scale
        for layer in self.layers:
            x = F.gelu(layer(x))
        return gate * x


class FunctionalUNet(nn.Module):
    """All between convolutions is code, and every skip comes of it."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(1, 4), (4, 8), (8, 8), (16, 4), (8, 2)]
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(*s, 3, padding=1) for s in sizes)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.a(x))
        second = F.relu(self.b(F.max_pool2d(first, 2)))
        third = F.relu(self.c(F.max_pool2d(second, 2)))
        up = F.relu(self.d(torch.cat([F.interpolate(third, scale_factor=2), second], 1)))
        return self.e(torch.cat([F.interpolate(up, scale_factor=2), first], 1))


@pytest.mark.parametrize("strategy", ["pipeline=2", "pipeline=4", "data=2,pipeline=2"])
@pytest.mark.parametrize("recompute", ["no", "yes"])
def test_what_code_has_made_of_results_is_made_once_more(strategy: str, recompute: str) -> None:
    torch.manual_seed(0)
    found = assert_equal(vector(Gated(), 4), strategy, recompute=recompute)
    assert "result of gate" in {str(crossing.source) for crossing in found.crossings}


@pytest.mark.parametrize("strategy", ["pipeline=5", "pipeline=3,channel=2"])
def test_a_u_net_of_functions_is_cut_anywhere(strategy: str) -> None:
    torch.manual_seed(0)
    assert_equal(vector(FunctionalUNet(), 1, 8, 8, batch=4), strategy, accumulate=2)


class Chain(nn.Module):
    """Four layers in a row; what code makes of the first result is added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def kept(self, first: Tensor) -> Tensor:
        return torch.tanh(first * 2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        kept = self.kept(first)
        return self.d(self.c(self.b(first))) + kept


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Drawn(Chain):
    def kept(self, first: Tensor) -> Tensor:
        return F.dropout(first, 0.5)


class Masked(Chain):
    """A mask that is drawn once for all layers."""

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.rand(1, 4) > 0.5).to(x)
        return self.d(self.c(self.b(self.a(x) * mask) * mask) * mask) * mask


class OwnGradient(Chain):
    def kept(self, first: Tensor) -> Tensor:
        return Straight.apply(first)


class Written(Chain):
    """Code writes to what the first stage has sent, in a later one."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        second = self.b(first * 1)
        first.mul_(2)
        return self.d(self.c(second)) + first


class WrittenByAModule(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        second = self.b(first * 1)
        self.relu(first)
        return self.d(self.c(second)) + first


class Filled(Chain):
    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros_like(x)
        first = self.a(x)
        room[:, :2] = first[:, :2]
        return self.d(self.c(self.b(first))) + room


@pytest.mark.parametrize("split_at", ["b", "c", "d"])
@pytest.mark.parametrize("kind", [Chain, Written, WrittenByAModule])
def test_a_cut_is_exact_or_refused(kind: type[nn.Module], split_at: str) -> None:
    x = torch.randn(6, 4)
    proof = verify(kind(), x, strategy="pipeline=2", split_at=split_at)
    assert proof.same_result or "is written to" in (proof.refusal or ""), proof
    assert kind is not Chain or proof.same_result


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Drawn, "is drawn at random between two modules"),
        (OwnGradient, "is computed between two modules"),
        (Filled, "is filled between two modules"),
    ],
)
@pytest.mark.parametrize("split_at", ["b", "c", "d"])
def test_where_no_cut_can_be_carried_that_is_said_with_what_works(
    kind: type[nn.Module], why: str, split_at: str
) -> None:
    made = vector(kind(), 4)
    with pytest.raises(PlanError, match=why) as refused:
        plan(made, "pipeline=2", split_at=split_at)
    assert "and no other cut into 2 stages can be made; use tensor=2." in str(refused.value)
    assert plan(made, "tensor=2").ranks == 2
    with pytest.raises(PlanError, match=why):
        plan(made, "pipeline=2")


def test_a_mask_that_is_drawn_once_is_not_drawn_by_every_stage() -> None:
    made = vector(Masked(), 4)
    with pytest.raises(PlanError, match="drawn at random before it begins; use tensor=2"):
        plan(made, "pipeline=2")


@pytest.mark.parametrize("split_at", ["b,c", "b,d"])
def test_the_nearest_cut_that_is_named_works(split_at: str) -> None:
    made = vector(Written(), 4)
    with pytest.raises(PlanError, match=r"is written to.*nearest cut is split_at='c,d'"):
        plan(made, "pipeline=3", split_at=split_at)
    assert_equal(made, "pipeline=3", split_at="c,d")
    assert_equal(made, "pipeline=3")


@pytest.mark.parametrize(
    ("model", "shape", "strategy", "options", "use"),
    [
        (ResidualMLP(4, 5, 6, 2, 2), 4, "pipeline=4", {"schedule": "interleaved", "chunks": 3},
         "use chunks=2."),
        (ResidualMLP(4, 5, 6, 1, 2), 4, "pipeline=4", {"schedule": "interleaved"},
         "use schedule='1f1b', with one stage for each rank."),
        (nn.Linear(4, 1), 4, "pipeline=6", {}, "use data=6."),
        (nn.Linear(4, 1), 4, "pipeline=30", {}, "use serial."),
        (nn.Linear(4, 4), 4, "data=2,pipeline=2", {}, "use data=2,tensor=2."),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 4, "data=2,pipeline=3", {},
         "use data=2,pipeline=2."),
    ],
)  # fmt: skip
def test_instead_of_too_many_stages_what_is_named_works(
    model: nn.Module, shape: int, strategy: str, options: dict[str, Any], use: str
) -> None:
    made = vector(model, shape, batch=20)
    with pytest.raises(PlanError, match=f"at most; {re.escape(use)}") as refused:
        plan(made, strategy, **options)
    words = str(refused.value).rpartition("; use ")[2].rstrip(".")
    if words.startswith("chunks="):
        assert plan(made, strategy, **{**options, "chunks": words[-1]}).stages
    elif not words.startswith("schedule="):
        assert plan(made, words).ranks
    else:
        assert plan(made, strategy, schedule="1f1b").stages


def tied(blocks: int) -> Workload:
    torch.manual_seed(0)
    model = ByteGPT(width=8, heads=2, blocks=blocks, length=6)
    model.head.weight = model.byte.weight
    source = np.random.default_rng(0)
    return Workload(
        model=model,
        data=(source.integers(0, 256, (14, 6)), source.normal(size=(14, 6, 256))),
        loss=nn.MSELoss(),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        batch_size=6,
        dtype="float64",
    )


def holders(found: Plan) -> tuple[int, ...]:
    return found.holders("byte.weight")


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("pipeline=3", {}),
        ("data=2,pipeline=3", {}),
        ("pipeline=3,tensor=2", {}),
        ("sharded=2,pipeline=3", {"stage": "1"}),
        ("sharded=2,pipeline=3", {"stage": "3"}),
    ],
)
def test_tied_weights_lie_only_where_they_are_read(strategy: str, options: dict[str, Any]) -> None:
    found = assert_equal(tied(3), strategy, **options)
    assert holders(found) == (0, 2)
    middle = next(r for r in range(found.ranks) if found.mesh.place(r, "pipeline") == 1)
    last = next(r for r in range(found.ranks) if found.mesh.place(r, "pipeline") == 2)
    assert found.memory(middle).parameters_bytes < found.memory(last).parameters_bytes


def test_tied_weights_are_clipped_once() -> None:
    assert_equal(tied(3).with_(clip_norm=0.01), "pipeline=3")
