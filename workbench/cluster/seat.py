"""One rank as its host sees it: its process, its messages and how it ended."""

from __future__ import annotations

import json
import os
import pickle
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import time
from typing import Any

from numpy.typing import NDArray

from workbench.cluster.channel import Channel, Frame
from workbench.cluster.launcher import Launcher
from workbench.cluster.progress import Progress
from workbench.cluster.shared_array import attach, descriptor_of, shared
from workbench.sources.source import Region

Share = NDArray[Any] | Region
"""What a rank is given: an array, or the part of a file that it maps or reads itself."""

LOG_BYTES = 16_384
"""How much of what a rank printed is kept: the end of it."""

_DRAIN_S = 0.2
_EXIT_REPORT_S = 1.0


class Seat:
    """The place of one rank at its host.

    ``tell(kind, data)`` is called on the seat's own thread with each message of the rank, in order,
    and with a :meth:`report` when the rank is up and when it has ended.

    Attributes
    ----------
    kept:
        Arrays that the rank left, by name.
    result:
        What the target returned, pickled; None unless it returned.
    progress:
        How far it is, and what its time went to.
    ended_s:
        When it has ended, in seconds since the epoch; None while it lives.
    """

    def __init__(self, run_id: str, rank: int, tell: Callable[[str, Any], None]) -> None:
        self.run_id = run_id
        self.rank = rank
        self.kept: dict[str, NDArray[Any]] = {}
        self.result: bytes | None = None
        self.pid: int | None = None
        self.ended = threading.Event()
        self.ended_s: float | None = None
        self._tell = tell
        self._launcher: Launcher | None = None
        self._up: dict[str, Any] | None = None
        self._failure: dict[str, str] | None = None
        self._exit_code: int | None = None
        self._exited = threading.Event()
        self._log = bytearray()
        self.progress = Progress.new()

    def launch(
        self,
        launcher: Launcher,
        order: bytes,
        arrays: Mapping[str, Share],
        meeting: int | None,
    ) -> int:
        """Start the rank and give it all it needs; return its process id.

        Arrays are handed over in shared memory, and regions of files by name: the rank maps or
        reads those itself. ``meeting`` is the descriptor by which the ranks find each other, if
        they need one.

        Raises
        ------
        RunError
            The forkserver gave no rank.
        OSError
            The rank ended before it had taken its orders, or they could not be sent; it is killed.
        """
        ours, theirs = socket.socketpair()
        log, log_end = os.pipe()
        self._channel = Channel(ours)
        self._launcher = launcher
        try:
            self.pid = launcher.fork(theirs.fileno(), log_end, self._note_exit)
        except BaseException:
            os.close(log)
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(log_end)
        name = f"workbench-rank-{self.rank}"
        threading.Thread(target=self._attend, args=[log], name=name, daemon=True).start()
        try:
            self._give(order, arrays, meeting)
        except BaseException:
            self.kill()  # else it waits for its orders as long as we live, and nobody knows of it
            raise
        return self.pid

    def command(self, text: str) -> None:
        """Hand a command to the rank, if it still lives."""
        with suppress(OSError):
            self._channel.send("command", text.encode())

    def kill(self) -> None:
        """Have the rank killed; :attr:`ended` follows."""
        if self._launcher is not None and self.pid is not None:
            self._launcher.kill(self.pid)

    def report(self) -> dict[str, Any]:
        """Return how the rank is, as plain values.

        ``outcome`` is None while it lives; then a dict of ``kind`` ("result", "error": the target
        raised, "comm": contact with other ranks lost, "died"), ``text``, ``traceback``, ``log`` and
        ``exit_code`` (None: lost with the forkserver).
        """
        report = {
            "rank": self.rank,
            "pid": self.pid,
            "up": self._up,
            "step": self.progress.step,
            "outcome": None,
        }
        if self.ended.is_set():
            failure = self._failure or {"kind": "died", "text": "", "traceback": ""}
            if self.result is not None and self._exit_code == 0:
                failure = {"kind": "result", "text": "", "traceback": ""}
            log = self._log.decode(errors="replace")
            report["outcome"] = {**failure, "log": log, "exit_code": self._exit_code}
        return report

    def _give(
        self, order: bytes, arrays: Mapping[str, NDArray[Any] | Region], meeting: int | None
    ) -> None:
        self._channel.send("progress", b"", [self.progress.descriptor])
        if meeting is not None:
            self._channel.send("meeting", b"", [meeting])
        for key, array in arrays.items():
            if isinstance(array, Region):
                self._channel.send("region", pickle.dumps((key, array)))
                continue
            mapped = shared(array)
            body = json.dumps([key, mapped.shape, mapped.dtype.str]).encode()
            self._channel.send("array", body, [_descriptor(mapped)])
        self._channel.send("go", order)

    def _note_exit(self, code: int | None) -> None:
        self._exit_code = code
        self._exited.set()

    def _attend(self, log: int) -> None:
        """Take everything from the rank until it has ended and nothing is left to take."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(log, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(_DRAIN_S)
                if not ready and self._exited.is_set():
                    break  # a process that the rank started holds an end open
                for key, _ in ready:
                    alive = self._take_log(log) if key.fd == log else self._take_frame()
                    if not alive:
                        selector.unregister(key.fileobj)
        # The report of the exit comes by another way. A rank that lives on after it has closed its
        # channel can no longer be told anything: it is killed.
        if not self._exited.wait(_EXIT_REPORT_S):
            self.kill()
            self._exited.wait(_EXIT_REPORT_S)
        os.close(log)
        self._channel.close()
        self.ended_s = time()
        self.ended.set()
        self._tell("state", self.report())

    def _take_log(self, log: int) -> bool:
        text = os.read(log, 1 << 16)
        self._log += text
        del self._log[:-LOG_BYTES]
        return bool(text)

    def _take_frame(self) -> bool:
        frame = self._channel.receive()
        if frame is None:
            return False
        if frame.kind == "message":
            self._tell("message", frame.body)
        elif frame.kind == "up":
            self._up = json.loads(frame.body)
            self._tell("state", self.report())
        elif frame.kind == "keep":
            self._keep(frame)
        elif frame.kind == "result":
            self.result = frame.body
        elif frame.kind == "failed":
            self._failure = json.loads(frame.body)
        return True

    def _keep(self, frame: Frame) -> None:
        name, shape, dtype = json.loads(frame.body)
        try:
            self.kept[name] = attach(frame.descriptors[0], shape, dtype, writable=True)
        finally:
            os.close(frame.descriptors[0])


def _descriptor(array: NDArray[Any]) -> int:
    descriptor = descriptor_of(array)
    assert descriptor is not None  # made by ``allocate`` or ``shared``
    return descriptor
