"""How arrays and labels are cut, and which parameters travel together.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.traced import Flat


@dataclass(frozen=True, slots=True)
class Cut:
    """How one array is cut: ``dim`` over ``axis``; an array without cuts is whole on every rank.

    ``part`` numbers the dims of the grid that an axis may be laid out on, as in ``spatial=2x2``.
    ``units`` is how many pieces of the dim go as a whole, such as heads; 0 if all do.
    ``flat`` is set where the dim was flattened out of several of which one is cut: a rank then owns
    no single range of it.
    """

    dim: int
    axis: str
    part: int = 0
    flat: Flat | None = None
    units: int = 0


@dataclass(frozen=True, slots=True)
class CutLabel:
    """Every dim with this label is cut over ``axis``, of whose grid it is dim ``part``.

    ``units`` is how many pieces of the dim go as a whole; 0 if all do.
    """

    label: str
    axis: str
    part: int = 0
    units: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Parameters, by name, whose gradients are added up together over the ranks along ``axes``.

    ``places`` are those on the pipeline whose ranks have them, if not all do.
    """

    names: tuple[str, ...]
    axes: tuple[str, ...]
    places: tuple[int, ...] = ()
