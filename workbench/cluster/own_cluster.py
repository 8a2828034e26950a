"""A Dask cluster of our own on this machine: encrypted, on loopback only, gone with its client."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler, Security, SpecCluster
from distributed.deploy.spec import ProcessInterface

from workbench import machine

LOOPBACK = "127.0.0.1"
LOG_LINES = 60

RESTART_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Pause before each restart of a worker that died; after as many within a minute it stays away."""

_EXIT_LIMIT_S = 3.0
_COMM = {"distributed.comm.timeouts.connect": "10s", "distributed.comm.require-encryption": True}


class WorkerProcess(ProcessInterface):
    """One worker of our own, started again when it dies.

    Unlike Dask's own way, ``multiprocessing``, this never imports the user's main program again, so
    scripts need no ``if __name__ == "__main__"``.
    """

    def __init__(
        self, scheduler: str, *, name: int, options: dict[str, Any], gpu: str | None
    ) -> None:
        super().__init__(scheduler=scheduler, name=name)
        self._options = {**options, "scheduler": scheduler, "name": name}
        self._environment = _worker_environment(gpu)
        self._process: asyncio.subprocess.Process | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self.exit_code: int | None = None
        self.gave_up = False

    @property
    def log(self) -> str:
        """The last lines that the worker printed."""
        return "\n".join(self._log)

    async def start(self) -> None:
        """Start the process; whether the worker is there is for the scheduler to say."""
        await self._launch()
        self._supervision = asyncio.create_task(self._supervise())
        await super().start()

    async def close(self) -> None:
        """End the process by its life-line, or by force if that does not help."""
        if self._supervision is not None:
            self._supervision.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervision
            self._supervision = None
        if self._process is not None:
            await self._end(self._process)
            self._process = None
        await super().close()

    async def _launch(self) -> None:
        # Its own session: Ctrl-C in a terminal is for the client alone. ``-P``: files in the folder
        # that the user happens to be in are not taken for modules.
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "workbench.cluster.worker_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        assert process.stdin is not None  # asked for above
        process.stdin.write(json.dumps(self._options).encode() + b"\n")
        with suppress(OSError):
            await process.stdin.drain()

    async def _supervise(self) -> None:
        ends: deque[float] = deque(maxlen=len(RESTART_PAUSES_S))
        while True:
            assert self._process is not None
            await self._follow(self._process)
            now = time.monotonic()
            recent = [t for t in ends if now - t < 60]
            if len(recent) == len(RESTART_PAUSES_S):
                self.gave_up = True
                return
            ends.append(now)
            await asyncio.sleep(RESTART_PAUSES_S[len(recent)])
            await self._launch()

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Take what the worker prints until it has ended."""
        assert process.stdout is not None
        while chunk := await process.stdout.read(1 << 14):
            self._log.extend(chunk.decode(errors="replace").splitlines())
        self.exit_code = await process.wait()

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), _EXIT_LIMIT_S)
        except (TimeoutError, OSError):
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class OwnCluster(SpecCluster):
    """Scheduler in this process, workers in processes of their own, and a private folder.

    Parameters
    ----------
    workers:
        Number of workers.
    threads:
        Threads per worker for Dask's own tasks.
    gpus:
        Names of GPUs by which CUDA knows them; the first workers get one each.
    """

    def __init__(self, workers: int, threads: int, gpus: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="workbench-"))  # mode 0700
        security = Security.temporary()
        # Half of the memory is for what Dask holds; the ranks have the other half.
        memory_bytes = machine.memory_bytes() // 2 // workers
        free_bytes = shutil.disk_usage(self.folder).free
        common = {
            "path": [str(Path(entry).absolute()) for entry in sys.path],
            "security": _plain(security),
            "threads": threads,
            "memory_bytes": memory_bytes,
            "config": {
                **_COMM,
                "distributed.worker.memory.max-spill": free_bytes // 2 // workers,
                "distributed.worker.http.routes": ["distributed.http.health"],
            },
        }
        specification = {
            index: {
                "cls": WorkerProcess,
                "options": {
                    "options": {**common, "folder": str(self.folder / f"worker-{index}")},
                    "gpu": (gpus[index] if index < len(gpus) else "") if gpus else None,
                },
            }
            for index in range(workers)
        }
        # Dask reads these while it makes the scheduler; the user's own settings are as before
        # when this is done.
        try:
            with dask.config.set(_scheduler_settings()):
                super().__init__(
                    workers=specification,
                    scheduler={
                        "cls": Scheduler,
                        "options": {
                            "host": LOOPBACK,
                            "protocol": "tls://",
                            "security": security,
                            "dashboard": True,
                            "dashboard_address": f"{LOOPBACK}:0",
                            "timeout": 10,
                        },
                    },
                    security=security,
                    silence_logs=logging.ERROR,
                    name="workbench",
                )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        # Pages on this machine may look at the dashboard, whatever port they come from: Jupyter shows
        # it under its own. (Bokeh takes a wildcard port from here, not from its settings.)
        for application in self.scheduler.http_application.applications:
            application.websocket_origins.update({f"{LOOPBACK}:*", "localhost:*"})

    def process(self, name: str) -> WorkerProcess | None:
        """Return the process of the worker with this name."""
        return next((p for key, p in self.workers.items() if str(key) == name), None)

    def close(self, timeout: float | None = None) -> Any:
        """Close everything and remove the folder."""
        try:
            return super().close(timeout)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def _scheduler_settings() -> dict[str, Any]:
    routes = dask.config.get("distributed.scheduler.http.routes")
    return {
        **_COMM,
        # A task pinned to a worker that is gone would wait for ever, and a worker that hangs would
        # count as there for five minutes.
        "distributed.scheduler.no-workers-timeout": "20s",
        "distributed.scheduler.worker-ttl": "15s",
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.http.routes": [r for r in routes if r != "distributed.http.proxy"],
        # Dask's own value allows pages from everywhere.
        "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": ["localhost"],
    }


def _plain(security: Security) -> dict[str, Any]:
    fields = ("tls_ca_file", "tls_worker_cert", "tls_worker_key", "require_encryption")
    return {name: getattr(security, name) for name in fields}


def _worker_environment(gpu: str | None) -> dict[str, str]:
    here = str(Path(__file__).parents[2])
    given = os.environ.get("PYTHONPATH")
    environment = {
        # Dask runs one task per core; more threads within a task would only contend.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, given] if given else [here]),
    }
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return environment
