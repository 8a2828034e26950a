"""A Dask cluster of our own on this machine: encrypted, on loopback only, gone with its client."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Scheduler, Security, SpecCluster
from distributed.deploy.cluster import Cluster

from workbench import machine
from workbench.cluster.control import CONTROL_LIMIT_S
from workbench.cluster.own_worker import WorkerProcess
from workbench.cluster.pages import list_pages
from workbench.errors import RunError

LOOPBACK = "127.0.0.1"
START_LIMIT_S = 60.0
_CLOSE_LIMIT_S = 10.0
_POLL_S = 0.02
_WORKER_CREDENTIALS = ("tls_ca_file", "tls_worker_cert", "tls_worker_key", "require_encryption")
_CALM = {
    # Ranks have every core, and what Dask does beside them they lose. Its profiler, which looks at
    # Dask's own threads a hundred times a second and sees no rank, and its ticks took 9 % of one.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "1s",
}
_COMM = {"distributed.comm.timeouts.connect": "10s", "distributed.comm.require-encryption": True}


class _Lasting(SpecCluster):
    """A cluster that does not give up a worker which is on its way back."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Dask closes for good what is not there again after 15 s. On a machine with other work to
        # do a new process takes longer, and whether it is to be one is for WorkerProcess to say.
        Cluster._update_worker_status(self, op, msg)


class OwnCluster:
    """Scheduler in this process, workers in processes of their own, and a private folder.

    Made by :meth:`open`.
    """

    def __init__(
        self, cluster: SpecCluster, client: Client, folder: Path, silence: ExitStack
    ) -> None:
        self.client = client
        self._cluster = cluster
        self._folder = folder
        self._silence = silence

    @classmethod
    def open(cls, workers: int, threads: int, gpus: Sequence[str]) -> OwnCluster:
        """Start a cluster and return when every worker is there.

        ``threads`` are those of each worker for Dask's own tasks. ``gpus`` are the names by which
        CUDA knows the GPUs here; the first workers get one each.

        Raises
        ------
        RunError
            The scheduler or a worker did not start.
        """
        folder = Path(tempfile.mkdtemp(prefix="workbench-"))  # mode 0700
        silence = _silence()
        list_pages()
        try:
            cluster = _spec_cluster(folder, workers, threads, gpus)
        except (OSError, RuntimeError) as error:
            silence.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise RunError(f"The Dask cluster did not start: {error}.") from error
        opened = cls(cluster, Client(cluster, timeout=CONTROL_LIMIT_S), folder, silence)
        try:
            opened._wait()
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def size(self) -> int:
        """How many workers there are when none is dead."""
        return len(self._cluster.worker_spec)

    @property
    def log(self) -> str:
        """The last lines that each worker printed."""
        return "\n\n".join(p.log for p in self._cluster.workers.values() if p.log)

    def process(self, name: str) -> WorkerProcess | None:
        """Return the process of the worker with this name."""
        return next((p for key, p in self._cluster.workers.items() if str(key) == name), None)

    def close(self) -> None:
        """Close everything and remove the folder."""
        try:
            with suppress(OSError, TimeoutError, RuntimeError):
                self.client.close(timeout=_CLOSE_LIMIT_S)
            with suppress(OSError, TimeoutError):
                self._cluster.close(timeout=_CLOSE_LIMIT_S)
        finally:
            self._silence.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        """Return when every worker is there."""
        deadline = time.monotonic() + START_LIMIT_S
        while (there := len(self.client.ncores())) < self.size:
            for process in self._cluster.workers.values():
                if process.exit_code is not None:
                    raise RunError(
                        f"A Dask worker ended with exit code {process.exit_code} while it started.",
                        details=self.log,
                    )
            if time.monotonic() > deadline:
                raise RunError(
                    f"{self.size} Dask workers were asked for, and {there} came up within "
                    f"{START_LIMIT_S:.0f} s.",
                    details=self.log,
                )
            time.sleep(_POLL_S)


def _silence() -> ExitStack:
    """Keep Dask from printing what is no error, until the result is closed.

    Dask's own setting for this brings back the wrong level when two clusters are closed in the
    order in which they were opened.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    stack = ExitStack()
    for name in ("distributed", "distributed.client", "bokeh"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.addFilter(is_error)
                stack.callback(handler.removeFilter, is_error)
    return stack


def _spec_cluster(folder: Path, workers: int, threads: int, gpus: Sequence[str]) -> SpecCluster:
    security = Security.temporary()
    common = {
        "path": [str(Path(entry).absolute()) for entry in sys.path],
        "security": {name: getattr(security, name) for name in _WORKER_CREDENTIALS},
        "threads": threads,
        # Half of the memory is for what Dask holds; the ranks have the other half.
        "memory_bytes": machine.memory_bytes() // 2 // workers,
        "config": {
            **_COMM,
            **_CALM,
            "distributed.worker.memory.max-spill": shutil.disk_usage(folder).free // 2 // workers,
            "distributed.worker.http.routes": ["distributed.http.health"],
        },
    }
    specification = {
        index: {
            "cls": WorkerProcess,
            "options": {
                "options": {**common, "folder": str(folder / f"worker-{index}")},
                "gpu": (gpus[index] if index < len(gpus) else "") if gpus else None,
            },
        }
        for index in range(workers)
    }
    # Dask reads its settings while it makes the scheduler. The user's own are as before afterwards.
    with dask.config.set(_scheduler_settings(folder)):
        cluster = _Lasting(
            workers=specification,
            scheduler={
                "cls": Scheduler,
                "options": {
                    "host": LOOPBACK,
                    "protocol": "tls://",
                    "security": security,
                    "dashboard": True,
                    "dashboard_address": f"{LOOPBACK}:0",
                    "timeout": CONTROL_LIMIT_S,
                },
            },
            security=security,
            name="workbench",
        )
    # Pages on this machine may look at the dashboard, whatever port they come from: Jupyter shows
    # it under its own. (Bokeh takes a wildcard port from here, not from its settings.)
    for application in cluster.scheduler.http_application.applications:
        application.websocket_origins.update({f"{LOOPBACK}:*", "localhost:*"})
    return cluster


def _scheduler_settings(folder: Path) -> dict[str, Any]:
    routes = dask.config.get("distributed.scheduler.http.routes")
    return {
        **_COMM,
        **_CALM,
        "temporary-directory": str(folder),
        # A task pinned to a worker that is gone would wait for ever, and a worker that hangs would
        # count as there for five minutes.
        "distributed.scheduler.no-workers-timeout": "20s",
        "distributed.scheduler.worker-ttl": "15s",
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.http.routes": [r for r in routes if r != "distributed.http.proxy"],
        # Dask's own value allows pages from everywhere.
        "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": ["localhost"],
    }
