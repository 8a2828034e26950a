"""Draws layers of every kind that operator parallelism carries, with inputs and strategies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from workbench.verify import Proof, verify

counted: Counter[str] = Counter()
"""Cases of this test run: "equal", and "refused: ..." by reason."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
POWER_POOLS = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)
ADAPTIVE_AVERAGE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
ADAPTIVE_MAX = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
REFLECTION = (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
REPLICATION = (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
CIRCULAR = (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
CONSTANT = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LINEAR_MODES = ("linear", "bilinear", "trilinear")


@st.composite
def images(draw: st.DrawFn, dims: int, largest: int = 12) -> tuple[int, ...]:
    """Return the shape of a small batch with ``dims`` spatial dims."""
    sides = [draw(st.integers(1, largest if d == 0 else 6)) for d in range(dims)]
    return (draw(st.integers(1, 2)), draw(st.sampled_from((2, 4))), *sides)


def _per_dim(draw: st.DrawFn, dims: int, low: int, high: int) -> Any:
    """Return one number for all dims or one for each, as torch's layers take them."""
    if draw(st.booleans()):
        return draw(st.integers(low, high))
    return tuple(draw(st.integers(low, high)) for _ in range(dims))


@st.composite
def convolutions(draw: st.DrawFn, dims: int) -> nn.Module:
    groups = draw(st.sampled_from((1, 1, 2)))
    padding: Any = draw(st.sampled_from(("number", "number", "same", "valid")))
    stride: Any = 1 if padding == "same" else _per_dim(draw, dims, 1, 3)
    if padding == "number":
        padding = _per_dim(draw, dims, 0, 2)
    return CONVOLUTIONS[dims - 1](
        CHANNELS,
        draw(st.sampled_from((2, 4))),
        _per_dim(draw, dims, 1, 4),
        stride=stride,
        padding=padding,
        dilation=_per_dim(draw, dims, 1, 2),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(("zeros", "zeros", "reflect", "replicate", "circular"))),
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn, dims: int) -> nn.Module:
    stride = draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2))
    return TRANSPOSED[dims - 1](
        CHANNELS,
        draw(st.sampled_from((2, 4))),
        _per_dim(draw, dims, 1, 4),
        stride=stride,
        padding=_per_dim(draw, dims, 0, 2),
        output_padding=draw(st.integers(0, max(stride, dilation) - 1)),
        groups=draw(st.sampled_from((1, 2))),
        bias=draw(st.booleans()),
        dilation=dilation,
    )


