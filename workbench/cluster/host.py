"""What is known of a worker: where it is and what it offers to a rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench import machine


@dataclass(frozen=True, slots=True)
class Host:
    """One Dask worker, as the place of a rank.

    Attributes
    ----------
    worker, name:
        Dask's address and name of the worker.
    host_id:
        Equal for workers whose ranks can map the same memory, different for all others.
    cores:
        CPU cores that the worker's machine lets it use.
    gpus:
        GPUs that the worker's processes see, in CUDA's order. The names are unique on one host if
        the worker was given GPUs by name or number; otherwise they are just numbers.
    memory_bytes:
        Memory that the worker's machine lets it use.
    """

    worker: str
    name: str
    host_id: str
    cores: int
    gpus: tuple[str, ...]
    memory_bytes: int


def host_id() -> str:
    """Return a text that is equal for processes which can map each other's memory."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


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
