"""How a strategy is written: ``"serial"``, or degrees on axes, ``"data=2,spatial=2x2"``."""

from __future__ import annotations

import difflib
from math import prod

from workbench.errors import PlanError
from workbench.mesh import Mesh
from workbench.strategies import STRATEGIES

_ELSEWHERE = {
    "dp": "data",
    "ddp": "data",
    "fsdp": "sharded",
    "zero": "sharded",
    "tp": "tensor",
    "sp": "tensor",
    "cp": "tensor",
    "pp": "pipeline",
}
"""Axes by what the field calls them."""


def parse(text: str) -> Mesh:
    """Return the mesh that ``text`` asks for; axes of degree 1 are dropped.

    Raises
    ------
    PlanError
        For a name that is no strategy, an axis named twice, or a degree that is not a whole number
        of 1 or more.
    """
    if not isinstance(text, str):
        raise PlanError(
            f"A strategy is written as text, such as 'serial' or 'data=2'; got {text!r}."
        )
    if text.strip() == "serial":
        return Mesh()
    mesh = Mesh()
    for part in text.split(","):
        axis, _, degree = (piece.strip() for piece in part.partition("="))
        if axis not in STRATEGIES:
            raise PlanError(_unknown(text, axis))
        if axis in dict(mesh.axes):
            raise PlanError(f"Strategy {text!r} names the axis {axis!r} twice; name it once.")
        sides = degree.split("x") if STRATEGIES[axis].grid else [degree]
        grid = tuple(_degree(text, axis, side) for side in sides)
        mesh = mesh.with_axis(axis, prod(grid), grid if len(grid) > 1 else ())
    used = tuple((axis, degree) for axis, degree in mesh.axes if degree > 1)
    return Mesh(used, mesh.grid if prod(mesh.grid) > 1 else ())


def _degree(text: str, axis: str, degree: str) -> int:
    if not degree:
        raise PlanError(
            f"Strategy {text!r} gives no degree for {axis!r}; write {axis}=2 for two ranks."
        )
    if not degree.isascii() or not degree.isdigit() or int(degree) < 1:
        raise PlanError(
            f"Strategy {text!r} asks for degree {degree} on {axis!r}; a degree is a whole "
            f"number of "
            f"ranks, 1 or more. The nearest is {axis}={_nearest(degree)}."
        )
    return int(degree)


def _nearest(degree: str) -> int:
    try:
        return max(1, round(float(degree)))
    except (ValueError, OverflowError):
        return 2


def _unknown(text: str, axis: str) -> str:
    hint = _in_the_words_of_the_field(text, axis) or _close(axis)
    legal = ", ".join(["serial", *(f"{name}=N" for name in STRATEGIES)])
    return f"Strategy {text!r}: {axis!r} is not a strategy. There are: {legal}.{hint}"


def _close(axis: str) -> str:
    near = difflib.get_close_matches(axis, [*STRATEGIES, "serial"], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _in_the_words_of_the_field(text: str, axis: str) -> str:
    """Return what a strategy in the field's words is here, if ``axis`` is one of those; or ""."""
    here = _ELSEWHERE.get(axis.casefold())
    if here is None:
        return ""
    degrees: dict[str, str] = {}
    for part in text.split(","):
        name, _, degree = (piece.strip() for piece in part.partition("="))
        ranks = degree if degree.isdecimal() and int(degree) > 0 else "2"
        degrees[_ELSEWHERE.get(name.casefold(), name)] = ranks
    whole = ",".join(f"{name}={degree}" for name, degree in degrees.items())
    if axis.casefold() in ("sp", "cp"):
        return f" {axis} is a choice of {here} here: {whole} with sequence='split'."
    if axis.casefold() in ("zero", "fsdp"):
        return f" {axis} is {here} here: {whole}, and its stage is a choice: stage=1, 2 or 3."
    return f" {axis} is {here} here: {whole}."
