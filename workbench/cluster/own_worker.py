"""One Dask worker of our own, as its client sees it: a process that is kept alive."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from distributed.deploy.spec import ProcessInterface

from workbench.cluster.worker_process import GOODBYE

LOG_LINES = 60

RESTART_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Pause before each restart of a worker that died; after as many within a minute it stays away."""

_EXIT_LIMIT_S = 3.0


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
        with suppress(OSError):
            process.stdin.write(GOODBYE)
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), _EXIT_LIMIT_S)
        except (TimeoutError, OSError):
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


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
