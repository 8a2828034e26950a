"""The life of a rank process, from the fork to its exit."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from numpy.typing import NDArray

from workbench.cluster.channel import Channel, Frame
from workbench.cluster.context import RankContext
from workbench.cluster.progress import Progress
from workbench.cluster.shared_array import allocate, attach, descriptor_of

EXIT_USER_ERROR = 1
EXIT_HOST_GONE = 70
EXIT_COMM_ERROR = 75

_PR_SET_PDEATHSIG = 1
_TRACEBACK_FRAMES = 12


def live_and_die(channel_fd: int, log_fd: int, parent: int) -> NoReturn:
    """Run one rank in this newly forked process, and end the process.

    ``channel_fd`` leads to the rank's host and is also its life-line: at end of file the rank
    exits. ``log_fd`` takes all that is printed, and the stacks of a crash.
    """
    code = EXIT_USER_ERROR
    try:
        # The kernel kills the rank when the forkserver ends. (The signal comes when the *thread*
        # that forked ends; the forkserver has only one.)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(EXIT_HOST_GONE)
        os.setpgid(0, 0)
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        os.close(log_fd)
        faulthandler.enable()
        code = _live(Channel(socket.socket(fileno=channel_fd)))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        # No finalization: it may wait for threads of the user's, and everything worth anything
        # has been sent.
        os._exit(code)


def _live(host: Channel) -> int:
    frames: list[Frame] = []
    while not frames or frames[-1].kind != "go":
        frame = host.receive()
        if frame is None:
            return EXIT_HOST_GONE
        frames.append(frame)
    outlet = _HostOutlet(host, next(f.descriptors[0] for f in frames if f.kind == "progress"))
    outlet.listen()
    order: dict[str, Any] = pickle.loads(frames[-1].body)
    try:
        result = _work(order, frames, outlet)
        host.send("result", result)
        return 0
    except BaseException as error:
        from workbench.comm.comm import CommError

        lost_contact = isinstance(error, CommError)
        report = {
            "kind": "comm" if lost_contact else "error",
            "text": _sentence(error),
            "traceback": _short_traceback(error),
        }
        with suppress(OSError):
            host.send("failed", json.dumps(report).encode())
        return EXIT_COMM_ERROR if lost_contact else EXIT_USER_ERROR


def _work(order: dict[str, Any], frames: list[Frame], outlet: _HostOutlet) -> bytes:
    """Join the other ranks, run the target and return its pickled result."""
    import cloudpickle
    import torch

    from workbench.comm.connect import connect

    for folder in order["path"]:
        if folder not in sys.path and os.path.isdir(folder):
            sys.path.append(folder)
    torch.set_num_threads(order["threads"])
    torch.set_num_interop_threads(1)
    device = torch.device(order["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    arrays: dict[str, Any] = {}
    for frame in frames:
        if frame.kind == "array":
            name, shape, dtype = json.loads(frame.body)
            arrays[name] = attach(frame.descriptors[0], shape, dtype)
            os.close(frame.descriptors[0])
        elif frame.kind == "region":
            name, region = pickle.loads(frame.body)
            arrays[name] = region.open()
    meeting = next((f.descriptors[0] for f in frames if f.kind == "meeting"), None)
    comm = connect(
        order["backend"],
        order["rank"],
        order["size"],
        fd=meeting if order["backend"] == "shared memory" else None,
        store=_store(order, meeting),
        device=order["device"],
        timeout_s=order["timeout_s"],
        address=order["address"],
    )
    up = {
        "pid": os.getpid(),
        "backend": comm.backend,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    outlet.host.send("up", json.dumps(up).encode())
    target: Callable[[RankContext, object], object] = pickle.loads(order["target"])
    job = pickle.loads(order["job"])
    context = RankContext(
        rank=order["rank"],
        size=order["size"],
        comm=comm,
        device=device,
        threads=order["threads"],
        arrays=arrays,
        outlet=outlet,
    )
    result = cloudpickle.dumps(target(context, job))
    comm.close()
    return result


def _store(order: dict[str, Any], meeting: int | None) -> Any:
    """Return torch's store, where ranks that do not share memory find each other."""
    if order["backend"] not in ("gloo", "nccl"):
        return None
    from workbench.comm.torch_backend import file_store, tcp_store

    if "store_file" in order["meeting"]:
        # Ranks of one machine need no network: NCCL's own sockets stay on loopback too.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        return file_store(order["meeting"]["store_file"], order["size"], order["timeout_s"])
    address, port = order["meeting"]["store_address"]
    return tcp_store(address, port, order["size"], listen_fd=meeting, timeout_s=order["timeout_s"])


def _sentence(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short_traceback(error: BaseException) -> str:
    """Return the last frames, without those of this file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    lines = traceback.format_list(frames[-_TRACEBACK_FRAMES:])
    return "".join([*lines, *traceback.format_exception_only(error)])


class _HostOutlet:
    """A rank's line to its host."""

    def __init__(self, host: Channel, progress_fd: int) -> None:
        self.host = host
        self._progress = Progress.mapped(progress_fd)
        os.close(progress_fd)
        self._told: list[str] = []
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Take commands from now on, on a thread, and exit when the host is gone."""
        threading.Thread(target=self._listen, name="workbench-life-line", daemon=True).start()

    def _listen(self) -> None:
        while (frame := self.host.receive()) is not None:
            with self._lock:
                self._told.append(frame.body.decode())
        os._exit(EXIT_HOST_GONE)

    def send(self, kind: str, data: object) -> None:
        self.host.send("message", pickle.dumps((kind, data), protocol=5))

    def keep(self, name: str, array: NDArray) -> None:
        copy = allocate(array.shape, array.dtype)
        copy[...] = array
        descriptor = descriptor_of(copy)
        assert descriptor is not None  # allocated so a line above
        body = json.dumps([name, array.shape, array.dtype.str]).encode()
        self.host.send("keep", body, [descriptor])

    def progress(self, step: int) -> None:
        self._progress.reach(step)

    def spend(self, times_s: Mapping[str, float]) -> None:
        self._progress.spend(times_s)

    def commands(self) -> list[str]:
        with self._lock:
            taken, self._told = self._told, []
        return taken
