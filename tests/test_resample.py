"""Upsampling and downsampling of arrays that are cut equal torch's own on the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_threads import check_layer, prove_layer
from operator_cases import LINEAR_MODES, resamplings
from torch import nn
from window_cases import agrees, drawn, image, images, takes, ways

from workbench.errors import PlanError
from workbench.layers.taps import Sizes, sources, taps, window_of

UNDEFINED = ("for the nearest where channels are last", "torch's gradient of that in mode")


@drawn
@given(st.data())
def test_resampling_equals_serial(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from((1, 2, 2, 3)))
    layer, x = data.draw(resamplings(dims)), data.draw(images(dims))
    assume(takes(layer, x))
    assert agrees(layer, x, *UNDEFINED, **data.draw(ways(dims)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, "2x2"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Upsample(scale_factor=2),
        nn.Upsample(scale_factor=3, mode="nearest-exact"),
        nn.Upsample(size=(5, 9), mode="nearest-exact"),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=(4, 2), mode="bicubic"),
        nn.Upsample(scale_factor=(1.5, 0.4), mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=2.3, mode="bicubic", recompute_scale_factor=True),
        nn.Upsample(scale_factor=(1.7, 1.05), mode="bicubic"),
        nn.Upsample(size=(4, 11), mode="area"),
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.UpsamplingBilinear2d(size=(10, 3)),
    ],
    ids=str,
)
def test_each_mode(layer: nn.Module, ranks: int | str) -> None:
    assert check_layer(layer, image(7, 6), spatial=ranks) <= 1e-10
    assert check_layer(layer, image(2, 5), spatial=ranks) <= 1e-10
    last = image(5, 7).contiguous(memory_format=torch.channels_last)
    assert check_layer(layer, last, spatial=ranks, data=2) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("mode", ["linear", "bicubic"])
@pytest.mark.parametrize("scale", [None, 0.6, 1.05, 2.0, 3.3])
def test_taps_are_torchs(dtype: torch.dtype, align: bool, mode: str, scale: float | None) -> None:
    for size in (1, 2, 7, 31):
        outputs = 12 if scale is None else int(size * scale)
        if not outputs:
            continue
        x = image(size, 1)[..., 0].to(dtype)
        asked: dict[str, Any] = {"size": outputs} if scale is None else {"scale_factor": scale}
        if mode == "bicubic":
            asked = {name: (value, 2 if scale is None else 2.0) for name, value in asked.items()}
            whole = F.interpolate(x[..., None], mode=mode, align_corners=align, **asked)[..., 0]
        else:
            whole = F.interpolate(x, mode=mode, align_corners=align, **asked)
        found = taps(Sizes(size, outputs, mode, align, scale), dtype)
        mine = sum(x[..., r] * w for r, w in zip(found.rows, found.weights, strict=True))
        assert torch.allclose(mine, whole, atol=1e-13 if dtype == torch.float64 else 1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(("size", "outputs"), [(26, 22), (5, 13), (9, 3), (1, 4)])
def test_the_nearest_rows_are_torchs(mode: str, size: int, outputs: int) -> None:
    x = torch.randn(1, 1, size, dtype=torch.float64, requires_grad=True)
    y = F.interpolate(x, size=outputs, mode=mode)
    sizes = Sizes(size, outputs, mode)
    found = sources(sizes, 1, torch.float64, "cpu")
    assert torch.equal(x[..., found.rows], y)
    g = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, g)
    mine = torch.zeros_like(x).index_add_(-1, found.gradient, g)
    assert torch.allclose(gradient, mine, atol=1e-15)
    table = window_of(sizes).table
    for row, other, (start, stop) in zip(found.rows, found.gradient, table, strict=True):
        assert start <= row < stop
        assert start <= other < stop


def test_torch_copies_other_rows_than_it_gives_gradients_to() -> None:
    """In float64 torch rounds in double forward and in single backward; so do shares."""
    found = sources(Sizes(26, 22, "nearest"), 1, torch.float64, "cpu")
    assert not torch.equal(found.rows, found.gradient)
    assert check_layer(nn.Upsample(size=22), image(26), spatial=3) <= 1e-10


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_twice_as_many_rows_need_no_more_than_one_row_of_each_neighbour(dims: int) -> None:
    x = image(*[8, 3, 3][:dims])
    copied = prove_layer(nn.Upsample(scale_factor=2), x, spatial=2, dims=(2,))
    assert copied.sent_bytes == (0, 0)
    mixed = prove_layer(
        nn.Upsample(scale_factor=2, mode=LINEAR_MODES[dims - 1]), x, spatial=2, dims=(2,)
    )
    row = x[:, :, 0].numel() * 8
    assert mixed.sent_bytes == (2 * row, 2 * row)


def test_what_torch_does_not_define_is_refused() -> None:
    with pytest.raises(PlanError, match="torch's gradient of that in mode 'bicubic'"):
        prove_layer(nn.Upsample(scale_factor=1.05, mode="bicubic"), image(4, 4))
    with pytest.raises(PlanError, match="nearest where channels are last"):
        prove_layer(nn.Upsample(scale_factor=1.05), image(4, 4, 4))
