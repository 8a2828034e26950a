"""The arrays of one layer as the plan has them: the parts of each, and the ranks that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from workbench.mesh import BATCH_AXES
from workbench.plan import Cut, Plan
from workbench.plan.parts import Part, parts
from workbench.strategies.pipeline import stage_of
from workbench.traced import Array, Layer

DRAWN = ("batch", "input", "weight", "output")
"""Kinds of arrays that are drawn, from left to right; of the others the table tells."""

_POSITIONS = {3: ("positions",), 4: ("height", "width"), 5: ("depth", "height", "width")}
"""Names of dims from dim 2 on, by the number of dims of an array of images."""


@dataclass(frozen=True)
class LayerArray:
    """One array of a layer.

    Attributes
    ----------
    kind:
        One of :data:`DRAWN`, or ``"parameter"``, or ``"state"``: what of a whole parameter each
        rank updates and has optimizer state of.
    name:
        Of a parameter; "" of others.
    dims:
        What each dim counts: the texts ``cut.dim.NAME`` say it.
    down, across:
        The dims that are drawn downwards and to the right, each inside of the one before.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    itemsize: int
    parts: tuple[Part, ...]
    dims: tuple[str, ...]
    down: tuple[int, ...]
    across: tuple[int, ...]


def ranks_of(plan: Plan, number: int) -> tuple[int, ...]:
    """Return the ranks that compute the call of a layer with that number in the plan."""
    stage = stage_of(plan, number)
    if stage is None:
        return tuple(range(plan.ranks))
    place = stage % plan.mesh.degree("pipeline")
    return tuple(r for r in range(plan.ranks) if plan.mesh.place(r, "pipeline") == place)


def weight_of(layer: Layer) -> Array | None:
    """Return the parameter that is drawn: the largest with rows and columns, or of all."""
    own = (*layer.parameters, *layer.tied)
    return max(own, key=lambda array: (len(array.shape) > 1, array.numel), default=None)


def arrays_of(plan: Plan, number: int) -> tuple[LayerArray, ...]:
    """Return the arrays of the call of a layer with that number: what is drawn, then the rest."""
    found = [
        *_batch(plan),
        *_map(plan, number, "input"),
        *_parameters(plan, number),
        *_map(plan, number, "output"),
    ]
    return tuple(sorted(found, key=lambda array: [*DRAWN, "parameter", "state"].index(array.kind)))


def _batch(plan: Plan) -> Iterator[LayerArray]:
    if plan.inputs:
        source = plan.inputs[0]
        cuts = _of_samples(plan, source.shape, (Cut(0, BATCH_AXES[0]), *plan.input))
        reads = {p.layer.role for p in plan.layers if p.layer.arguments[:1] == (source,)}
        named = _dims(plan, source.shape, len(source.shape) > 3, "embedding" in reads)
        yield _shown(plan, "batch", "", source.shape, source.itemsize, cuts, named)


def _map(plan: Plan, number: int, kind: str) -> Iterator[LayerArray]:
    """Yield the first array that a layer reads, or makes."""
    planned = plan.layers[number]
    layer = planned.layer
    reads = kind == "input"
    arrays = layer.arguments if reads else layer.results
    if arrays and arrays[0].shape:
        shape = arrays[0].shape
        cuts = _of_samples(plan, shape, planned.input if reads else planned.output)
        channels = len(shape) > 3 or (len(shape) == 3 and layer.feature_dim(arrays[0]) == 1)
        named = _dims(plan, shape, channels, reads and layer.role == "embedding")
        ranks = ranks_of(plan, number)
        yield _shown(plan, kind, "", shape, arrays[0].itemsize, cuts, named, ranks)


