"""Images, ways to cut them, and whether a windowed layer then equals serial."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from layer_threads import check_layer
from torch import Tensor, nn

from workbench.errors import PlanError

drawn = settings(
    max_examples=100,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
)


def image(*sides: int, rounded: bool = False, seed: int = 0) -> Tensor:
    """Return two samples with eight channels; ``rounded`` has many equal entries."""
    x = torch.randn(2, 8, *sides, generator=torch.Generator().manual_seed(seed))
    return x.round() if rounded else x


@st.composite
def images(draw: st.DrawFn, dims: int) -> Tensor:
    sides = [draw(st.integers(1, 11 if dims < 3 else 6)) for _ in range(dims)]
    return image(*sides, rounded=draw(st.booleans()), seed=draw(st.integers(0, 9)))


@st.composite
def ways(draw: st.DrawFn, dims: int) -> dict[str, Any]:
    """Return over how many ranks which dims of an image are cut."""
    if dims > 1 and draw(st.booleans()):
        chosen = draw(st.permutations(range(2, dims + 2)))[:2]
        return {"spatial": draw(st.sampled_from(("2x2", "3x1", "1x2"))), "dims": tuple(chosen)}
    return {"spatial": draw(st.integers(2, 4)), "dims": (draw(st.integers(2, dims + 1)),)}


def takes(layer: nn.Module, x: Tensor) -> bool:
    """Return whether torch itself takes this and makes something of it."""
    try:
        return bool(layer(x).numel())
    except RuntimeError:
        return False


def agrees(layer: nn.Module, x: Tensor, *reasons: str, **how: Any) -> bool:
    """Return whether the cut layer equals serial, or is refused for one of ``reasons``."""
    try:
        difference = check_layer(layer, x, **how)
    except PlanError as refusal:
        said = str(refusal)
    else:
        return difference <= 1e-10
    return any(reason in said for reason in reasons)
