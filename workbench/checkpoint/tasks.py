"""Tasks that every worker does at the same time, waited for with a limit."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.errors import RunError

if TYPE_CHECKING:
    from distributed import Future

    from workbench.cluster.lab import Lab

LOOK_EVERY_S = 1.0
LEAST_LIMIT_S = 60.0
SLOWEST_BYTES_PER_S = 2e6
"""Of a disk that others use too; what takes longer than this is taken for stuck."""


def limit_s(size_bytes: int) -> float:
    """Return the longest that writing or reading so much may take."""
    return LEAST_LIMIT_S + size_bytes / SLOWEST_BYTES_PER_S


def finish(futures: Sequence[Future], workers: Sequence[str], lab: Lab, limit_s: float) -> None:
    """Wait until tasks on ``workers`` are done.

    Raises
    ------
    RunError
        If a worker has died or does not end in time. What a task raises is raised.
    """
    from distributed import wait

    ends_s = time.monotonic() + limit_s
    while not all(future.done() for future in futures):
        try:
            wait(futures, timeout=LOOK_EVERY_S)
        except CancelledError:  # such as by a lab that is closed meanwhile
            break
        except TimeoutError:
            _check(workers, lab)  # Dask waits for a worker that is gone
            if time.monotonic() > ends_s:
                lab.client.cancel(list(futures))
                raise RunError(f"The workers did not end within {limit_s:.0f} s.") from None
    for future in futures:
        if future.status == "error":
            error = future.exception(timeout=LOOK_EVERY_S)
            _check(workers, lab)
            raise error
        if future.status != "finished":
            _check(workers, lab)
            raise RunError(f"A task of the workers was {future.status}.")


def _check(workers: Sequence[str], lab: Lab) -> None:
    if lab.closed:
        raise RunError("The lab was closed meanwhile.")
    there = {host.worker for host in lab.hosts}
    for rank, worker in enumerate(workers):
        if worker not in there:
            raise RunError(
                f"The worker {worker} died meanwhile, and with it what it held.", rank=rank
            )
