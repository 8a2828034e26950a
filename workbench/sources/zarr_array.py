"""Zarr arrays, of versions 2 and 3, alone or in a group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import PlanError
from workbench.sources.address import Address, needed
from workbench.sources.source import Source


@dataclass(frozen=True)
class ZarrArray(Source):
    """An array of a Zarr store; ``member`` is its path in a group, empty for the store itself."""

    address: Address
    member: str

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, of the other dims the ``rest``."""
        opened = _opened(self.address)
        array = opened[self.member] if self.member else opened
        if tuple(array.shape) != self.shape:
            raise PlanError(
                f"{self.address.text} has the shape {tuple(array.shape)} here but {self.shape} "
                f"where the data was described; every worker needs the same store."
            )
        return np.asarray(array[(slice(start, stop), *rest)])


def find_zarr(address: Address) -> dict[str, Source]:
    """Return the arrays of a store by their names; one that is an array itself as ``"x"``.

    Raises
    ------
    PlanError
        If it is no Zarr store, or zarr is not installed.
    """
    opened = _opened(address)
    if hasattr(opened, "shape"):
        return {"x": _described(opened, address, "")}
    members = [(name, item) for name, item in opened.members(None) if hasattr(item, "shape")]
    return {name: _described(item, address, name) for name, item in sorted(members)}


@lru_cache(maxsize=16)
def _opened(address: Address) -> Any:
    zarr = needed("zarr", "Zarr")
    try:
        if address.is_local:
            return zarr.open(address.text, mode="r")
        return zarr.open(address.text, mode="r", storage_options=dict(address.options))
    except (OSError, ValueError, KeyError) as error:
        raise PlanError(f"{address.text} is no Zarr store that can be read: {error}.") from error


def _described(array: Any, address: Address, member: str) -> ZarrArray:
    chunk = (getattr(array, "shards", None) or array.chunks or (1,))[0] if array.shape else 1
    return ZarrArray(tuple(array.shape), np.dtype(array.dtype).str, int(chunk), address, member)
