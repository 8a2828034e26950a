"""What each rank of a gang is told to do, and how it reaches the rank's host."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Future

from workbench.cluster.devices import gpu_for_each
from workbench.cluster.host import Host
from workbench.cluster.rank_host import ask_host, start_rank
from workbench.errors import RunError

if TYPE_CHECKING:
    from workbench.cluster.gang import Gang
    from workbench.cluster.lab import Lab

COMM_LIMIT_S = 60.0
"""Time limit of each collective: the last net, when a rank hangs without dying."""


def orders_for(
    gang: Gang, lab: Lab, hosts: Sequence[Host], work: Mapping[str, bytes]
) -> list[dict[str, Any]]:
    """Return the order for each rank, after making the place where the ranks meet.

    ``work`` holds the pickled target and job.

    Raises
    ------
    RunError
        The worker of rank 0 does not serve ranks.
    """
    from workbench.comm.connect import choose  # loads torch, which not every client needs

    ids = [host.host_id for host in hosts]
    backend = choose(ids, gang.device)
    one_machine = len(set(ids)) == 1
    first = hosts[0].worker
    question = (ask_host, lab.id, "meet", gang.run_id, backend, one_machine)
    meeting = lab.ask(*question, workers=[first])[first]
    if isinstance(meeting, Exception):
        raise RunError(f"Worker {first} does not serve ranks: {meeting}") from meeting
    gpus = gpu_for_each(hosts) if gang.device == "cuda" else None
    return [
        {
            **work,
            "run_id": gang.run_id,
            "label": gang.label,
            "rank": rank,
            "size": gang.size,
            "worker": host.worker,
            "device": "cpu" if gpus is None else f"cuda:{gpus[rank]}",
            "threads": gang.threads,
            "backend": backend,
            "meeting": meeting,
            "timeout_s": COMM_LIMIT_S,
            # Modules beside the user's script or notebook are found by ranks on the same machine.
            "path": [str(Path(entry).absolute()) for entry in sys.path],
        }
        for rank, host in enumerate(hosts)
    ]


def submit(lab: Lab, order: Mapping[str, Any], shares: Mapping[str, Future]) -> Future:
    """Start a rank by a task on its worker, to which Dask hands the shares it holds there."""
    return lab.client.submit(
        start_rank,
        lab.id,
        dict(order),
        dict(shares),
        key=f"workbench-start-{order['run_id']}-{order['rank']}",
        workers=[order["worker"]],
        allow_other_workers=False,
        retries=0,
        pure=False,
    )
