"""all_reduce between two processes of one host: shared memory against torch's gloo.

Run by hand: ``python tests/benchmarks/all_reduce.py``. Two processes with one thread each hold both
communicators and take turns: some calls of ours, as many of gloo, and so on. Every figure is the
median over the turns with the smallest and the largest, on rank 0. Before a turn both ranks meet,
so that none is charged for the other's lateness.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from workbench.comm.kernel import memfd_create

RANKS = 2
NUMELS = {"4 kB": 1 << 10, "1 MB": 1 << 18, "64 MB": 1 << 24}
CALLS = {"4 kB": 50, "1 MB": 20, "64 MB": 2}
BARS = {"4 kB": 8, "1 MB": 3, "64 MB": 3}


def rank_main(rank: int, fd: int, store_file: str, turns: int) -> None:
    """Measure, and print the table on rank 0."""
    import torch
    import torch.distributed as dist

    from workbench.comm.shared_memory import SharedMemoryComm

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", store=dist.FileStore(store_file, RANKS), rank=rank, world_size=RANKS
    )
    comm = SharedMemoryComm(rank, RANKS, fd, timeout_s=60)

    def turn(call: Callable[[], object], count: int) -> float:
        comm.barrier()
        start = perf_counter()
        for _ in range(count):
            call()
        return (perf_counter() - start) / count * 1e3

    def row(size: str) -> str:
        plain, theirs = torch.ones(NUMELS[size]), torch.ones(NUMELS[size])
        allocated = comm.allocate(NUMELS[size], torch.float32)
        calls = {
            "plain": lambda: comm.all_reduce(plain),
            "allocated": lambda: comm.all_reduce(allocated),
            "gloo": lambda: dist.all_reduce(theirs),
        }
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(turns + 1):
            for name, call in calls.items():
                time = turn(call, CALLS[size])
                if number:  # the first turn warms up
                    taken[name].append(time)
        ours, best, gloo = (taken[name] for name in calls)
        times = " | ".join(_spread(each) for each in (ours, best, gloo))
        return f"| {size} | {times} | {_ratio(gloo, ours)} | {_ratio(gloo, best)} | {BARS[size]} |"

    rows = [row(size) for size in NUMELS]
    if rank == 0:
        print(
            f"{RANKS} processes, 1 thread each, float32, {turns} interleaved turns; "
            f"{_processor()}, {os.cpu_count()} cores; Linux {platform.release()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}. "
            "Milliseconds per call: median (min-max). Ratios: median of the pairs.\n\n"
            "| size | shared memory | in allocated memory | gloo | gloo / shared memory "
            "| gloo / allocated | bar |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows)
        )
    comm.close()
    dist.destroy_process_group()


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.3g} ({min(times):.3g}-{max(times):.3g})"


def _ratio(theirs: list[float], ours: list[float]) -> str:
    return f"{statistics.median(t / o for t, o in zip(theirs, ours, strict=True)):.1f}x"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Start the ranks and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--rank", nargs=3, metavar=("RANK", "FD", "STORE"), help="used by itself")
    arguments = parser.parse_args()
    if arguments.rank:
        rank, fd, store = arguments.rank
        rank_main(int(rank), int(fd), store, arguments.turns)
        return
    fd = memfd_create("all_reduce benchmark")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--turns", str(arguments.turns), "--rank"]
        ranks = [
            subprocess.Popen([*command, str(rank), str(fd), f"{folder}/store"], pass_fds=[fd])
            for rank in range(RANKS)
        ]
        failed = [rank.wait(timeout=600) for rank in ranks]
    sys.exit(any(failed))


if __name__ == "__main__":
    main()
