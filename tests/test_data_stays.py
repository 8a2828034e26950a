"""The client never holds the data: pieces are made, checked and used on the workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import wait

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.order import Order
from workbench.placement import Placement


@pytest.mark.timeout(90)
def test_each_piece_lies_on_the_worker_of_its_rank(lab: Lab) -> None:
    work = wb.workload("digits-cnn")
    plan = wb.plan(work, "data=2")
    shares = Placement(lab).shares(work, plan)
    order = Order(work.samples, work.batch_size, work.seed)
    wait([f for share in shares for f in share.values()], timeout=60)
    where = lab.client.who_has([f for share in shares for f in share.values()])
    for rank, (share, host) in enumerate(zip(shares, lab.hosts_for(2), strict=True)):
        start, stop = order.piece(2, rank)
        shape = lab.client.submit(np.shape, share["x"]).result(timeout=30)
        assert shape == (stop - start, *work.sample_shape)
        for future in share.values():
            assert list(where[future.key]) == [host.worker]


@pytest.mark.timeout(90)
def test_pieces_are_placed_once_for_several_runs(lab: Lab) -> None:
    work = wb.workload("digits-cnn")
    placement = Placement(lab)
    plan = wb.plan(work, "data=2")
    first = placement.shares(work, plan)
    again = placement.shares(work, plan)
    assert [f.key for s in first for f in s.values()] == [f.key for s in again for f in s.values()]


@pytest.mark.timeout(90)
def test_the_client_stays_small(lab: Lab, tmp_path: Path) -> None:
    """480 MB of data pass through the ranks; the client grows by a small part of that."""
    import dask.array as da
    from torch import nn

    samples = 60_000
    x = da.random.default_rng(0).normal(size=(samples, 1000), chunks=(4_000, 1000))
    y = da.random.default_rng(1).integers(0, 3, samples, chunks=4_000)
    work = wb.Workload(model=nn.Linear(1000, 3), data=(x, y), batch_size=64)
    wb.plan(work, "data=2")  # loads torch
    before = psutil.Process().memory_info().rss
    run = wb.run(work, "data=2", steps=3, folder=tmp_path).wait(60)
    assert run.status == "done"
    assert psutil.Process().memory_info().rss - before < 60e6
