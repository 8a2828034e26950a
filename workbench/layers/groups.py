"""The communicators of one rank: one for each set of mesh axes along which it has peers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from workbench.comm.comm import Comm
from workbench.comm.connect import SoloComm
from workbench.mesh import Mesh
from workbench.plan import Plan

Part = tuple[tuple[str, ...], tuple[int, ...]]
"""Axes, and the places on a pipeline whose ranks take part."""


class Groups:
    """Communicators among the ranks of a mesh that differ only along some of its axes.

    Every rank of ``comm`` makes one at the same time. A group has its ranks in the order of their
    numbers on the mesh, as :meth:`workbench.mesh.Mesh.group` gives them. ``parts`` are further
    groups, see :func:`parts_of`.
    """

    def __init__(self, comm: Comm, mesh: Mesh, parts: Iterable[Part] = ()) -> None:
        self.comm, self.mesh, self.rank = comm, mesh, comm.rank
        self._used = tuple(axis for axis, degree in mesh.axes if degree > 1)
        self._by_axes: dict[tuple[str, ...], Comm] = {(): SoloComm(comm.device_type)}
        self._by_axes[self._used] = comm
        for count in range(1, len(self._used)):
            for axes in combinations(self._used, count):
                self._by_axes[axes] = comm.split(mesh.group(self.rank, *axes))
        self._parts: dict[Part, Comm] = {}
        for axes, places in parts:
            group = mesh.group(self.rank, *axes)
            members = tuple(r for r in group if mesh.place(r, "pipeline") in places)
            inside = self.rank in members
            self._parts[axes, places] = comm.split(members if inside else (self.rank,))

    def over(self, *axes: str) -> Comm:
        """Return the communicator along ``axes``, in any order; unused axes do not matter."""
        return self._by_axes[tuple(axis for axis in self._used if axis in axes)]

    def among(self, axes: tuple[str, ...], places: tuple[int, ...]) -> Comm:
        """Return the communicator along ``axes``, of ranks at these places on a pipeline only."""
        part = (axes, places)
        return self._parts[part] if part in self._parts else self.over(*axes)


def parts_of(plan: Plan) -> list[Part]:
    """Return for which axes ranks at some places on a pipeline add up gradients by themselves.

    Those of a parameter that some stages have, such as the first and the last one.
    """
    found: dict[Part, None] = {}
    for bucket in plan.buckets:
        compressed = plan.compression.kind != "none" and "data" in bucket.axes
        axes = tuple(a for a in bucket.axes if not (compressed and a == "data"))
        if "pipeline" in axes and bucket.places:
            found[axes, bucket.places] = None
    return list(found)
