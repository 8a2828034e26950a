"""What this machine is: the cores that may be used, GPUs, memory and versions.

Every figure is shown beside the machine it was measured on, so asking must be cheap. GPUs are asked
of torch, but in a process of its own: the caller neither loads torch nor holds a CUDA context,
which would take memory on the GPU, or the whole GPU where it is set to serve one process.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import psutil

DISTRIBUTIONS = {
    "torch": "torch",
    "dask": "dask",
    "distributed": "distributed",
    "numpy": "numpy",
    "workbench": "dask-workbench",
}
"""The packages whose versions belong to every figure, with their distribution names."""

GPU_QUERY_LIMIT_S = 60.0
"""Longest wait for torch to list the GPUs: importing it from a cold network disk is slow."""

# A device file is the cheap sign of a GPU: NVIDIA, AMD, NVIDIA on a Tegra board, and WSL in turn.
_GPU_FILES = ("dev/nvidiactl", "dev/kfd", "dev/nvhost-ctrl-gpu", "dev/dxg")

_GPU_QUERY = """
import json, torch
gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([[g.name, g.total_memory, f"{g.major}.{g.minor}"] for g in gpus]))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that torch can use; ``capability`` is CUDA's compute capability, as ``"9.0"``."""

    name: str
    memory_bytes: int
    capability: str


def describe() -> dict[str, Any]:
    """Return what this machine is, as plain values that JSON can hold.

    Keys: ``cpu_model``, ``cores`` (CPUs that this process may use), ``physical_cores`` (of those),
    ``threads`` (CPUs that the machine shows, usable or not), ``memory_bytes`` (usable), ``gpus``
    (a dict for each :class:`Gpu`), ``platform`` and ``versions`` (None: not installed).
    """
    return {
        "cpu_model": cpu_model(),
        "cores": cores(),
        "physical_cores": physical_cores(),
        "threads": os.cpu_count() or cores(),
        "memory_bytes": memory_bytes(),
        "gpus": [asdict(gpu) for gpu in gpus()],
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
    }


def cores(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: by affinity and by the quota of its cgroups.

    Part of a CPU is not counted: a rank that gets half of one is a straggler to all others.
    ``root`` is where ``proc`` and ``sys`` are looked for.
    """
    return max(1, int(min([len(_allowed_cpus()), *_cpu_quotas(root)])))


def physical_cores(root: Path = Path("/")) -> int:
    """Return how many physical cores are behind :func:`cores`: hyperthreads count once."""
    topology = root / "sys/devices/system/cpu"
    siblings = {
        _text(topology / f"cpu{cpu}/topology/thread_siblings_list") for cpu in _allowed_cpus()
    }
    found = len(siblings) if None not in siblings else psutil.cpu_count(logical=False)
    return min(found or cores(root), cores(root))


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory in bytes that this process may use: the machine's or its cgroups' limit."""
    limits = _cgroup_values("memory", "memory.max", "memory.limit_in_bytes", root)
    return min([psutil.virtual_memory().total, *(int(v) for v in limits if v.isdigit())])


def cpu_model(root: Path = Path("/")) -> str:
    """Return the CPU's name, or the architecture's where the kernel does not tell (most ARM)."""
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def gpu_visible(root: Path = Path("/")) -> bool:
    """Return whether the system shows a GPU at all, whether or not torch can use it."""
    return any((root / file).exists() for file in _GPU_FILES)


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that torch can use here, in CUDA's order; none if it cannot use any.

    Asked once per process; takes as long as an import of torch, but only where there is a GPU.
    """
    if not gpu_visible():
        return ()
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _GPU_QUERY],
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=GPU_QUERY_LIMIT_S,
        )
        return tuple(Gpu(*fields) for fields in json.loads(answer.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages in :data:`DISTRIBUTIONS`."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in DISTRIBUTIONS.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _allowed_cpus() -> set[int]:
    """Return the CPUs that the scheduler may put this process on."""
    if sys.platform == "linux":
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield every limit on CPU time that holds for this process, in CPUs."""
    for value in _cgroup_values("cpu", "cpu.max", "cpu.cfs_quota_us", root):
        quota, _, period = value.partition(" ")
        # The old layout keeps the period in a file of its own; 100 ms is its default, and what
        # container runtimes set. No limit is written "max" or -1.
        if quota.isdigit():
            yield int(quota) / int(period or 100_000)


def _cgroup_values(controller: str, file: str, old_file: str, root: Path) -> Iterator[str]:
    """Yield one setting from this process's cgroup and from every cgroup above it.

    Each level limits all below it. ``file`` is the setting in the unified layout (version 2),
    ``old_file`` in the layout with one tree per controller (version 1).
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tree, name = root / "sys/fs/cgroup", file
        elif controller in controllers.split(","):
            tree, name = root / "sys/fs/cgroup" / controller, old_file
        else:
            continue
        # In a container the path may be the host's, and lead nowhere here or out of the tree.
        here = PurePosixPath(path)
        for level in (here, *here.parents):
            value = None if ".." in level.parts else _text(tree / level.relative_to("/") / name)
            if value is not None:
                yield value


def _text(file: Path) -> str | None:
    """Return what a small system file says, or None if it is not there or not for us."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
