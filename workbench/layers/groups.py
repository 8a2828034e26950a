"""The communicators of one rank: one for each set of mesh axes along which it has peers."""

from __future__ import annotations

from itertools import combinations

from workbench.comm.comm import Comm
from workbench.comm.connect import SoloComm
from workbench.mesh import Mesh


class Groups:
    """Communicators among the ranks of a mesh that differ only along some of its axes.

    Every rank of ``comm`` makes one at the same time. A group has its ranks in the order of their
    numbers on the mesh, as :meth:`workbench.mesh.Mesh.group` gives them.
    """

    def __init__(self, comm: Comm, mesh: Mesh) -> None:
        self.comm, self.mesh, self.rank = comm, mesh, comm.rank
        self._used = tuple(axis for axis, degree in mesh.axes if degree > 1)
        self._by_axes: dict[tuple[str, ...], Comm] = {(): SoloComm(comm.device_type)}
        self._by_axes[self._used] = comm
        for count in range(1, len(self._used)):
            for axes in combinations(self._used, count):
                self._by_axes[axes] = comm.split(mesh.group(self.rank, *axes))

    def over(self, *axes: str) -> Comm:
        """Return the communicator along ``axes``, in any order; unused axes do not matter."""
        return self._by_axes[tuple(axis for axis in self._used if axis in axes)]
