"""What is known of a worker: where it is and what it offers to a rank."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


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


def lasting_order(host: Host) -> tuple[bool, int, str]:
    """Order by name, numbers by value: a worker that was started again has its name again."""
    number = host.name.isdigit()
    return not number, int(host.name) if number else 0, host.name


def equal_threads(hosts: Sequence[Host]) -> int:
    """Return the most threads that every rank can have when all workers have one."""
    workers_on = Counter(host.host_id for host in hosts)
    return max(1, min((host.cores // workers_on[host.host_id] for host in hosts), default=1))
