"""One collective of a step, with its bytes.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.mesh import Mesh, balanced
from workbench.traced import Operation, Phase


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of a step: every rank along ``axes`` takes part, ``times`` times per step.

    ``numel`` is what one rank puts in: the whole array for an all_reduce, a reduce_scatter and a
    broadcast, the rank's own piece (equal on all ranks) for an all_gather. Where ranks put in
    different numbers, ``shares`` has one for each rank along the axes: pieces for an all_gather,
    and for an exchange what each rank sends to all others together.

    With ``per_sample``, numbers are those of one sample, and the collective happens once in each
    micro-batch, for as many samples as the rank has in it. ``arrays`` are the parameters that it is
    about: a rank puts in its shares of them. ``by_rank`` is ``numel`` for each rank of the mesh,
    where places on other axes decide too. ``places`` are those on the pipeline whose ranks
    take part, if not all do. ``part`` is what of ``arrays`` travels, if not all their numbers, see
    :class:`workbench.plan.replicas.Compression`. ``call`` is the number in the plan of the call
    of a layer that it belongs to, where calls of that layer differ.
    """

    name: str
    operation: Operation
    axes: tuple[str, ...]
    numel: int
    itemsize: int
    phase: Phase
    times: int = 1
    shares: tuple[int, ...] = ()
    per_sample: bool = False
    arrays: tuple[str, ...] = ()
    by_rank: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    part: str = ""
    call: int | None = None

    def group(self, mesh: Mesh, rank: int) -> tuple[int, ...]:
        """Return the ranks along the axes that take part where ``rank`` is, perhaps without it."""
        found = mesh.group(rank, *self.axes)
        if self.places:
            found = tuple(each for each in found if mesh.place(each, "pipeline") in self.places)
        return found

    def sent_bytes(self, degree: int, index: int, samples: Sequence[int] = (1,)) -> int:
        """Return the payload bytes that the rank at ``index`` of ``degree`` sends for one step.

        ``samples`` are those of the rank in each micro-batch. An all_reduce is a reduce_scatter
        and an all_gather over the balanced split, the volume of the bandwidth-optimal ring
        (Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms", 2009).
        """
        if degree == 1:
            return 0
        if self.per_sample:
            elements = sum(self._elements(degree, index, each) for each in samples)
        else:
            elements = self._elements(degree, index, 1) * self.times
        return elements * self.itemsize

    def _elements(self, degree: int, index: int, samples: int) -> int:
        numel = samples * (self.shares[index] if self.shares else self.numel)
        start, stop = balanced(numel, degree, index)
        own, others = stop - start, degree - 1
        return {
            "all_reduce": numel - own + others * own,
            "reduce_scatter": numel - own,
            "all_gather": others * numel,
            "broadcast": others * numel if index == 0 else 0,
            "exchange": numel,
        }[self.operation]
