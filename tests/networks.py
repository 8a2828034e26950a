"""Whole networks of the shapes that people train, small, for proofs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Residual(nn.Module):
    """Two convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.norm1(self.first(x)))
        return self.act(self.norm2(self.second(hidden)) + self.short(x))


class ResNet(nn.Module):
    """The layout of ResNet-18, four stages of two blocks, with few channels."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        widths = [width, width, 2 * width, 2 * width, 3 * width]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(Residual(a, b, 1 + (i > 0)), Residual(b, b, 1))
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(3 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


class UNet(nn.Module):
    """Down twice and up twice with skip connections (Ronneberger et al., 2015); any even size."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down1, self.down2 = self.double(3, width), self.double(width, 2 * width)
        self.pool, self.middle = nn.MaxPool2d(2), self.double(2 * width, 2 * width)
        self.up2 = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2)
        self.merge2 = self.double(4 * width, width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear")
        self.merge1 = self.double(2 * width, width)
        self.last = nn.Conv2d(width, 3, 1)

    def double(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"),
            nn.GroupNorm(2, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(self.pool(one))
        deep = self.up2(self.middle(self.pool(two)))
        two = self.merge2(torch.cat([two, deep], 1))
        return self.last(self.merge1(torch.cat([one, self.up1(two)], dim=1)))


class Dense(nn.Module):
    """Every layer sees all before it (Huang et al., 2017)."""

    def __init__(self, growth: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(4 + i * growth),
                nn.ReLU(),
                nn.Conv2d(4 + i * growth, growth, 3, padding=1),
                nn.Dropout(0.2),
            )
            for i in range(3)
        )
        self.between = nn.Sequential(nn.Conv2d(4 + 3 * growth, 6, 1), nn.AvgPool2d(2))
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.head(self.flat(self.pool(self.between(torch.cat(found, 1)))))


class VGG(nn.Sequential):
    """Plain convolutions, then Flatten and large linear layers (Simonyan and Zisserman, 2015)."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2, 2),
            nn.AdaptiveAvgPool2d((5, 3)),
            nn.Flatten(),
            nn.Linear(6 * 15, 8),
            nn.ReLU(True),
            nn.Dropout(0.5),
            nn.Linear(8, classes),
        )


class Volume(nn.Module):
    """A network over volumes, depth split: strides, instance norm, transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(1, 4, 3, 2, 1)
        self.norm, self.act = nn.InstanceNorm3d(4, affine=True), nn.PReLU()
        self.mix = nn.Conv3d(4, 4, (3, 1, 2), padding=(1, 0, 1), groups=2, dilation=(1, 1, 2))
        self.up = nn.ConvTranspose3d(4, 1, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.norm(self.down(x)))
        return x - self.up(self.mix(hidden))


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say (Hu et al., 2018): a whole array meets a cut one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid()
        )
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return x + self.last(hidden * self.gate(hidden))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "resnet": (ResNet, (3, 37, 20), True),
    "unet": (UNet, (3, 20, 12), False),
    "densenet": (Dense, (3, 11, 6), True),
    "vgg": (VGG, (3, 21, 12), True),
    "volume": (Volume, (1, 10, 6, 8), False),
    "squeeze and excite": (SqueezeExcite, (3, 9, 5), False),
}
"""By name: what makes it, the shape of a sample, and whether it gives classes or an image."""
