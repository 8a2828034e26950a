"""Pooling of arrays that are cut: values, gradients and bytes are those of the serial layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_threads import check_layer, prove_layer
from operator_cases import ADAPTIVE_AVERAGE, ADAPTIVE_MAX, MAX_POOLS, adaptive_pools, pools
from torch import nn
from window_cases import agrees, drawn, image, images, takes, ways

from workbench.comm.threads import run_threads
from workbench.errors import PlanError
from workbench.layers.adaptive import _gather_places
from workbench.verify import verify


@pytest.mark.filterwarnings("ignore")
@drawn
@given(st.data())
def test_pooling_equals_serial(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from((1, 2, 2, 3)))
    layer, x = data.draw(pools(dims)), data.draw(images(dims))
    assume(takes(layer, x))
    assert agrees(layer, x, "sees nothing but padding", **data.draw(ways(dims)))


@drawn
@given(st.data())
def test_adaptive_pooling_equals_serial(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from((1, 2, 2, 3)))
    layer, x = data.draw(adaptive_pools(dims)), data.draw(images(dims))
    assert agrees(layer, x, "is left to cut; use spatial=", **data.draw(ways(dims)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, "2x2"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, 1, 1, dilation=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, (3, 1), divisor_override=3),
        nn.LPPool2d(2, (2, 3), ceil_mode=True),
        nn.LPPool2d(float("inf"), 2),
        nn.LPPool2d(float("-inf"), 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, None)),
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveMaxPool2d((4, 7)),
    ],
    ids=str,
)
def test_each_way_of_pooling(layer: nn.Module, ranks: int | str) -> None:
    assert check_layer(layer, image(7, 6), spatial=ranks) <= 1e-10
    assert check_layer(layer, image(3, 6), spatial=ranks) <= 1e-10
    assert check_layer(layer, image(9, 5), spatial=ranks, data=2) <= 1e-10


@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool", "LPPool", "AdaptiveAvgPool"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_array_without_samples(kind: str, dims: int) -> None:
    module = getattr(nn, f"{kind}{dims}d")
    layer = module(2, 3) if kind == "LPPool" else module(3)
    x = torch.randn(2, *[8, 7, 6][:dims])
    assert check_layer(layer, x, spatial=2) <= 1e-10


@pytest.mark.parametrize("how", [{"dims": (2,)}, {"dims": (3,)}, {"spatial": "2x2"}], ids=str)
@pytest.mark.parametrize("layer", [nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(1)], ids=str)
def test_of_equal_maxima_the_first_gets_the_gradient(
    layer: nn.Module, how: dict[str, object]
) -> None:
    zeros = torch.zeros(2, 4, 6, 6)
    assert check_layer(layer, zeros, **how) == 0
    zeros[..., 0, 5] = zeros[..., 4, 1] = 1  # the first in the second half of the columns
    assert check_layer(layer, zeros, **how) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_places_travel_as_numbers_of_any_type(dtype: torch.dtype) -> None:
    places = torch.tensor([[3, 2**31 - 1], [0, 7]])
    found = run_threads(2, lambda comm: _gather_places(places, dtype, comm, "places"))
    assert all(torch.equal(each, places) for parts in found for each in parts)


def test_one_number_along_one_dim_and_windows_along_another() -> None:
    layer = nn.AdaptiveAvgPool2d((1, 4))
    assert check_layer(layer, image(5, 7), dims=(2,)) <= 1e-10
    assert check_layer(layer, image(5, 7), dims=(3,)) <= 1e-10
    with pytest.raises(PlanError, match="only dim 3 is left to cut"):
        prove_layer(layer, image(5, 7), spatial="2x2")


def test_without_gradient_nothing_goes_back() -> None:
    for layer in (nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)):
        x = image(6, 6)
        once = prove_layer(layer, x, requires_grad=False).predicted_bytes
        assert max(once) < max(prove_layer(layer, x).predicted_bytes)


@pytest.mark.parametrize("kinds", [MAX_POOLS, ADAPTIVE_MAX], ids=["windows", "adaptive"])
def test_places_of_maxima_are_refused(kinds: tuple[type[nn.Module], ...]) -> None:
    proof = verify(kinds[1](2, return_indices=True), image(4, 4), strategy="spatial=2")
    assert "return_indices=True gives places in the whole array" in str(proof.refusal)


def test_random_windows_are_refused() -> None:
    with pytest.raises(PlanError, match="draws its windows at random"):
        prove_layer(nn.FractionalMaxPool2d(2, output_size=2), image(6, 6))


def test_averages_of_whole_rows_need_no_sum() -> None:
    layer = ADAPTIVE_AVERAGE[1]((3, 1))
    proof = prove_layer(layer, image(6, 6), dims=(2,), spatial=3)
    assert proof.same_result
    assert proof.sent_bytes == (0, 0, 0)


@pytest.mark.parametrize("last", [nn.AdaptiveAvgPool1d(1), nn.MaxPool1d(5, 3)], ids=str)
def test_a_flattened_image_is_gathered_where_it_is_flattened(last: nn.Module) -> None:
    layers = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(2), last)
    assert verify(layers, image(7, 6), strategy="spatial=2").same_result
