"""Models as people write them, cut in space and channels: equal to serial, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_cases import prove
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from workbench.errors import PlanError
from workbench.verify import verify

IMAGES = (3, 3, 9, 8)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Model(nn.Module):
    """A convolution, then whatever ``then`` does with the input and its output."""

    def __init__(self, then: Any, *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.parts, self.then = conv(3, 3), nn.ModuleList(parts), then
        self.table = nn.Parameter(torch.randn(1, 3, 9, 8))

    def forward(self, *x: Tensor) -> Any:
        return self.then(self, self.first(x[0]), *x)


class ConvNeXt(nn.Module):
    """Patches, depthwise convolution, channels last, LayerNorm and linear layers (Liu, 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))) * self.scale
        return self.head(x + y.permute(0, 3, 1, 2))


def frozen(net: nn.Module, prefix: str) -> nn.Module:
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(prefix))
    return net


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv(3, 4), *middle, conv(4, 3))


CARRIED = {
    "a layer called twice": Model(lambda m, y, x: m.first(y.relu())),
    "a gate": Model(lambda m, y, x: y * torch.sigmoid(m.parts[0](y)), nn.AdaptiveAvgPool2d(1)),
    "channels last inside": ConvNeXt(),
    "in place": Model(lambda m, y, x: F.relu_(y.add_(x).mul_(2)) + x),
    "statistics that are given": chain(nn.BatchNorm2d(4), nn.Dropout(0.5)).eval(),
    "a frozen first layer": frozen(chain(nn.BatchNorm2d(4)), "0"),
    "all frozen": frozen(chain(nn.BatchNorm2d(4)), ""),
    "computed weights": nn.Sequential(
        parametrizations.weight_norm(conv(3, 4)),
        nn.ReLU(),
        parametrizations.spectral_norm(conv(4, 3)),
    ),
    "a weight for each channel": chain(nn.PReLU(4), nn.InstanceNorm2d(4, affine=True)),
    "Flatten and Linear": nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(288, 2)),
    "Flatten, Dropout and Linear": nn.Sequential(
        conv(3, 4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(288, 2)
    ),
    "softmax over channels": chain(nn.Softmax2d()),
    "up to a fixed size": nn.Sequential(
        nn.MaxPool2d(2, ceil_mode=True), conv(3, 3), nn.Upsample(size=(9, 8), mode="bilinear")
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", ["spatial=2", "spatial=4", "channel=2", "data=2,spatial=2"])
@pytest.mark.parametrize("name", CARRIED)
def test_models_as_people_write_them(name: str, strategy: str) -> None:
    torch.manual_seed(0)
    proof = prove(CARRIED[name], torch.randn(IMAGES, dtype=torch.float64), strategy=strategy)
    assert proof.refusal is None or "convolution" in proof.refusal


def attention(model: Model, y: Tensor, x: Tensor) -> Tensor:
    tokens = y.flatten(2).transpose(1, 2)
    mixed = model.parts[0](tokens, tokens, tokens)[0]
    return y + mixed.transpose(1, 2).view_as(y)


MIXED = {
    "convolution as a function": (Model(lambda m, y, x: F.conv2d(y, m.first.weight)), "conv2d"),
    "mean": (Model(lambda m, y, x: y.mean((2, 3))), "AdaptiveAvgPool2d"),
    "flatten": (Model(lambda m, y, x: m.parts[0](y.flatten(1)), nn.Linear(216, 2)), "nn.Flatten"),
    "resize": (Model(lambda m, y, x: F.interpolate(y, size=x.shape[2:])), "nn.Upsample"),
    "crop": (Model(lambda m, y, x: y[:, :, 1:]), "slicing of dim 2"),
    "a table of positions": (Model(lambda m, y, x: y + m.table), "whole in another"),
    "a number of the size": (Model(lambda m, y, x: y / x.shape[2]), "size of dim 2"),
    "attention": (
        Model(attention, nn.MultiheadAttention(3, 1, batch_first=True)),
        "mixes its positions: flatten",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MIXED)
def test_code_that_mixes_positions_is_refused_or_runs_on_whole_arrays(name: str) -> None:
    torch.manual_seed(0)
    model, says = MIXED[name]
    x = torch.randn(IMAGES, dtype=torch.float64)
    refused = prove(model, x, strategy="spatial=2")
    assert refused.refusal is not None
    assert says in refused.refusal
    assert 'fallback="gather"' in refused.refusal
    for strategy in ("spatial=2", "spatial=2x2", "data=2,spatial=2"):
        assert prove(model, x, strategy=strategy, fallback="gather").refusal is None


def test_only_the_layer_that_mixes_is_gathered() -> None:
    block = Model(lambda m, y, x: F.conv2d(y, m.first.weight, padding=1) + x)
    net = nn.Sequential(conv(3, 3), block, nn.BatchNorm2d(3), conv(3, 3))
    x = torch.randn(IMAGES, dtype=torch.float64)
    few = prove(net, x, strategy="spatial=2", fallback="gather")
    assert few.sent_bytes[0] > 0
    assert "Layer '1' (Model)" in (prove(net, x, strategy="spatial=2").refusal or "")


@pytest.mark.parametrize("strategy", ["spatial=2", "channel=2"])
def test_random_numbers_of_ones_own_are_refused_even_on_whole_arrays(strategy: str) -> None:
    options = {"fallback": "gather"} if strategy == "spatial=2" else {}
    proof = prove(chain(nn.RReLU()), torch.randn(IMAGES), strategy=strategy, **options)
    assert proof.refusal is not None
    assert "every rank draws others" in proof.refusal


def test_several_inputs_are_cut_alike_or_stay_whole() -> None:
    two = Model(lambda m, y, x, z: (y * m.first(z), z.sum(1)))
    x = torch.randn(IMAGES, dtype=torch.float64)
    assert prove(two, x, x + 1, strategy="spatial=2").refusal is None
    scaled = Model(lambda m, y, x, t: y * m.parts[0](t)[:, :, None, None], nn.Linear(5, 3))
    assert prove(scaled, x, torch.randn(3, 5), strategy="spatial=3").refusal is None


def test_whole_numbers_go_in_and_positions_may_be_dim_1() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.byte, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 5, 3, padding=1)

        def forward(self, text: Tensor) -> Tensor:
            return self.conv(self.byte(text).transpose(1, 2))

    text = torch.randint(0, 11, (3, 9))
    assert prove(Text(), text, strategy="spatial=2", spatial_dims=1).refusal is None


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_rank_without_rows_bears_changes_in_place(kind: type[nn.Module]) -> None:
    first = kind(3, 4, 3, padding=1, bias=False)
    net = nn.Sequential(first, nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 2, 6, dtype=torch.float64)
    assert prove(net, x, strategy="spatial=4", spatial_dims=2).refusal is None


def test_channels_last_arrays_work() -> None:
    net = chain(nn.ReLU()).to(memory_format=torch.channels_last)
    x = torch.randn(IMAGES, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert prove(net, x, strategy="spatial=2").refusal is None


@pytest.mark.parametrize(
    ("module", "x", "says"),
    [
        (nn.Conv2d(3, 4, 12), torch.zeros(IMAGES), "does not take a batch of shape"),
        (nn.Conv2d(3, 3, 3, dtype=torch.complex64), torch.zeros(IMAGES), "is complex"),
        (nn.LazyConv2d(4, 3), torch.zeros(IMAGES), "call it once before"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(module: nn.Module, x: Tensor, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        verify(module, x, strategy="spatial=2")
