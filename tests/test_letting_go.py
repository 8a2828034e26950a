"""What a run or a comparison has left on the workers is freed as soon as nobody holds it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_run import until, workload

import workbench as wb
from workbench.cluster.lab import Lab

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector, which may come hours later in a kernel at rest, does not come.

    The first plan of a process has torch load parts that keep an error, and with it the frames of
    who had it made.
    """
    wb.plan(workload(), "serial")
    gc.disable()
    yield
    gc.enable()


def kept(lab_id: str, run_id: str, dask_worker: Any) -> int:
    """Return how many arrays the ranks of a run have left on a worker."""
    from workbench.cluster.rank_host import host_of

    return sum(len(seat.kept) for seat in host_of(dask_worker, lab_id)._seats_of(run_id))


@pytest.mark.parametrize("compared", [False, True])
def test_arrays_are_freed_with_the_run(
    lab: Lab, tmp_path: Path, no_collector: None, compared: bool
) -> None:
    held: Any
    if compared:
        held = wb.compare(workload(), ["data=2"], steps=6, repeats=1, prove=False, folder=tmp_path)
        runs = [(run.run_id, run.ranks[0].worker) for run in held.runs]
    else:
        held = wb.run(workload(), "serial", steps=1, folder=tmp_path).wait(30)
        runs = [(held.run_id, held.ranks[0].worker)]

    def left() -> int:
        return sum(lab.ask(kept, lab.id, n, workers=[worker])[worker] for n, worker in runs)

    assert left() > 0
    del held
    until(lambda: left() == 0)
