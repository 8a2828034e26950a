"""Activations that are recomputed: with the same random numbers, and statistics that count once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from test_pipeline import WAYS, assert_equal, vector
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.comm.connect import SoloComm
from workbench.layers.groups import Groups
from workbench.layers.pipeline import Pipeline
from workbench.layers.recomputing import Repeats
from workbench.layers.trace import Trace
from workbench.layers.weight_gradients import WeightGradients
from workbench.planning import plan

CPU = torch.device("cpu")


class Drawing(nn.Module):
    """Draws from torch, numpy and Python, and from the device that its input is on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.layer(x), 0.5)
        return x * (random.random() + np.random.random() + torch.rand(()).item())


def test_a_part_computed_again_draws_what_it_has_drawn() -> None:
    model, x = Drawing(), torch.randn(6, 4)
    repeats = Repeats(model, CPU)
    with repeats.first() as then:
        first = model(x)
    assert not first.requires_grad
    following = model(x)
    with repeats.again(then):
        again = model(x)
    assert again.requires_grad
    assert torch.equal(first, again)
    assert not torch.equal(first, following)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_part_computed_again_on_a_gpu_draws_what_it_has_drawn() -> None:
    device = torch.device("cuda", 0)
    model, x = Drawing().to(device), torch.randn(6, 4, device=device)
    repeats = Repeats(model, device)
    with repeats.first() as then:
        first = model(x)
    model(x)
    with repeats.again(then):
        assert torch.equal(first, model(x))


def test_a_stage_recomputes_with_the_random_numbers_of_its_first_pass() -> None:
    seen: list[Tensor] = []

    class Noted(Drawing):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            seen.append(result.detach().clone())
            return result

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    planned = plan(vector(model, 4), "pipeline=2", recompute="yes", accumulate=1)
    noted = nn.Sequential(Noted(), nn.Linear(4, 4)).double()
    x = torch.randn(6, 4, dtype=torch.float64)

    class First(SoloComm):
        """Stands for the first of two ranks; what the other sends is ones."""

        def post(self, tensor: Tensor, to: int, *, name: str) -> None:
            del tensor, to, name
            drawn_meanwhile = torch.rand(3), np.random.random(), random.random()
            assert len(drawn_meanwhile) == 3

        def take(self, tensor: Tensor, source: int, *, name: str) -> Tensor:
            del source, name
            return tensor.fill_(1.0)

        def settle(self) -> None:
            pass

        def split(self, members: object, *, name: str | None = None) -> First:
            del members, name
            return self

    calls = Trace(nn.Sequential(Drawing(), nn.Linear(4, 4)).double(), [x]).calls
    groups = Groups(First(), planned.mesh)
    pipeline = Pipeline(noted, planned, groups, calls, WeightGradients(), CPU)
    pipeline.run({0: [x]}, lambda _: True, lambda _, output: [])
    first, again = seen
    assert torch.equal(first, again)


def networks() -> dict[str, nn.Module]:
    conv = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)]
    cumulative = nn.BatchNorm2d(3, momentum=None)  # a mean over all batches: it counts them
    norms = nn.BatchNorm2d(3), nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    return {
        "batch": nn.Sequential(conv[0], norms[0], nn.ReLU(), conv[1], nn.BatchNorm2d(3), conv[2]),
        "cumulative": nn.Sequential(conv[0], cumulative, conv[1], conv[2]),
        "instance": nn.Sequential(conv[0], norms[1], conv[1], conv[2]),
    }


@pytest.mark.parametrize("way", ["1f1b", "gpipe", "zb-h1"])
@pytest.mark.parametrize("name", list(networks()))
def test_running_statistics_see_each_micro_batch_once(name: str, way: str) -> None:
    torch.manual_seed(0)
    made = vector(networks()[name], 3, 5, 4)
    assert_equal(made, "pipeline=2", recompute="yes", split_at="3" if name == "batch" else "2",
                 **WAYS[way])  # fmt: skip


@pytest.mark.parametrize("strategy", ["data=2,pipeline=2", "pipeline=2,spatial=2"])
def test_running_statistics_of_samples_on_several_ranks_too(strategy: str) -> None:
    torch.manual_seed(0)
    made = vector(networks()["batch"], 3, 5, 4)
    assert_equal(made, strategy, recompute="yes", split_at="3", accumulate=1)


class Remembering(nn.Module):
    """Keeps a mean of its own, written in place, and a count that is replaced."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("table", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
                self.count = self.count + 1
        return x * self.table + self.mean


def test_buffers_of_the_users_own_are_written_once() -> None:
    model, x = Remembering(), torch.randn(6, 4, requires_grad=True)
    repeats = Repeats(model, CPU)
    table = model.table
    with repeats.first() as then:
        model(x)
    mean, count = model.mean.clone(), model.count.clone()
    with repeats.again(then):
        again = model(x)
        assert model.table is table  # what is only read is not copied
    again.sum().backward()
    assert torch.equal(model.mean, mean)
    assert torch.equal(model.count, count)
    assert x.grad is not None
