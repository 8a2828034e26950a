"""Products of axes that cut the same arrays, or layers and images: each carries what it has."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ResNet, UNet
from operator_cases import CHANNELS, CONVOLUTIONS, LAYERS, images, prove
from rank_threads import run_on_threads
from test_operator_parallel import takes
from test_operator_training import contrast
from test_pipeline import WAYS, assert_equal, vector
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.planning import plan
from workbench.verify import verify
from workbench.workload import Workload

OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
}


class Skips(nn.Module):
    """Strides, a shortcut around them all, sums between modules, and a head that needs it all."""

    def __init__(self, width: int = 4, stride: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.short = nn.Conv2d(width, width, 1, stride)
        self.down = nn.Conv2d(width, width, 3, stride, 1)
        self.norm = nn.GroupNorm(1, width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        side = self.short(hidden)
        hidden = torch.relu(self.norm(self.down(hidden)) + side)
        hidden = self.pool(self.last(hidden) + side[:, :3]).flatten(1)
        return self.out(torch.tanh(self.head(hidden)))


def skips(optimizer: str = "momentum", **options: Any) -> Workload:
    torch.manual_seed(0)
    return vector(Skips(**options), 2, 7, 5).with_(optimizer=OPTIMIZERS[optimizer])


def u_net() -> nn.Module:
    net = UNet(4)
    for module in list(net.modules()):
        for attribute, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, attribute, nn.GroupNorm(1, child.num_features))
    return net


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("strategy", ["pipeline=2,spatial=2", "pipeline=2,spatial=3"])
def test_every_schedule_of_stages_that_have_parts_of_images(
    strategy: str, way: str, optimizer: str
) -> None:
    assert_equal(skips(optimizer), strategy, **WAYS[way])


@pytest.mark.parametrize("entry", ["down", "norm", "last"])
def test_what_crosses_is_what_a_rank_has(entry: str) -> None:
    found = assert_equal(skips(), "pipeline=2,spatial=2", split_at=entry)
    source, height = {
        "down": ("argument of down", 7),
        "norm": ("result of down", 4),
        "last": ("argument of last", 4),
    }[entry]
    crossing = next(c for c in found.crossings if str(c.source) == source)
    rows = [found.passed_shape(crossing.source, crossing.size.of(2), rank) for rank in range(4)]
    assert [shape[2] for shape in rows] == [-(-height // 2), height // 2] * 2
    assert {shape[0] for shape in rows} == {2}


class Turned(nn.Module):
    """Needs all channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flip(1))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("strategy", ["tensor=2,spatial=2", "channel=2,spatial=3"])
def test_halos_have_the_channels_of_a_rank_s_groups(strategy: str, groups: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        Turned(),
        nn.Conv2d(4, 4, 3, 2, padding=2, dilation=2, groups=groups),
        nn.Tanh(),
        nn.Conv2d(4, 2, 1),
    )
    found = assert_equal(vector(net, 2, 7, 5), strategy)
    (grouped,) = [planned for planned in found.layers if planned.layer.name == "2"]
    assert grouped.choice == "groups"
    assert {cut.axis for cut in grouped.input} == {"spatial"}


