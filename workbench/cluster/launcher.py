"""The host's hold on its forkserver."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from workbench.cluster.channel import Channel
from workbench.errors import RunError

FORK_LIMIT_S = 60.0
"""Longest wait for a rank: the forkserver may still be loading torch, from a slow disk."""

CLOSE_LIMIT_S = 1.0
LOG_LINES = 40

_SET_BY_NANNY = (
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)

# A training step frees and allocates the same large tensors over and over. By default glibc gives
# memory of such size back to the system and takes it again, page fault by page fault. Time of one
# round of three additions and multiplications on tensors of 8 / 24 / 64 MB (one thread, 2 cores):
#   default                                 7.7 /  41 / 171 ms
#   MALLOC_TRIM_THRESHOLD_=65536 (nanny)   10.7 /  33 / 107 ms
#   never mmap, never trim                  1.4 /   7 /  50 ms
#   the same with transparent huge pages    0.9 /   4 /  70 ms, and the least memory
# MALLOC_MMAP_THRESHOLD_ alone is no way: older glibc ignores values above 32 MB.
_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for ranks: a worker's, with memory and threads as ranks need them."""
    clean = {key: value for key, value in environment.items() if key not in _SET_BY_NANNY}
    tunables = [t for t in (clean.get("GLIBC_TUNABLES"), _HUGE_PAGES) if t]
    here = str(Path(__file__).parents[2])
    path = [here, *filter(None, clean.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **clean,
        **_MALLOC,
        "GLIBC_TUNABLES": ":".join(tunables),
        "OPENBLAS_NUM_THREADS": "1",  # until the forkserver has loaded numpy, see there
        "PYTHONPATH": os.pathsep.join(path),
    }


OnEnded = Callable[[int | None], None]
"""Told a rank's exit code: negative for a signal, None if the forkserver died and took it along."""


class ForkserverLostError(RunError):
    """The forkserver ended before it could start a rank."""


class Launcher:
    """Starts and kills rank processes by way of one forkserver."""

    def __init__(self) -> None:
        self._forking: dict[str, tuple[Future[int], OnEnded]] = {}
        self._ranks: dict[int, OnEnded] = {}
        self._lost = False
        self._lock = threading.Lock()
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        # A subprocess, not multiprocessing: Dask's workers may be daemons, which may have no
        # children of that kind. In its own session Ctrl-C in a terminal does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workbench.cluster.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=rank_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        theirs.close()
        self._threads = [
            threading.Thread(target=work, name=f"workbench-{work.__name__[1:]}", daemon=True)
            for work in (self._take_reports, self._take_log)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether ranks can be started."""
        return not self._lost and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the forkserver."""
        return self._process.pid

    def fork(self, channel_fd: int, log_fd: int, on_ended: OnEnded) -> int:
        """Start a rank that holds these descriptors and return its process id.

        ``on_ended`` is called once when it has ended, on a thread of the launcher, perhaps before
        this returns.

        Raises
        ------
        ForkserverLostError
            The forkserver has ended.
        RunError
            It took longer than :data:`FORK_LIMIT_S`.
        """
        token, answer = uuid.uuid4().hex, Future[int]()
        with self._lock:
            self._forking[token] = answer, on_ended
        try:
            if not self.alive:
                raise OSError("it has ended")
            self._channel.send("fork", token.encode(), [channel_fd, log_fd])
            return answer.result(FORK_LIMIT_S)
        except TimeoutError:
            raise RunError(
                f"The forkserver of this worker gave no rank within {FORK_LIMIT_S:.0f} s.",
                details="\n".join(self._log),
            ) from None
        except OSError as error:
            self._lost = True  # its sockets are closed some time before it can be waited for
            raise ForkserverLostError(
                f"The forkserver of this worker has ended: {error}.", details="\n".join(self._log)
            ) from error
        finally:
            with self._lock:
                self._forking.pop(token, None)

    def kill(self, pid: int) -> None:
        """Have a rank killed, and what it started; ``on_ended`` follows."""
        with suppress(OSError):
            self._channel.send("kill", str(pid).encode())

    def close(self) -> None:
        """End the forkserver and all its ranks; at once and for sure. Safe to call twice."""
        self._process.kill()  # its ranks follow: the kernel sees to it
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_LIMIT_S)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(CLOSE_LIMIT_S)

    def _take_reports(self) -> None:
        while (frame := self._channel.receive()) is not None:
            if frame.kind == "forked":
                token, pid = json.loads(frame.body)
                with self._lock:
                    # Nobody waits any more: the rank finds its channel closed, and exits.
                    answer, on_ended = self._forking.get(token, (None, lambda _: None))
                    self._ranks[pid] = on_ended
                if answer is not None:
                    answer.set_result(pid)
            elif frame.kind == "ended":
                pid, code = json.loads(frame.body)
                with self._lock:
                    on_ended = self._ranks.pop(pid)
                on_ended(code)
        self._lost = True
        self._channel.close()
        with self._lock:
            lost, self._ranks = list(self._ranks.values()), {}
            waiting = [answer for answer, _ in self._forking.values() if not answer.done()]
        for answer in waiting:
            answer.set_exception(OSError("it has ended"))
        for on_ended in lost:
            on_ended(None)

    def _take_log(self) -> None:
        assert self._process.stdout is not None  # asked for in the constructor
        with self._process.stdout as log:
            for line in log:
                self._log.append(line.decode(errors="replace").rstrip())
