"""The program of one of our own Dask workers: ``python -m workbench.cluster.worker_process``.

The first line of standard input holds everything the worker needs, credentials included, as JSON:
nothing secret is in its command line, its environment or a file. After that line standard input is
a life-line: when the client's process ends, however it ends, the worker reads end of file and exits
at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

GOODBYE = b"goodbye"
"""What the client says last to a worker that it ends on purpose."""

CLEAR_LIMIT_S = 2.0
"""Longest wait for the thread that clears away what a killed client has left."""


def main() -> None:
    """Read the options, then serve until told to close or until the client is gone."""
    options: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    folder = Path(options["folder"])
    follower = threading.Thread(target=_follow_client, args=[folder], daemon=True)
    follower.start()
    sys.path[:] = options["path"]
    asyncio.run(_serve(options))
    # Its scheduler is gone. Mostly the client is too, and then there is more to clear away: that
    # thread is at it, or will be in a moment, and ends this process.
    follower.join(CLEAR_LIMIT_S)
    _leave(folder)


async def _serve(options: dict[str, Any]) -> None:
    # Imported late: the life-line must hold from the first moment, and imports take a second.
    import dask
    from distributed import Worker
    from distributed.security import Security

    dask.config.set(options["config"])
    worker = Worker(
        options["scheduler"],
        name=options["name"],
        nthreads=options["threads"],
        memory_limit=options["memory_bytes"],
        security=Security(**options["security"]),
        host="127.0.0.1",
        protocol="tls",
        dashboard=False,
        dashboard_address="127.0.0.1:0",
        local_directory=str(Path(options["folder"])),
    )
    await worker
    await worker.finished()


def _follow_client(folder: Path) -> None:
    told_to_leave = sys.stdin.buffer.read() == GOODBYE
    # When the client has been killed nobody but its workers can clear the folder of the lab.
    _leave(folder if told_to_leave else folder.parent)


def _leave(folder: Path) -> None:
    """Exit at once, leaving nothing on the disk and no process.

    The forkserver ends with us, but not before it has loaded torch if it is at that now.
    """
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            child.kill()
    for _ in range(20):  # another worker may still write into it, or be clearing it too
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.05)
    os._exit(0)


if __name__ == "__main__":
    main()