@st.composite
def pools(draw: st.DrawFn, dims: int) -> nn.Module:
    kernel = draw(st.integers(1, 4))
    stride = draw(st.one_of(st.none(), st.integers(1, 3)))
    padding = draw(st.integers(0, kernel // 2))
    ceil = draw(st.booleans())
    kind = draw(st.sampled_from(("max", "average", "power")))
    if kind == "max":
        dilation = draw(st.integers(1, 2))
        return MAX_POOLS[dims - 1](kernel, stride, padding, dilation, ceil_mode=ceil)
    if kind == "power":
        return POWER_POOLS[dims - 1](2.0, kernel, stride, ceil_mode=ceil)
    more: dict[str, Any] = {}
    if dims > 1 and draw(st.booleans()):
        more["divisor_override"] = draw(st.integers(1, 5))
    inside = draw(st.booleans())
    return AVERAGE_POOLS[dims - 1](kernel, stride, padding, ceil, inside, **more)


@st.composite
def adaptive_pools(draw: st.DrawFn, dims: int) -> nn.Module:
    kinds = draw(st.sampled_from((ADAPTIVE_AVERAGE, ADAPTIVE_MAX)))
    sizes: Any = draw(st.integers(1, 4))
    if dims > 1 and draw(st.booleans()):
        sizes = tuple(draw(st.one_of(st.none(), st.integers(1, 4))) for _ in range(dims))
    return kinds[dims - 1](sizes)


@st.composite
def resamplings(draw: st.DrawFn, dims: int) -> nn.Module:
    modes = ["nearest", "nearest-exact", LINEAR_MODES[dims - 1]] + ["bicubic"] * (dims == 2)
    mode = draw(st.sampled_from(modes))
    align = draw(st.booleans()) if "nearest" not in mode else None
    if draw(st.booleans()):
        return nn.Upsample(size=draw(st.integers(1, 9)), mode=mode, align_corners=align)
    scale = draw(st.sampled_from((0.5, 1.0, 1.5, 2.0, 2.3, 3.0)))
    return nn.Upsample(scale_factor=scale, mode=mode, align_corners=align)


@st.composite
def paddings(draw: st.DrawFn, dims: int) -> nn.Module:
    kinds = draw(st.sampled_from((CONSTANT, REFLECTION, REPLICATION, CIRCULAR)))
    low = -1 if kinds is CONSTANT else 0
    sides = tuple(draw(st.integers(low, 3)) for _ in range(2 * dims))
    return kinds[dims - 1](sides, 1.5) if kinds is CONSTANT else kinds[dims - 1](sides)


@st.composite
def norms(draw: st.DrawFn, dims: int) -> nn.Module:
    kind = draw(st.sampled_from(("batch", "instance", "group", "response", "softmax", "dropout")))
    if kind == "batch":
        running, affine = draw(st.booleans()), draw(st.booleans())
        return BATCH[dims - 1](CHANNELS, affine=affine, track_running_stats=running)
    if kind == "instance":
        running, affine = draw(st.booleans()), draw(st.booleans())
        return INSTANCE[dims - 1](CHANNELS, affine=affine, track_running_stats=running)
    if kind == "group":
        return nn.GroupNorm(draw(st.sampled_from((1, 2, 4))), CHANNELS)
    if kind == "response":
        return nn.LocalResponseNorm(draw(st.integers(1, 4)))
    if kind == "softmax":
        maker = draw(st.sampled_from((nn.Softmax, nn.LogSoftmax, nn.Softmin)))
        return maker(dim=draw(st.integers(1, dims + 1)))
    return draw(st.sampled_from((nn.Dropout(0.4), nn.Dropout1d(0.4), nn.AlphaDropout(0.3))))


CHANNELS = 4
LAYERS = {
    "convolution": convolutions,
    "transposed convolution": transposed_convolutions,
    "pooling": pools,
    "adaptive pooling": adaptive_pools,
    "resampling": resamplings,
    "padding": paddings,
    "norm": norms,
}


@st.composite
def cases(draw: st.DrawFn, kind: str) -> tuple[nn.Module, Tensor, str, dict[str, Any]]:
    """Return a layer that takes the input, the input, a strategy and its options."""
    dims = draw(st.sampled_from((1, 2, 2, 3)))
    torch.manual_seed(draw(st.integers(0, 3)))
    layer = draw(LAYERS[kind](dims)).double()
    batch, _, *sides = draw(images(dims))
    x = torch.randn(batch, CHANNELS, *sides, dtype=torch.float64)
    options: dict[str, Any] = {}
    grids = ["2x2", "1x2", "3x2"] if dims > 1 else []
    ranks = draw(st.sampled_from(("2", "3", "4", *grids)))
    if "x" not in ranks and draw(st.booleans()):
        options["spatial_dims"] = draw(st.integers(2, dims + 1))
    data = draw(st.sampled_from(("", "", "", "data=2,"))) if batch > 1 else ""
    return layer, x, f"{data}spatial={ranks}", options


def prove(module: nn.Module, *inputs: Tensor, strategy: str, **options: Any) -> Proof:
    """Return the proof that ``module`` under ``strategy`` equals serial, and count the case."""
    proof = verify(module, *inputs, strategy=strategy, **options)
    if proof.refusal is None:
        assert proof.same_result, f"{proof}: {module}, {[tuple(x.shape) for x in inputs]}"
        assert proof.sent_bytes == proof.predicted_bytes
        counted["equal"] += 1
    else:
        counted["refused"] += 1
    return proof
