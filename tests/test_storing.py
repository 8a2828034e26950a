"""Chunks lie where the scheme says, on a real cluster, and only those move that must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from torch import nn

import workbench as wb
from workbench.cluster.lab import Lab
from workbench.cluster.starting import start
from workbench.errors import PlanError
from workbench.placement import Placement
from workbench.storing import Stored, store


@pytest.fixture
def three() -> Iterator[tuple[LocalCluster, Lab]]:
    """A cluster of three workers that is not our own, adopted; workers can be added."""
    with (
        LocalCluster(
            n_workers=3, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        start(client=client, threads=1) as lab,
    ):
        yield cluster, lab


def numbers(rows: int = 600, chunk: int = 10) -> tuple[da.Array, da.Array]:
    x = da.arange(rows * 4, chunks=chunk * 4, dtype="f4").reshape(rows, 4)
    return x, da.arange(rows, chunks=chunk)


def obeyed(stored: Stored) -> bool:
    where, owner = stored.where(), stored.table.owner
    return {key: {name} for key, name in owner.items()} == where


@pytest.mark.timeout(110)
def test_what_moves_when_workers_change_is_what_the_scheme_says(
    three: tuple[LocalCluster, Lab],
) -> None:
    cluster, lab = three
    x, y = numbers()
    stored = store(x, y, lab=lab)
    assert obeyed(stored)
    assert len(stored.table.keys) == 60  # samples and labels of the same rows are one
    assert stored.table.balance <= 1.1

    before = stored.where()
    cluster.scale(4)
    cluster.sync(cluster._correct_state)
    lab.client.wait_for_workers(4, timeout=30)
    move = stored.update()
    assert obeyed(stored)
    after = stored.where()
    changed = {key for key in before if before[key] != after[key]}
    assert changed == set(move.keys)  # measured: no other chunk has another place
    (newcomer,) = {to for _, to in move.keys.values()}
    assert {name for key in changed for name in after[key]} == {newcomer}
    assert 0 < len(changed) <= 17  # its bound: 1.1 times 60 / 4, and whole chunks
    assert move.bytes == len(changed) * 10 * (4 * 4 + 8)

    died = next(worker for worker in cluster.workers.values() if str(worker.name) == newcomer)
    cluster.sync(died.close, nanny=False)
    assert set(stored.update().keys) == changed  # made again, from what they were made of
    assert obeyed(stored)

    leaver = stored.table.workers[0]
    gone = {key for key, name in stored.table.owner.items() if name == leaver}
    assert set(stored.update(leaving=[leaver]).keys) == gone
    assert obeyed(stored)
    for given, kept in zip((x, y), stored.arrays, strict=True):
        np.testing.assert_array_equal(kept.compute(), given.compute(scheduler="sync"))


@pytest.mark.timeout(90)
def test_a_rank_runs_where_most_of_its_chunks_are(lab: Lab, tmp_path: Path) -> None:
    """All chunks of rank 0's rows lie on the second worker, and those of rank 1 on the first."""
    first, second = (host.name for host in lab.hosts)
    x, y = numbers(rows=40)
    usual = {first: 1.0, second: 1.0}
    stored = store(x, y, scheme="round robin", capacity=usual, lab=lab)
    work = wb.Workload(model=nn.Linear(4, 40), data=stored.arrays, batch_size=8)
    plan = wb.plan(work, "data=2")
    spread = Placement(lab).hosts(work, plan)
    assert [host.name for host in spread] == [first, second]  # as many bytes here as there

    for salt in range(20):  # until the hash has turned the two halves round
        halves = store(x.rechunk((20, 4)) + salt, y.rechunk(20), lab=lab)
        if list(halves.table.owner.values()) == [second, first]:
            break
    turned = work.with_(data=halves.arrays)
    assert [host.name for host in Placement(lab).hosts(turned, plan)] == [second, first]
    run = wb.run(turned, "data=2", steps=2, folder=tmp_path, lab=lab).wait(60)
    names = {host.worker: host.name for host in lab.hosts}
    assert [names[info.worker] for info in run.ranks] == [second, first]
    assert run.moved_bytes == 0

    half = wb.run(work, "data=2", steps=2, folder=tmp_path, lab=lab).wait(60)
    assert half.moved_bytes == 2 * 10 * (4 * 4 + 8)  # one chunk of each rank lies with the other


@pytest.mark.timeout(60)
def test_refusals_say_what_works(lab: Lab) -> None:
    x, _ = numbers(rows=40)
    for kind, sentence in (
        ({"scheme": "hash"}, "There is no scheme 'hash'"),
        ({"capacity": "speed"}, "capacity='speed' must be 'memory' or 'cores'"),
        ({"capacity": {"a": 1}}, "capacity= has no number for worker"),
    ):
        with pytest.raises(PlanError, match=sentence):
            store(x, lab=lab, **kind)
    with pytest.raises(PlanError, match="nothing to store"):
        store(lab=lab)
    with pytest.raises(PlanError, match="unknown size"):
        store(x[x[:, 0] > 3], lab=lab)
    stored = store(x, lab=lab, capacity="cores")
    assert "4 of 4 lie where the scheme says (measured)" in str(stored)
    again = store(stored.arrays[0], np.ones(40), lab=lab)  # what is stored can be stored otherwise
    np.testing.assert_array_equal(again.arrays[0].compute(), x.compute(scheduler="sync"))
    assert again.arrays[1].chunks == (x.chunks[0],)
    with pytest.raises(PlanError, match="There is no worker 'nobody' that could leave"):
        stored.update(leaving=["nobody"])
    with pytest.raises(PlanError, match="There are no workers"):
        stored.update(leaving=[host.name for host in lab.hosts])
