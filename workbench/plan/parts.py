"""Who holds which part of an array: the plan's cuts as runs of positions, with the ranks of each.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from workbench.plan.cuts import Cut, runs_of
from workbench.plan.plan import Plan
from workbench.windows import Run


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an array: along each dim runs of positions, and all ranks that hold it.

    There are several runs along a dim that was flattened out of others of which one is cut.
    """

    runs: tuple[tuple[Run, ...], ...]
    ranks: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of items."""
        return prod(sum(stop - start for start, stop in along) for along in self.runs)


def parts(
    plan: Plan, shape: Sequence[int], cuts: Iterable[Cut], ranks: Iterable[int] | None = None
) -> tuple[Part, ...]:
    """Return the parts of an array that is cut so, in the order of the first rank of each.

    Parameters
    ----------
    ranks:
        Those that hold any of it, if not all do.
    """
    cuts = tuple(cuts)
    found: dict[tuple[tuple[Run, ...], ...], list[int]] = {}
    for rank in range(plan.ranks) if ranks is None else ranks:
        found.setdefault(_runs(plan, shape, cuts, rank), []).append(rank)
    return tuple(Part(runs, tuple(of)) for runs, of in found.items())


def _runs(
    plan: Plan, shape: Sequence[int], cuts: tuple[Cut, ...], rank: int
) -> tuple[tuple[Run, ...], ...]:
    found: list[tuple[Run, ...]] = [((0, size),) for size in shape]
    for cut in cuts:
        if cut.flat is None:
            found[cut.dim] = (plan.share(shape, (cut,), rank)[cut.dim],)
        else:
            own = [plan.share_of_label(label, size, rank) for label, size in cut.flat.parts]
            found[cut.dim] = runs_of(cut.flat, own)
    return tuple(found)
