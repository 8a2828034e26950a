"""Every strategy that suits a workload, at every number of ranks: one comparison of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.arguments import check_workers
from workbench.compare import compare
from workbench.mesh import BATCH_AXES
from workbench.strategies import STRATEGIES

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.comparison import Comparison
    from workbench.workload import Workload


def sweep(
    work: Workload,
    *,
    workers: int | None = None,
    hybrids: bool = True,
    lab: Lab | None = None,
    **options: Any,
) -> Comparison:
    """Compare all of :func:`candidates` that can be planned for ``work``.

    What cannot is in ``comparison.refused``, each with its sentence.

    Parameters
    ----------
    workers:
        The most ranks; the workers of the lab if left out.
    hybrids:
        Whether two axes at once are tried, too.
    options:
        As for :func:`workbench.compare.compare`: ``steps=20``, ``repeats=3``, ``wait=False``...

    Raises
    ------
    PlanError
        If nothing can be planned, or ``workers`` are more than the lab has.
    RunError
        If a run breaks, and ``wait`` is true.
    """
    from workbench.cluster.lab import current_lab

    lab = lab or current_lab()
    workers = len(lab.hosts) if workers is None else check_workers(workers)
    lab.hosts_for(workers)
    return compare(work, candidates(workers, hybrids), lab=lab, skip_refused=True, **options)


def candidates(workers: int, hybrids: bool = True) -> list[str]:
    """Return what is worth a try on up to ``workers`` ranks, whatever the workload.

    Every axis alone at every degree; and, with ``hybrids``, the pairs that the field uses on as
    many ranks as go: replicas of a model that is cut (``data`` or ``sharded`` with any other
    axis), and stages of cut layers (``pipeline`` with ``tensor``), as in Megatron-LM (Narayanan et
    al., 2021).
    """
    alone = [f"{axis}={n}" for axis in STRATEGIES for n in range(2, workers + 1)]
    if not hybrids:
        return ["serial", *alone]
    cutting = [axis for axis in STRATEGIES if axis not in BATCH_AXES]
    pairs = [(outer, inner) for outer in BATCH_AXES for inner in cutting]
    pairs.append(("pipeline", "tensor"))
    sizes = [(a, n // a) for n in range(workers, 3, -1) for a in range(2, n // 2 + 1) if n % a == 0]
    largest = [(a, b) for a, b in sizes if a * b == sizes[0][0] * sizes[0][1]]
    both = [f"{outer}={a},{inner}={b}" for outer, inner in pairs for a, b in largest]
    return ["serial", *alone, *both]
