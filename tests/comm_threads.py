"""Ranks as threads, on thread memory and on shared memory, for tests of comm."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from workbench.comm import kernel
from workbench.comm.comm import Comm, CommError
from workbench.comm.shared_memory import SharedMemoryComm
from workbench.comm.threads import run_threads

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


on_both = pytest.mark.parametrize("run", [run_threads, run_shared], ids=["threads", "shared"])
