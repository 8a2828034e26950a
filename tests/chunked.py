"""Arrays cut in chunks at random, and networks for graph mode."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn


@st.composite
def chunks(draw: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Draw chunks in every dim, uneven ones and such of one row among them."""
    found = []
    for size in shape:
        ends = draw(st.sets(st.integers(1, max(1, size - 1)), max_size=3)) if size > 1 else set()
        cuts = [0, *sorted(ends), size]
        found.append(tuple(b - a for a, b in pairwise(cuts)))
    return tuple(found)


def cut(x: Tensor, sizes: Any) -> da.Array:
    return da.from_array(x.numpy(), chunks=sizes)


def difference(lazy: da.Array, serial: Tensor) -> float:
    """Return the largest difference to torch's result on whole arrays; shapes and types agree."""
    found = lazy.compute()
    assert found.shape == lazy.shape == tuple(serial.shape)
    assert found.dtype == lazy.dtype == serial.numpy().dtype
    return float(np.abs(found - serial.numpy()).max()) if found.size else 0.0


class UNet(nn.Module):
    """Down and up again with skip connections; odd sizes are padded on the way up."""

    def __init__(self, width: int = 4, norm: Any = nn.BatchNorm2d, smooth: bool = False) -> None:
        super().__init__()

        def block(given: int, made: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(given, made, 3, padding=1), norm(made), nn.ReLU(inplace=True)
            )

        def up(given: int, made: int) -> nn.Module:
            if not smooth:
                return nn.ConvTranspose2d(given, made, 2, 2)
            larger = nn.Upsample(scale_factor=2, mode="bilinear")
            return nn.Sequential(larger, nn.Conv2d(given, made, 3, padding=1))

        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.middle = block(2 * width, 4 * width)
        self.up2, self.up1 = up(4 * width, 2 * width), up(2 * width, width)
        self.join2, self.join1 = block(4 * width, 2 * width), block(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = fit(self.up2(self.middle(F.max_pool2d(two, 2))), two)
        y = self.join2(torch.cat([two, y], 1))
        return self.out(self.join1(torch.cat([one, fit(self.up1(y), one)], 1)))


def fit(x: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[2] - x.shape[2], like.shape[3] - x.shape[3]
    return F.pad(x, (0, width, 0, height))


class ResNetLike(nn.Module):
    """A strided stem, residual blocks with squeeze and excitation, a mean over all positions."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3), nn.MaxPool2d(3, 2, 1))
        self.one = nn.Conv2d(width, width, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, width)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())
        self.two = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.short = nn.Conv2d(width, 2 * width, 1, 2)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm(self.one(x)))
        x = x + y * self.gate(y)
        x = F.relu(self.two(x) + self.short(x))
        return self.head(x.mean((2, 3)))


def vgg_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


class Attends(nn.Module):
    """Attention over all positions of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.attention = (
            nn.Conv2d(1, 4, 1),
            nn.MultiheadAttention(4, 2, batch_first=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x).flatten(2).transpose(1, 2)
        y, _ = self.attention(y, y, y, need_weights=False)
        return y.transpose(1, 2).unflatten(2, x.shape[2:])
