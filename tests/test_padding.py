"""Padding and shuffling of arrays that are cut equal the serial layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_threads import check_layer, prove_layer
from operator_cases import CIRCULAR, CONSTANT, REFLECTION, REPLICATION
from torch import nn
from window_cases import agrees, drawn, image, images, takes, ways

from workbench.errors import PlanError
from workbench.verify import verify


@st.composite
def paddings(draw: st.DrawFn, dims: int) -> nn.Module:
    kinds = draw(st.sampled_from((CONSTANT, REFLECTION, REPLICATION, CIRCULAR)))
    low = draw(st.sampled_from((0, -2)))
    sides = tuple(draw(st.integers(low, 4)) for _ in range(2 * dims))
    return kinds[dims - 1](sides, 1.5) if kinds is CONSTANT else kinds[dims - 1](sides)


@drawn
@given(st.data())
def test_padding_equals_serial(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from((1, 2, 2, 3)))
    layer, x = data.draw(paddings(dims)), data.draw(images(dims))
    assume(takes(layer, x))
    assert agrees(layer, x, "and goes round at the other", **data.draw(ways(dims)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, "2x2"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.ZeroPad2d(2),
        nn.ConstantPad2d((1, -1, -2, 3), 4.0),
        nn.ConstantPad2d((0, 0, 9, 0), -1.0),
        nn.ReflectionPad2d((1, 2, 3, 0)),
        nn.ReplicationPad2d((0, 5, 2, 1)),
        nn.CircularPad2d((1, 0, 2, 4)),
        nn.CircularPad2d((-1, -1, 0, -2)),
    ],
    ids=str,
)
def test_each_way_of_padding(layer: nn.Module, ranks: int | str) -> None:
    assert check_layer(layer, image(7, 6), spatial=ranks) <= 1e-10
    assert check_layer(layer, image(4, 5), spatial=ranks, data=2) <= 1e-10


@pytest.mark.parametrize("mode", ["Zero", "Reflection", "Replication", "Circular"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_array_without_samples(mode: str, dims: int) -> None:
    layer = getattr(nn, f"{mode}Pad{dims}d")(1)
    assert check_layer(layer, torch.randn(2, *[5, 6, 4][:dims]), spatial=2) <= 1e-10


def test_going_round_what_is_left_is_refused() -> None:
    layer = nn.CircularPad1d((-1, 2))
    with pytest.raises(PlanError, match="goes round at the other; use two layers"):
        prove_layer(layer, image(6))
    in_two = nn.Sequential(nn.CircularPad1d((-1, 0)), nn.CircularPad1d((0, 2)))
    assert verify(in_two, image(6), strategy="spatial=2").same_result


def test_going_round_fetches_from_the_far_end_only() -> None:
    proof = prove_layer(nn.CircularPad1d((1, 1)), image(12), spatial=3)
    row = 2 * 8 * 8  # samples, channels, bytes
    assert proof.sent_bytes == proof.predicted_bytes
    assert sum(proof.sent_bytes) < 12 * row


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, "2x2", "3x2"])
@pytest.mark.parametrize("sides", [(6, 6), (2, 4), (12, 2)])
@pytest.mark.parametrize(
    "layer",
    [nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(4), nn.PixelShuffle(1)],
    ids=str,
)
def test_shuffling(layer: nn.Module, sides: tuple[int, int], ranks: int | str) -> None:
    assert check_layer(layer, image(*sides), spatial=ranks) <= 1e-10


def test_shuffling_without_samples_and_with_more_dims() -> None:
    layer = nn.PixelShuffle(2)
    assert check_layer(layer, torch.randn(4, 3, 5), spatial=2, dims=(2,)) <= 1e-10
    assert check_layer(layer, torch.randn(2, 3, 4, 3, 5), spatial=2, dims=(4,)) <= 1e-10


@pytest.mark.parametrize("layer", [nn.PixelShuffle(2), nn.ChannelShuffle(2)], ids=str)
def test_positions_taken_for_channels_are_refused(layer: nn.Module) -> None:
    proof = verify(layer, image(4, 4), strategy="spatial=2", spatial_dims=1)
    assert "takes dim 1 for channels and moves them about" in str(proof.refusal)
