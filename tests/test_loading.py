"""A rank reads rows from files by itself: the same numbers, ahead of time, in little memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import psutil
import pytest
import torch
from rank_threads import run_on_threads
from torch import nn

import workbench as wb
from workbench.cluster.context import RankContext
from workbench.cluster.lab import Lab
from workbench.cluster.starting import start
from workbench.comm.threads import run_threads
from workbench.engine import Job, train
from workbench.loading import Loader
from workbench.order import Order
from workbench.placement import Placement, pieces
from workbench.planning import plan
from workbench.sources.source import Region, Rows, Source
from workbench.workload import Workload


@dataclass(frozen=True)
class Watched(Source):
    """Row ``n`` holds ``n``; says when a row has been read. Row 95 cannot be read."""

    def read(self, start: int, stop: int, rest: tuple[slice, ...] = ()) -> np.ndarray:
        if start <= 95 < stop:
            raise OSError("row 95 is broken")
        for row in range(start, stop):
            READ[row].set()
        return np.arange(start, stop, dtype="f4")[:, None].repeat(3, 1)


READ = [threading.Event() for _ in range(100)]


def loader(x: Any, samples: int, steps: int) -> tuple[Loader, Order]:
    y = np.arange(samples)
    work = Workload(model=nn.Linear(3, 2), data=(np.ones((samples, 3)), y % 2), batch_size=10)
    planned = plan(work, "serial")
    order = Order(samples, 10, 0)
    comm: Any = None
    context = RankContext(0, 1, comm, torch.device("cpu"), arrays={"x": x, "y": y})
    return Loader(context, planned, order, [torch.float32], steps), order


def watched(samples: int) -> Rows:
    for event in READ:
        event.clear()
    opened = Region(Watched((100, 3), "<f4", 1), ((0, samples), (0, 3)), "float32", 1, 0).open()
    assert isinstance(opened, Rows)
    return opened


def test_rows_of_the_next_step_are_read_while_this_one_computes() -> None:
    found, order = loader(watched(80), 80, steps=2)
    ((rows, (x,), y),) = found.take(0)
    assert x[:, 0].tolist() == y.tolist() == rows.index.tolist()
    coming = order.rows(1, 1, 0)[0].index
    assert all(READ[row].wait(10) for row in coming)  # nobody has asked for step 1 yet
    after = order.rows(2, 1, 0)[0].index
    ((_, (x,), _),) = found.take(1)
    assert x[:, 0].tolist() == coming.tolist()
    assert not any(READ[row].wait(0.02) for row in after)  # the run ends before step 2


def test_a_step_never_waits_where_loading_is_faster_than_computing() -> None:
    found, _ = loader(watched(80), 80, steps=8)
    found.take(0)
    for step in range(1, 8):
        found._ahead[step].result(10)  # computing takes longer than this
        ready = found._ahead[step]
        found.take(step)
        assert ready.done()
        assert list(found._ahead) == ([step + 1] if step < 7 else [])  # asked for at once


def test_what_is_in_memory_is_taken_when_it_is_wanted() -> None:
    found, order = loader(np.arange(240, dtype="f4").reshape(80, 3), 80, steps=9)
    for step in range(9):
        ((rows, (x,), _),) = found.take(step)
        assert x[:, 0].tolist() == [3 * n for n in order.rows(step, 1, 0)[0].index]
        assert len(rows.index) == 10
    assert found._thread is None


def test_a_row_that_cannot_be_read_is_an_error_of_its_step() -> None:
    found, order = loader(watched(100), 100, steps=10)
    broken = next(s for s in range(10) if 95 in order.rows(s, 1, 0)[0].index)
    for step in range(broken):
        found.take(step)
    with pytest.raises(OSError, match="row 95 is broken"):
        found.take(broken)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("kind", ["npy", "zarr"])
@pytest.mark.parametrize("strategy", ["serial", "data=3"])
def test_training_from_files_equals_training_from_memory(
    kind: str, strategy: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(61, 6))
    y = np.arange(61) % 3
    if kind == "npy":
        np.save(tmp_path / "x.npy", x)
        lazy = wb.dataset(tmp_path / "x.npy")["x"]
    else:
        import zarr

        zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(7, 6))
        lazy = wb.dataset(tmp_path / "x.zarr")["x"]
    options: Any = {"model": network, "batch_size": 8, "dtype": "float64", "shuffle_block": 4}
    expected = run_on_threads(Workload(data=(x, y), **options), strategy, 20)
    work = Workload(data=(lazy, y), **options)
    planned = plan(work, strategy)

    def rank(comm: Any) -> Any:
        found = pieces(work, planned, comm.rank)
        from workbench.datasets.opening import source_of

        source = source_of(work.x)
        assert source is not None
        region = Region(source, found["x"][1], "float64", 4, 2_000)
        arrays = {"x": region.open(), "y": np.asarray(found["y"][0])[slice(*found["y"][1][0])]}
        context = RankContext(comm.rank, comm.size, comm, torch.device("cpu"), arrays=arrays)
        return train(context, Job(work.payload(), planned, 20))

    outcomes = run_threads(planned.ranks, rank, timeout_s=60.0)
    assert [row["loss"] for row in outcomes[0].rows] == expected.losses.tolist()


@contextmanager
def memory_limit(lab: Lab, limit: int) -> Iterator[None]:
    """Have every worker believe that it has ``limit`` bytes."""

    def limited(amount: int | None, dask_worker: Any) -> int:
        manager = dask_worker.memory_manager
        before, manager.memory_limit = manager.memory_limit, amount
        return before

    before = lab.client.run(limited, limit)
    try:
        yield
    finally:
        lab.client.run(limited, next(iter(before.values())))


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """Workers that no other test has filled, and that none is given after this one."""
    with start(workers=2, threads=1) as opened:
        yield opened


@pytest.mark.timeout(240)
def test_data_of_four_times_the_memory_is_read_as_it_is_needed(
    own_lab: Lab, tmp_path: Path
) -> None:
    import zarr

    lab = own_lab
    limit, row = 400 * 2**20, 1000
    samples = limit // row + 1  # of four bytes: four times the limit
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(samples, row), chunks=(2000, row), dtype="f4", fill_value=0.5
    )
    array[:2000] = 0.25  # chunks that nobody has written have the fill value
    x = wb.dataset(tmp_path / "x.zarr")["x"]
    assert x.nbytes >= 4 * limit
    y = da.zeros(samples, chunks=x.chunks[0], dtype="i8")
    work = Workload(model=nn.Linear(row, 3), data=(x, y), batch_size=16, shuffle_block=8)
    with memory_limit(lab, limit):
        share = Placement(lab).shares(work, wb.plan(work, "data=2"))[0]["x"]
        kind = lab.client.submit(lambda held: type(held).__name__, share).result(timeout=60)
        assert kind == "Region"
        del share
        peaks = [0]
        run = wb.run(work, "data=2", steps=12, folder=tmp_path, lab=lab)
        while run.status in ("starting", "running"):
            threading.Event().wait(0.01)
            for info in run.ranks:
                if psutil.pid_exists(info.pid):
                    peaks.append(peak_bytes(info.pid))
        assert run.wait(60).status == "done"
    assert max(peaks) > 0
    assert max(peaks) < 600e6  # torch and a few chunks; the rank's rows alone are 840 MB
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def peak_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(s.split()[1]) * 1024 for s in lines if s.startswith("VmHWM")), 0)


@pytest.mark.timeout(110)
def test_the_client_reads_only_the_header_of_a_large_file(lab: Lab, tmp_path: Path) -> None:
    shape = (2**19, 1024)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f4", shape)  # 2 GB of holes
    before = psutil.Process().memory_info().rss
    x = wb.dataset(tmp_path / "x.npy")["x"]
    y = da.zeros(len(x), chunks=x.chunks[0], dtype="i8")
    work = Workload(model=nn.Linear(1024, 2), data=(x, y), batch_size=64)
    run = wb.run(work, "data=2", steps=2, folder=tmp_path).wait(100)
    assert run.status == "done"
    assert x.nbytes == 2**31
    assert psutil.Process().memory_info().rss - before < 50e6
