"""What the page of placement shows: chunks of a workload, placed by every scheme, and what moved.

Arithmetic alone; no cluster is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, prod

from workbench.distribution import Distribution, Move, placement
from workbench.errors import PlanError
from workbench.hashing import SCHEMES
from workbench.mesh import balanced
from workbench.plan import Plan

KINDS = ("data", "parameters", "inputs")
"""What of a workload can be placed: its samples, its parameters, and what its layers are given."""

CHUNKS = 60
"""Into how many chunks something is cut, roughly, if nobody says."""

MOST_CHUNKS, MOST_WORKERS = 1000, 16


def chunks_of(plan: Plan, kind: str, count: int) -> dict[str, int]:
    """Return the bytes of about ``count`` chunks of a workload, by key.

    Parameters
    ----------
    kind:
        ``"data"``: samples with their targets, in blocks. ``"parameters"``, and ``"inputs"``: what
        each layer is given for one batch; both cut along dim 0 into chunks of about equal size.

    Raises
    ------
    PlanError
        If there is no such kind, or ``count`` is no number of chunks.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_CHUNKS:
        raise PlanError(f"Chunks is {count!r}; give a whole number from 1 to {MOST_CHUNKS:,}.")
    if kind == "data":
        arrays = [*plan.inputs, *([] if plan.targets is None else [plan.targets])]
        per_sample = sum(a.numel * a.itemsize for a in arrays) // plan.batch.size
        blocks = min(count, plan.batch.samples)
        return {
            f"samples/{n}": per_sample * (stop - start)
            for n in range(blocks)
            for start, stop in [balanced(plan.batch.samples, blocks, n)]
        }
    if kind == "parameters":
        return _cut(((a.name, a.shape, a.itemsize) for a in plan.arrays), count)
    if kind == "inputs":
        given = (
            (planned.layer.name, array.shape, array.itemsize)
            for planned in plan.layers
            for array in planned.layer.arguments[:1]
        )
        return _cut(given, count)
    raise PlanError(f"There is no kind {kind!r} of chunks; there are {', '.join(KINDS)}.")


def _cut(arrays: Iterable[tuple[str, tuple[int, ...], int]], count: int) -> dict[str, int]:
    """Return the bytes of blocks of rows of arrays, none much above the mean of ``count``."""
    arrays = list(arrays)
    limit = sum(prod(shape) * size for _, shape, size in arrays) / count or 1
    found: dict[str, int] = {}
    for name, shape, itemsize in arrays:
        rows, *rest = shape or (1,)
        blocks = max(1, min(rows, ceil(rows * prod(rest) * itemsize / limit - 1e-9)))
        for n in range(blocks):
            start, stop = balanced(rows, blocks, n)
            key = f"{name}/{n}"
            while key in found:  # a layer that is called twice
                key += "'"
            found[key] = (stop - start) * prod(rest) * itemsize
    return found


@dataclass(frozen=True)
class Schemes:
    """The same chunks on the same workers by every scheme, and where they were one change ago.

    Attributes
    ----------
    tables:
        By scheme, in the order of :data:`workbench.hashing.SCHEMES`.
    before:
        The tables before the last change; None where there was none.
    """

    tables: Mapping[str, Distribution]
    before: Mapping[str, Distribution] | None = None

    @classmethod
    def place(cls, chunks: object, workers: object) -> Schemes:
        """Place chunks by every scheme; takes what :func:`workbench.placement` takes.

        Raises
        ------
        PlanError
            As :func:`workbench.placement`.
        """
        return cls({scheme: placement(chunks, workers, scheme) for scheme in SCHEMES})

    @property
    def chunks(self) -> dict[str, int]:
        """The bytes of each chunk."""
        table = next(iter(self.tables.values()))
        return dict(zip(table.keys, table.sizes, strict=True))

    @property
    def workers(self) -> dict[str, float]:
        """How much each worker counts, by its name."""
        return dict(next(iter(self.tables.values())).capacities)

    def moved(self, scheme: str) -> Move | None:
        """Return what the last change has moved by a scheme; None if nothing has changed."""
        if self.before is None:
            return None
        return self.before[scheme].moved(self.tables[scheme])

    def change(self, workers: Mapping[str, float]) -> Schemes:
        """Return where the chunks go when these are the workers.

        Raises
        ------
        PlanError
            If there are none, or too many to draw, or one counts nothing.
        """
        if len(workers) > MOST_WORKERS:
            raise PlanError(
                f"The page draws {MOST_WORKERS} workers at most; for more there is "
                "wb.compare_schemes(chunks, workers)."
            )
        after = {scheme: table.with_workers(workers) for scheme, table in self.tables.items()}
        return Schemes(after, self.tables)

    def join(self) -> tuple[str, Schemes]:
        """Have a worker join that counts as much as the others do on the average; return its name.

        Raises
        ------
        PlanError
            If there are as many as can be drawn.
        """
        workers = self.workers
        name = next(str(n) for n in range(len(workers) + 1) if str(n) not in workers)
        return name, self.change({**workers, name: sum(workers.values()) / len(workers)})

    def leave(self, name: str) -> Schemes:
        """Have a worker leave.

        Raises
        ------
        PlanError
            If it is the last one.
        """
        workers = self.workers
        if len(workers) == 1:
            raise PlanError(f"Worker {name} is the last one, and chunks must be somewhere.")
        return self.change({other: c for other, c in workers.items() if other != name})
