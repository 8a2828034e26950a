"""A model that does not take its input: the sentence that names the layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from workbench.errors import PlanError


def refusal(
    error: Exception,
    inputs: Sequence[Tensor],
    name: str = "",
    module: nn.Module | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
) -> PlanError:
    """Return the sentence for an ``error`` raised in ``module``, given arrays of ``shapes``."""
    given = " and ".join(str(tuple(x.shape)) for x in inputs)
    if module is None:
        return PlanError(f"The model does not take a batch of shape {given}: {_first_line(error)}")
    found = " and ".join(map(str, shapes)) or "no tensor"
    where = f"Layer {name!r}, {_one_line(module)}," if name else type(module).__name__
    return PlanError(
        f"The model does not take a batch of shape {given}. {where} was given {found} and "
        f"says: {_first_line(error)}"
    )


def _one_line(module: nn.Module) -> str:
    text = repr(module)
    return text if "\n" not in text else type(module).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
