"""Convolutions split in filters, input channels and groups: what is chosen; that it is exact."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import prove
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.plan import Plan
from workbench.planning import plan
from workbench.verify import verify
from workbench.workload import Workload


def planned(model: nn.Module, strategy: str, targets: int = 1) -> Plan:
    x = torch.zeros(4, 3, 8, 6).numpy()
    work = Workload(model=model, data=(x, x[:, :targets]), loss=nn.MSELoss(), batch_size=2)
    return plan(work, strategy)


def choices(found: Plan) -> dict[str, str]:
    return {p.layer.name: p.choice for p in found.layers if p.layer.role == "conv"}


def chain(*channels: int, **options: Any) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_filters_and_channels_take_turns_so_that_every_second_layer_adds_up() -> None:
    """As the two halves of a transformer's perceptron: one sum for two layers."""
    found = planned(chain(3, 16, 16, 1), "channel=2")
    # One filter cannot be shared; what it reads is whole by then.
    assert choices(found) == {"0": "filters", "2": "channels", "4": ""}
    assert found.parameter_cuts("0.weight")[0].dim == 0
    assert found.parameter_cuts("0.bias")[0].dim == 0
    assert found.parameter_cuts("2.weight")[0].dim == 1
    assert found.parameter_cuts("2.bias") == ()
    operations = [c.operation for c in found.collectives if c.name.startswith(("0:", "2:", "4:"))]
    assert "all_reduce" in operations


def test_a_wide_middle_stays_cut_and_costs_nothing() -> None:
    depthwise = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 1, 1)
    )
    found = planned(depthwise, "channel=4")
    assert choices(found) == {"0": "filters", "1": "groups", "2": "channels"}
    moved = {c.name for c in found.collectives if c.name[0] in "012" and c.phase != "start"}
    assert moved == {"2: sum of outputs", "2: gradients of outputs"}


def test_batch_norm_keeps_a_part_of_its_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 1))
    found = planned(net, "channel=2")
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert [c.axis for c in found.parameter_cuts(name)] == ["channel"]
    assert found.parameter_cuts("1.num_batches_tracked") == ()


@pytest.mark.parametrize(
    ("model", "strategy", "says"),
    [
        (nn.Sequential(nn.Linear(6, 6), nn.MaxPool2d(1)), "channel=2", "has none; use data=2"),
        (chain(3, 4, 1), "channel=9", "nearest is channel=4"),
    ],
)
def test_what_cannot_be_split_is_refused(model: nn.Module, strategy: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        planned(model, strategy, targets=3 if model[-1].__class__ is nn.MaxPool2d else 1)


class Cats(nn.Module):
    """Concatenated channels lie in another order than the balanced split: they are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.one(x), self.two(x)], 1))


def test_concatenated_channels_are_gathered_first() -> None:
    proof = prove(Cats(), torch.randn(2, 3, 5, 4), strategy="channel=2")
    assert proof.refusal is None


@st.composite
def stacks(draw: st.DrawFn) -> tuple[nn.Module, str]:
    dims = draw(st.sampled_from((1, 2)))
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1]
    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dims - 1]
    layers: list[nn.Module] = []
    width = 4
    for _ in range(draw(st.integers(1, 4))):
        wider = draw(st.sampled_from((2, 4, 5, 6, 8)))
        kind = draw(st.sampled_from(("plain", "plain", "depthwise", "grouped", "transposed")))
        bias = draw(st.booleans())
        if kind == "depthwise":
            layers.append(conv(width, width, 3, padding=1, groups=width, bias=bias))
            wider = width
        elif kind == "grouped" and width % 2 == 0 and wider % 2 == 0:
            layers.append(conv(width, wider, 1, groups=2, bias=bias))
        elif kind == "transposed":
            layers.append(turned(width, wider, 2, stride=2, bias=bias))
        else:
            layers.append(conv(width, wider, 3, padding=1, bias=bias))
        width = wider
        after = draw(st.sampled_from(("", "norm", "act", "drop", "group norm")))
        layers += {
            "": [],
            "norm": [norm(width), nn.ReLU()],
            "act": [nn.GELU()],
            "drop": [nn.Dropout(0.3)],
            "group norm": [nn.GroupNorm(1, width)],
        }[after]
    degree = draw(st.sampled_from(("channel=2", "channel=3", "channel=4", "data=2,channel=2")))
    torch.manual_seed(0)
    return nn.Sequential(*layers), degree


@pytest.mark.filterwarnings("ignore")
@given(stacks(), st.integers(1, 2))
@settings(max_examples=200, deadline=None)
def test_stacks_of_convolutions_equal_serial(case: tuple[nn.Module, str], spare: int) -> None:
    net, strategy = case
    dims = 1 if isinstance(net[0], nn.Conv1d | nn.ConvTranspose1d) else 2
    x = torch.randn(1 + spare, 4, *(5, 3)[:dims], dtype=torch.float64)
    proof = prove(net, x, strategy=strategy)
    assert proof.refusal is None or "no convolution can be split" in proof.refusal


def test_a_weight_normed_convolution_stays_whole() -> None:
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
    net = nn.Sequential(nn.Conv2d(3, 8, 1), normed, nn.Conv2d(8, 2, 1))
    proof = verify(net, torch.randn(2, 3, 4, 4), strategy="channel=2")
    assert proof.same_result, proof