class Again(nn.Module):
    """The same layers in both stages, of which only some calls need what others have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2)
        self.second, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pool(torch.tanh(self.conv(x)))
        return self.last(self.pool(self.conv(self.second(hidden))))


@pytest.mark.parametrize(
    ("height", "stages"), [(4, [(1,)]), (5, [(0,), (1,)]), (6, [(0,)]), (7, [])]
)
def test_each_call_of_a_layer_sends_in_its_own_stage(height: int, stages: list[tuple[int]]) -> None:
    torch.manual_seed(0)
    made = vector(Again(), 2, height, 5)
    found = assert_equal(made, "pipeline=2,spatial=2", spatial_dims=2, split_at="second")
    assert [c.places for c in found.collectives if c.name == "pool: halo"] == stages
    # Nobody needs a gradient of the image, so the first call sends none back.
    back = [c.places for c in found.collectives if c.name == "conv: halo gradients"]
    assert back == [(1,)]


@pytest.mark.parametrize("stage", ["1", "2", "3"])
@pytest.mark.parametrize("height", [4, 7])
def test_a_layer_in_two_stages_is_gathered_in_both(height: int, stage: str) -> None:
    torch.manual_seed(0)
    made = vector(Again(), 2, height, 5)
    assert_equal(made, "sharded=2,pipeline=2", split_at="second", stage=stage)


@pytest.mark.parametrize(
    "strategy", ["pipeline=2,spatial=2", "pipeline=2,tensor=2", "sharded=2,pipeline=2"]
)
def test_all_chunks_but_the_last_are_recomputed(strategy: str) -> None:
    assert_equal(skips(), strategy, schedule="interleaved", recompute="yes")


@pytest.mark.parametrize("strategy", ["pipeline=2,spatial=2x2", "data=2,pipeline=2,spatial=2"])
def test_eight_ranks_on_a_u_net(strategy: str) -> None:
    found = assert_equal(vector(u_net(), 3, 8, 8, batch=4), strategy, accumulate=2)
    assert len(found.crossings) > 1


def test_a_loss_of_all_positions_is_computed_by_the_last_stage() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    made = vector(net, 3, 7, 6).with_(loss=contrast)
    found = assert_equal(made, "pipeline=2,spatial=2")
    gathered = next(c for c in found.collectives if c.name == "output: whole")
    assert gathered.places == (1,)


def test_ranks_without_a_row_take_part() -> None:
    assert_equal(skips(), "pipeline=2,spatial=9", spatial_dims=2, accumulate=1)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 6),
    stride=st.integers(1, 3),
    ranks=st.sampled_from(("2", "3", "2x2")),
    entry=st.sampled_from(("short", "down", "norm", "last", "head", "out")),
)
@settings(max_examples=16, deadline=None)
def test_any_sizes_and_any_cut(
    height: int, width: int, stride: int, ranks: str, entry: str
) -> None:
    torch.manual_seed(0)
    net, x = Skips(stride=stride).double(), torch.randn(2, 2, height, width, dtype=torch.float64)
    proof = verify(net, x, strategy=f"pipeline=2,spatial={ranks}", split_at=entry)
    assert proof.refusal is None
    assert proof.same_result, proof
    assert proof.sent_bytes == proof.predicted_bytes


def test_a_picture_is_taken_by_the_last_stage() -> None:
    source = np.random.default_rng(0)
    x = source.random(size=(4, 3, 7, 6))
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    made = Workload(model=net, data=(x, x), loss=nn.MSELoss(), batch_size=4, dtype="float64")
    run = run_on_threads(made, "pipeline=2,spatial=2", 1, preview=True)
    sent = [[kind for kind, _ in outlet.messages] for outlet in run.outlets]
    assert [kinds.count("preview") for kinds in sent] == [0, 0, 1, 1]


FEATURES = ["tensor=2", "tensor=3", "channel=2", "channel=3"]


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("ranks", ["2", "3", "2x2"])
@pytest.mark.parametrize("features", FEATURES)
def test_channels_of_parts_of_images(features: str, ranks: str, optimizer: str) -> None:
    found = assert_equal(skips(optimizer), f"{features},spatial={ranks}")
    both = [p for p in found.layers if {"spatial"} < {cut.axis for cut in p.input}]
    assert both  # some layer reads some channels of some rows


@pytest.mark.parametrize(
    "strategy",
    ["data=2,tensor=2,spatial=2", "sharded=2,channel=2,spatial=2", "pipeline=2,tensor=2,spatial=2"],
)
def test_eight_ranks_on_three_axes(strategy: str) -> None:
    assert_equal(skips(), strategy)


def test_ranks_without_a_row_have_channels_all_the_same() -> None:
    assert_equal(skips(), "tensor=2,spatial=6", spatial_dims=2, accumulate=1)


def test_the_linear_layers_of_a_head_are_split_and_convolutions_cut_both_ways() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 3 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )
    found = assert_equal(vector(net, 3, 6, 8), "tensor=2,spatial=2")
    ways = {planned.layer.name: planned.choice for planned in found.layers}
    assert (ways["0"], ways["2"]) == ("filters", "channels")
    assert (ways["4"], ways["5"], ways["7"]) == ("gather", "filters", "channels")
    (cut,) = found.parameter_cuts("5.weight")
    assert (cut.dim, cut.axis) == (0, "tensor")


@pytest.mark.parametrize("strategy", ["tensor=2,spatial=2", "channel=2,spatial=2"])
def test_whole_networks(strategy: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 20, 16, dtype=torch.float64)
    for net in (ResNet(), UNet()):
        assert prove(net, x, strategy=strategy).refusal is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(LAYERS))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_layer_has_some_channels_of_some_rows(kind: str, data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from((1, 2, 2, 3)))
    torch.manual_seed(0)
    layer = data.draw(LAYERS[kind](dims))
    batch, _, *sides = data.draw(images(dims))
    around = [CONVOLUTIONS[dims - 1](CHANNELS, CHANNELS, 1) for _ in range(2)]
    if isinstance(layer, (*CONVOLUTIONS, nn.modules.conv._ConvTransposeNd)):
        around[1] = CONVOLUTIONS[dims - 1](layer.out_channels, CHANNELS, 1)
    net = nn.Sequential(around[0], layer, around[1]).double()
    ranks = data.draw(st.sampled_from(("2", "3", *(("2x2",) if dims > 1 else ()))))
    features = data.draw(st.sampled_from(("tensor=2", "channel=2", "channel=3")))
    x = torch.randn(batch, CHANNELS, *sides, dtype=torch.float64)
    if takes(net, x):
        prove(net, x, strategy=f"{features},spatial={ranks}")


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("strategy", ["tensor=2,channel=2", "tensor=3,channel=2"])
def test_convolutions_are_split_over_one_axis_and_linear_layers_over_the_other(
    strategy: str, optimizer: str
) -> None:
    found = assert_equal(skips(optimizer), strategy)
    axes = {p.layer.name: p.feature_axis for p in found.layers if p.feature_axis}
    assert axes == {
        **dict.fromkeys(("first", "short", "down", "last"), "channel"),
        **dict.fromkeys(("head", "out"), "tensor"),
    }
    assert not any("whole on every rank" in note for note in found.notes)


@pytest.mark.parametrize(
    "strategy", ["pipeline=2,tensor=2,channel=2", "tensor=2,channel=2,spatial=2"]
)
def test_both_with_stages_or_rows(strategy: str) -> None:
    assert_equal(skips(), strategy)


def test_convolutions_alone_leave_nothing_for_tensor() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    made = vector(net, 2, 6, 6)
    with pytest.raises(PlanError, match=r"nothing else that can be split; use channel=4"):
        plan(made, "tensor=2,channel=2")
    with pytest.raises(PlanError, match=r"nothing else that can be split; use channel=4"):
        plan(made, "tensor=2,channel=4")  # eight are more than any layer has channels
    assert plan(made, "channel=4").ranks == 4
