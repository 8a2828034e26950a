"""Shares of an array put together again.

Pure: imports nothing of torch, dask or the UI; arrays come with the function that joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any

from workbench.mesh import Mesh
from workbench.plan.plan import Cut, Plan


def owner_of(kept: str) -> str:
    """Return the parameter or buffer that a kept array is of: ``"w"`` of ``"optimizer:k:w"``.

    The state of a generator is of none, and has the generator's name.
    """
    kind, _, name = kept.partition(":")
    return name if kind in ("parameter", "buffer") else name.partition(":")[2]


def is_first(plan: Plan, kept: str, dims: int, rank: int) -> bool:
    """Return whether no rank before ``rank`` has the same share of a kept array of ``dims``."""
    cutting = {cut.axis for cut in plan.kept_cuts(kept, dims)}
    first = {"pipeline": plan.holders(owner_of(kept))[0]}
    others = {
        axis: place for axis, place in plan.mesh.coordinates(rank).items() if axis not in cutting
    }
    return all(place == first.get(axis, 0) for axis, place in others.items())


def assemble(
    parts: Mapping[int, Any],
    cuts: Iterable[Cut],
    mesh: Mesh,
    concatenate: Callable[[Sequence[Any], int], Any],
) -> Any:
    """Return the whole of an array that is cut so, given its shares by rank.

    Of several ranks with the same share one is enough. ``concatenate`` joins arrays along a dim;
    arrays have ``shape`` and ``reshape`` and are sliced, as those of torch, numpy and dask.
    """
    cuts = tuple(cuts)
    cutting = [cut.axis for cut in cuts]
    held: dict[tuple[int, ...], Any] = {}
    for rank, part in sorted(parts.items(), reverse=True):
        held[tuple(mesh.place(rank, axis) for axis in cutting)] = part
    for number in reversed(range(len(cuts))):
        lines: dict[tuple[int, ...], list[Any]] = {}
        for place in sorted(held):
            lines.setdefault(place[:number], []).append(held[place])
        held = {place: _joined(line, cuts[number], concatenate) for place, line in lines.items()}
    return held[()]


def _joined(
    parts: Sequence[Any], cut: Cut, concatenate: Callable[[Sequence[Any], int], Any]
) -> Any:
    """Return shares joined along the dim that they are cut in, or along what it was made of."""
    if cut.flat is None:
        return concatenate(parts, cut.dim)
    sizes = [size for _, size in cut.flat.parts]
    if cut.flat.beside:  # of each a rank has as many whole units
        edges, total = list(accumulate(sizes, initial=0)), sum(sizes)
        things = []
        for begin, end in pairwise(edges):
            shares = []
            for part in parts:
                length = part.shape[cut.dim]
                run = slice(begin * length // total, end * length // total)
                shares.append(part[(*[slice(None)] * cut.dim, run)])
            things.append(concatenate(shares, cut.dim))
        return concatenate(things, cut.dim)
    inner = next(n for n, (label, _) in enumerate(cut.flat.parts) if label)
    rest = prod(sizes) // sizes[inner]
    apart = []
    for part in parts:
        own = (*sizes[:inner], part.shape[cut.dim] // rest, *sizes[inner + 1 :])
        apart.append(part.reshape((*part.shape[: cut.dim], *own, *part.shape[cut.dim + 1 :])))
    whole = concatenate(apart, cut.dim + inner)
    first = parts[0].shape
    return whole.reshape((*first[: cut.dim], prod(sizes), *first[cut.dim + 1 :]))
