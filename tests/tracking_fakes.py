"""Carriers that only declare labels, for tests of what lies between layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.layers.carrier import OUT, Carrier, Declared, computes_as, passed
from workbench.profile import Profile, profile
from workbench.traced import Flat, Layer, Refusal, Sums, Traced


def _conv(module: Any, arguments: tuple[Traced, ...], shape: tuple[int, ...]) -> Declared:
    channels = arguments[0].labels[1]
    refusals = (Refusal((channels,), "reads all channels"),) if isinstance(channels, str) else ()
    return Declared(
        ("", OUT, *arguments[0].labels[2:]), refusals=refusals, role="conv", groups=module.groups
    )


def _norm(_: Any, arguments: tuple[Traced, ...], shape: tuple[int, ...]) -> Declared:
    labels = tuple(label for label in arguments[0].labels if isinstance(label, str) and label)
    return Declared(
        passed(arguments[0], shape), sums=(Sums("moments", "all_reduce", labels, 2, "forward"),)
    )


def _passed(_: Any, arguments: tuple[Traced, ...], shape: tuple[int, ...]) -> Declared:
    return Declared(passed(arguments[0], shape))


def _windowed(_: Any, arguments: tuple[Traced, ...], shape: tuple[int, ...]) -> Declared:
    labels = arguments[0].labels
    return Declared(
        tuple("" if size == 1 else lab for lab, size in zip(labels, shape, strict=True))
    )


def _flatten(_: Any, arguments: tuple[Traced, ...], shape: tuple[int, ...]) -> Declared:
    (first, *labels), (_, *sizes) = arguments[0].labels, arguments[0].shape
    parts = tuple((str(label), size) for label, size in zip(labels, sizes, strict=True))
    return Declared((first, Flat(parts) if any(labels) else ""), role="flatten")


def _linear(_: Any, arguments: tuple[Traced, ...], shape: tuple[int, ...]) -> Declared:
    return Declared((*arguments[0].labels[:-1], OUT), role="linear")


_DECLARED: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., Declared]], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d), _conv),
    ((nn.BatchNorm2d, nn.LayerNorm), _norm),
    ((nn.Dropout, nn.Identity), _passed),
    ((nn.MaxPool2d, nn.Upsample, nn.AdaptiveAvgPool2d), _windowed),
    ((nn.Flatten,), _flatten),
    ((nn.Linear,), _linear),
)


def carrier_of(module: nn.Module) -> Carrier | None:
    for kinds, declare in _DECLARED:
        if any(computes_as(module, kind) for kind in kinds):
            return Carrier(kinds, declare, lambda module, seat: None)
    return None


class Model(nn.Module):
    """A forward in one line, over some layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *x: Tensor) -> Any:
        return self.function(self, *x)


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


X = meta(2, 3, 16, 12)
SPACE = ("dim2", "dim3")


def traced(function: Callable[..., Any], *x: Tensor, how: Any = None, **layers: Any) -> Profile:
    return profile(Model(function, **layers), *(x or (X,)), **(how or {}))


def layer(found: Profile, name: str, call: int = 0) -> Layer:
    return [each for each in found.layers if each.name == name][call]


def conv(into: int = 3, out: int = 4, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1, **how)


def labels(found: Profile) -> tuple[Any, ...]:
    return found.outputs[0].labels
