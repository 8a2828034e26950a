"""Which dims of its input ``spatial`` cuts: those that are named, or the largest there are."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.errors import PlanError
from workbench.plan import CutLabel, Plan
from workbench.strategies.nearest import replicas
from workbench.strategies.obstacles import check_layers, check_mixes
from workbench.traced import SAMPLES, Traced, lead

AXIS = "spatial"


def cut_labels(plan: Plan) -> tuple[CutLabel, ...]:
    """Return which labels ``spatial`` cuts, one for each dim of its grid.

    Raises
    ------
    PlanError
        If the input has no such dims.
    """
    grid = plan.mesh.grid or (plan.mesh.degree(AXIS),)
    source = lead(plan.inputs) if plan.inputs else Traced((), ())
    have = [d for d, label in enumerate(source.labels) if label and label != SAMPLES]
    chosen = _chosen(plan, grid, source, have)
    return tuple(
        CutLabel(f"dim{dim}", AXIS, part)
        for part, dim in enumerate(chosen)
        if plan.mesh.parts(AXIS, part) > 1
    )


def dims_asked(text: str) -> tuple[int, ...]:
    """Return the dims that the option ``spatial_dims`` names: ``"2,3"`` gives ``(2, 3)``.

    Raises
    ------
    PlanError
        If it does not name dims.
    """
    if text in ("", "largest"):
        return ()
    try:
        dims = tuple(
            int(piece) for piece in text.replace("(", "").replace(")", "").split(",") if piece
        )
    except ValueError:
        dims = ()
    if not dims or min(dims) < 1 or len(set(dims)) != len(dims):
        raise PlanError(
            f"spatial_dims={text!r} does not name dims of the input; for images of shape "
            "(N, C, H, W) write spatial_dims=2 to cut the height, 3 the width, (2, 3) both."
        )
    return dims


def _chosen(
    plan: Plan, grid: tuple[int, ...], source: Traced, have: Sequence[int]
) -> tuple[int, ...]:
    asked = dims_asked(plan.option("spatial_dims", "largest"))
    written = str(plan.mesh)
    in_a_row = plan.mesh.with_degree(AXIS, plan.mesh.degree(AXIS))
    if wrong := [dim for dim in asked if dim >= len(source.shape)]:
        raise PlanError(
            f"spatial_dims={', '.join(map(str, asked))}: the input of shape {source.shape} has no "
            f"dim {wrong[0]}; its last is {len(source.shape) - 1}."
        )
    first, have = have[:1], have if asked else [dim for dim in have if dim > 1]
    if not have:
        raise PlanError(
            f"{written} cuts the height, width or depth of the input, and an input of shape "
            f"{source.shape} has none; use {replicas(plan, AXIS)}"
            + (
                f", or spatial_dims={first[0]}, which cuts what dim {first[0]} counts."
                if first and _can_be_cut(plan, first[0])
                else "."
            )
        )
    if asked and len(asked) != len(grid):
        raise PlanError(
            f"{written} lays ranks out along {len(grid)} dim{'s' if len(grid) > 1 else ''} and "
            f"spatial_dims names {len(asked)}; write spatial="
            f"{'x'.join(['2'] * len(asked))} for that, or name {len(grid)}."
        )
    if len(grid) > len(have):
        raise PlanError(
            f"{written} lays ranks out along {len(grid)} dims and an input of shape "
            f"{source.shape} has {len(have)} to cut; use {in_a_row}."
        )
    if asked:
        return asked
    if len(grid) == len(have):
        return tuple(have)
    largest = sorted(have, key=lambda dim: (-source.shape[dim], dim))[: len(grid)]
    return tuple(sorted(largest))


def _can_be_cut(plan: Plan, dim: int) -> bool:
    """Return whether code and layers do with shares of that dim of the input."""
    labels = {f"dim{dim}"}
    try:
        check_mixes(plan, labels)
        check_layers(plan, labels)
    except PlanError:
        return False
    return len(plan.mesh.grid) < 2
