"""Which processes there are, for tests that check that none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def until(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    """Wait until ``condition`` holds and return whether it does."""
    deadline = time.monotonic() + seconds
    while not (holds := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds


def descendants() -> list[psutil.Process]:
    """Return the processes that this one has started, directly or not.

    The dead are left out, and the helper of ``multiprocessing``, which lives as long as we do.
    """
    found = psutil.Process().children(recursive=True)
    return [p for p in found if alive(p) and not _runs(p, "multiprocessing.resource_tracker")]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except GONE:
        return False


def lives(pid: int) -> bool:
    """Return whether there is a process with this id that is not a zombie."""
    with suppress(*GONE):
        return alive(psutil.Process(pid))
    return False


def forkservers() -> list[psutil.Process]:
    """Return our forkservers."""
    return [p for p in descendants() if _is_of_forkserver(p) and not _is_rank(p)]


def rank_processes() -> list[psutil.Process]:
    """Return our ranks."""
    return [p for p in descendants() if _is_rank(p)]


def described(processes: Iterable[psutil.Process]) -> str:
    """Return what the kernel says of processes that should have ended, for whoever must find why.

    One line each: its id and its parent's, state, what it waits for, age, threads, command.
    """
    lines = []
    for process in processes:
        with suppress(*GONE):
            try:
                waits_for = Path(f"/proc/{process.pid}/wchan").read_text() or "?"
            except OSError:
                waits_for = "?"
            pending = [
                " ".join(line.split())
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if line.startswith(("SigPnd", "ShdPnd", "SigBlk"))
            ]
            lines.append(
                f"{process.pid} of {process.ppid()}, {process.status()} in {waits_for}, "
                f"{time.time() - process.create_time():.1f} s old, "
                f"{process.num_threads()} threads, "
                f"{', '.join(pending)}: {' '.join(process.cmdline())}"
            )
    return "\n".join(lines)


def marked(mark: str) -> list[psutil.Process]:
    """Return all processes on this machine whose environment has the variable ``mark``."""
    found = []
    for process in psutil.process_iter():
        with suppress(*GONE):
            if mark in process.environ() and alive(process):
                found.append(process)
    return found


def _runs(process: psutil.Process, what: str) -> bool:
    with suppress(*GONE):
        return what in " ".join(process.cmdline())
    return False


def _is_of_forkserver(process: psutil.Process) -> bool:
    return _runs(process, "workbench.cluster.forkserver")


def _is_rank(process: psutil.Process) -> bool:
    with suppress(*GONE):
        parent = process.parent()
        return _is_of_forkserver(process) and parent is not None and _is_of_forkserver(parent)
    return False