def _parameters(plan: Plan, number: int) -> Iterator[LayerArray]:
    layer = plan.layers[number].layer
    weight = weight_of(layer)
    for array in (*layer.parameters, *layer.tied):
        ranks = [rank for rank in range(plan.ranks) if plan.holds(array.name, rank)]
        cuts = plan.parameter_cuts(array.name)
        named = _weight_dims(layer, array.shape)
        kind = "weight" if array is weight else "parameter"
        told = (array.name, array.shape, array.itemsize)
        turned = named[:2] == ("inputs", "outputs")
        yield _shown(plan, kind, *told, cuts, named, ranks, turned=turned)
        kept = plan.kept_cuts(f"optimizer::{array.name}", len(array.shape))
        if array.trainable and kept != cuts:
            yield _shown(plan, "state", *told, kept, named, ranks, turned=turned)


def _of_samples(plan: Plan, shape: Sequence[int], cuts: Iterable[Cut]) -> tuple[Cut, ...]:
    """Return the cuts, that of the batch in the dim that counts samples and by whole samples."""
    found, size = [], plan.batch.size
    for cut in cuts:
        if cut.axis not in BATCH_AXES:
            found.append(cut)
        elif (dim := _sample_dim(plan, shape)) is not None:
            found.append(Cut(dim, cut.axis, units=size if shape[dim] != size else 0))
    return tuple(found)


def _sample_dim(plan: Plan, shape: Sequence[int]) -> int | None:
    """Return the dim that counts samples, or samples times something; as in (L, N, E) not dim 0."""
    size = plan.batch.size
    if shape and shape[0] % size == 0:
        return 0
    return list(shape).index(size) if size in shape else None


def _dims(plan: Plan, shape: Sequence[int], channels: bool, entries: bool) -> tuple[str, ...]:
    """Return what the dims of an array count that is no parameter; one of ``entries`` is looked up.

    That has positions alone.
    """
    count = len(shape)
    names = ["positions"] * count
    if channels:
        names[1] = "channels"
        names[2:] = _POSITIONS.get(count, ("positions",) * (count - 2))
    elif count > 1 and not entries:
        names[-1] = "features"
    if (dim := _sample_dim(plan, shape)) is not None:
        names[dim] = "samples" if shape[dim] == plan.batch.size else "rows"
    return tuple(names)


def _weight_dims(layer: Layer, shape: Sequence[int]) -> tuple[str, ...]:
    """Return what the dims of a parameter count."""
    if len(shape) < 2:
        return ("numbers",) * len(shape)
    if layer.role == "embedding":
        first = ("entries", "features")
    elif layer.role not in ("linear", "conv", "heads"):
        first = ("numbers", "numbers")
    elif layer.turned or layer.kind.startswith("ConvTranspose"):
        first = ("inputs", "outputs")
    else:
        first = ("outputs", "inputs")
    return (*first, *("kernel" for _ in shape[2:]))


def _shown(
    plan: Plan,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    itemsize: int,
    cuts: tuple[Cut, ...],
    dims: tuple[str, ...],
    ranks: Iterable[int] | None = None,
    *,
    turned: bool = False,
) -> LayerArray:
    found = parts(plan, shape, cuts, ranks)
    cut = sorted({d for d in range(len(shape)) if len({part.runs[d] for part in found}) > 1})
    down, across = _directions(shape, dims, cut)
    if turned:
        down, across = (1,), (0, *(d for d in cut if d > 1))
    return LayerArray(kind, name, shape, itemsize, found, dims, down, across)


def _directions(
    shape: Sequence[int], dims: tuple[str, ...], cut: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the dims that go down and across: all that are cut, and others for a likeness.

    Samples go down; where images are cut inside, they do so one below the other, as images.
    """
    inside = [d for d in cut if dims[d] in ("height", "width", "depth")]
    if not inside:
        grey = len(dims) > 2 and dims[1] == "channels" and shape[1] == 1
        beside = [d for d in cut if d != 0] or [2 if grey else 1]
        return (0,), tuple(d for d in beside if d < len(dims))
    first, *more = inside
    beside = [d for d in range(2, len(dims)) if d != first]
    across = [*(d for d in cut if 0 < d < 2), *(more or beside[-1:])]
    return (*(d for d in cut if d == 0), first), tuple(across)
