"""Ranks as threads, on thread memory and on shared memory, for tests of comm."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from workbench.comm import kernel
from workbench.comm.comm import Comm, CommError
from workbench.comm.shared_memory import SharedMemoryComm
from workbench.comm.threads import run_threads
from workbench.mesh import balanced

Work = Callable[[Comm], Any]
Run = Callable[..., list[Any]]


def run_shared(size: int, work: Work, timeout_s: float = 20.0) -> list[Any]:
    """Run ``work`` on ranks that are threads, each with its own mapping of one memfd."""
    fd = kernel.memfd_create("comm test")
    results: dict[int, Any] = {}

    def rank_main(rank: int) -> None:
        try:
            with SharedMemoryComm(rank, size, fd, timeout_s) as comm:
                results[rank] = work(comm)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    errors = [value for value in results.values() if isinstance(value, Exception)]
    causes = [error for error in errors if not isinstance(error, CommError)] or errors
    if causes:
        raise causes[0]
    return [results[rank] for rank in range(size)]


def check_collectives(comm: Comm) -> None:
    """Call every collective once with small and large tensors; ``comm`` may be any group."""
    size, rank, ranks = comm.size, comm.rank, comm.ranks
    for numel in (3, 70_001):
        mine = torch.arange(numel, dtype=torch.float64) + ranks[rank]
        whole = torch.arange(numel, dtype=torch.float64) * size + sum(ranks)
        assert torch.equal(comm.all_reduce(mine.clone()), whole)
        share = whole[slice(*balanced(numel, size, rank))]
        assert torch.equal(comm.reduce_scatter(mine), share)
        gathered = comm.all_gather(mine[: ranks[rank]])
        assert [len(each) for each in gathered] == [min(numel, number) for number in ranks]
        assert all(
            each[0] == number for each, number in zip(gathered, ranks, strict=True) if number
        )
        assert comm.broadcast(mine.clone(), size - 1)[0] == ranks[-1]
        allocated = comm.allocate(numel, torch.float64)
        assert torch.equal(comm.all_reduce(allocated.copy_(mine)), whole)
        common = comm.common(numel * size, torch.float64)
        if common is not None:  # ranks that share no memory have none in common
            common[rank * numel : (rank + 1) * numel] = mine
            comm.lend(mine.nbytes, name="mine")
            assert [each[0] for each in common.split(numel)] == list(ranks)
        comm.barrier()
        if size > 1:
            before, after = (rank - 1) % size, (rank + 1) % size
            comm.exchange({after: mine}, {before: (received := mine.new_empty(numel))})
            assert received[0] == ranks[before]
        if size > 1 and rank < 2:
            passed = mine if rank == 0 else mine.new_empty(numel)
            comm.send(passed, 1, name="on") if rank == 0 else comm.recv(passed, 0, name="on")
            assert passed[0] == ranks[0]
    comm.barrier()


on_both = pytest.mark.parametrize("run", [run_threads, run_shared], ids=["threads", "shared"])
