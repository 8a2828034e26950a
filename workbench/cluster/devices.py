"""Which rank computes on which device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench import machine
from workbench.cluster.host import Host
from workbench.errors import PlanError

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that torch can use in this process, by the names that it was given."""
    count = len(machine.gpus())
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(count)] if given is None else given.split(",")
    return tuple(name.strip() for name in names[:count])


def gpu_for_each(hosts: Sequence[Host]) -> tuple[int, ...] | None:
    """Return for each rank, in order, the index of a GPU of its own among those its worker sees.

    None if there is not one for each: two ranks cannot share a GPU (NCCL refuses it).
    """
    taken: set[tuple[str, str]] = set()
    chosen = []
    for host in hosts:
        free = [i for i, gpu in enumerate(host.gpus) if (host.host_id, gpu) not in taken]
        if not free:
            return None
        chosen.append(free[0])
        taken.add((host.host_id, host.gpus[free[0]]))
    return tuple(chosen)


def resolve_device(device: str, lab: Lab, size: int) -> str:
    """Return "cuda" if ``device`` allows it and each of ``size`` ranks has a GPU, else "cpu".

    Raises
    ------
    PlanError
        ``device`` is not "auto", "cpu" or "cuda", or "cuda" was asked for and GPUs are too few, or
        the lab has fewer workers than ranks.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise PlanError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}.")
    hosts = lab.hosts_for(size)
    if device == "cpu":
        return "cpu"
    if gpu_for_each(hosts) is not None:
        return "cuda"
    if device == "auto":
        return "cpu"
    count = len({(host.host_id, gpu) for host in hosts for gpu in host.gpus})
    fewer = f" or at most {count} ranks" if count else ""
    raise PlanError(
        f"device='cuda' needs a GPU for each of {size} ranks, and their workers see {count}; use "
        f"device='cpu'{fewer}."
    )
