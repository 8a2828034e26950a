"""What works instead of a strategy that cannot be: the nearest one, named whole."""

from __future__ import annotations

from collections.abc import Callable

from workbench.mesh import BATCH_AXES
from workbench.plan import Plan


def fewer_ranks(plan: Plan, axis: str, most: int, works: Callable[[int], bool]) -> str:
    """Return the plan's strategy with the most ranks along ``axis`` that work, up to ``most``.

    If no number does, there are replicas in their place, see :func:`replicas`.
    """
    degree = fewer(plan.mesh.degree(axis), most, works)
    return str(plan.mesh.with_degree(axis, degree)) if degree > 1 else replicas(plan, axis)


def fewer(degree: int, most: int, works: Callable[[int], bool]) -> int:
    """Return the largest number below ``degree``, of at most ``most``, that works; 1 if none."""
    return next((n for n in range(min(most, degree - 1), 1, -1) if works(n)), 1)


def replicas(plan: Plan, *axes: str) -> str:
    """Return the plan's strategy with replicas in the place of the ranks along ``axes``.

    There are no more of them than the batch has samples for, and none if an output has no rows.
    """
    mesh, ranks = plan.mesh, 1
    for axis in axes:
        ranks *= mesh.degree(axis)
        mesh = mesh.with_degree(axis, 1)
    size = plan.batch.size
    if any(array.shape[:1] != (size,) for array in plan.outputs):
        return str(mesh)
    most = max(1, size // mesh.degree("sharded"))
    return str(mesh.with_degree("data", min(mesh.degree("data") * ranks, most)))


def fewer_replicas(plan: Plan) -> str:
    """Return the plan's strategy with as many replicas as the batch has samples for.

    Of several ways to come to that number the one that changes degrees least.
    """
    size = plan.batch.size
    first, second = (plan.mesh.degree(axis) for axis in BATCH_AXES)
    ways = [(one, min(second, size // one)) for one in range(1, min(first, size) + 1)]
    best = max(ways, key=lambda way: (way[0] * way[1], way[0] + way[1]))
    mesh = plan.mesh
    for axis, degree in zip(BATCH_AXES, best, strict=True):
        mesh = mesh.with_degree(axis, degree)
    return str(mesh)
