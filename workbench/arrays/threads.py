"""How many threads torch takes inside of a task."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0
_outside = 1


@contextmanager
def few_threads() -> Iterator[None]:
    """Let torch take one thread in a task that has others beside it.

    A scheduler with threads runs as many tasks as there are cores; were torch to use them all in
    each, they would wait for each other. A task in the main thread, or of a Dask worker with one
    thread, has its process to itself, and torch keeps what it is set to.
    """
    global _inside, _outside
    if threading.current_thread() is threading.main_thread() or _alone():
        yield
        return
    with _lock:
        if _inside == 0:
            _outside = torch.get_num_threads()
        _inside += 1
    torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.set_num_threads(_outside)


def _alone() -> bool:
    """Return whether a Dask worker runs one task at a time in this process."""
    from distributed.worker import thread_state

    worker = getattr(thread_state, "execution_state", {}).get("worker")
    return worker is not None and worker.state.nthreads == 1
