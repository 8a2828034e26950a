"""The program that rank processes are forked from: ``python -m workbench.cluster.forkserver FD``.

It has loaded what every rank needs, torch above all, so that a rank is there in milliseconds
instead of seconds. It runs no code of the user's, starts no thread (forking a process with threads
is asking for a deadlock) and never touches a GPU (CUDA does not survive a fork). It serves the host
at the other end of the socket ``FD`` and ends, with all ranks, when that end is closed.

Frames from the host: ``fork`` with the rank's ends of its channel and of its log, the body naming
the request; ``kill`` with a process id. Frames to the host: ``forked`` and ``ended`` with JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress

from workbench.cluster.channel import Channel
from workbench.cluster.rank import live_and_die

PRELOADED = (
    "torch",
    "torch._dynamo",  # the first optimizer of a process loads it, which takes as long as torch does
    "cloudpickle",
    "workbench.cluster.rank",
    "workbench.comm.connect",
)
PRELOADED_IF_THERE = ("workbench.comm.shared_memory", "workbench.engine")


def main() -> None:
    """Load what ranks need, then fork one for each request until the host is gone."""
    host = Channel(socket.socket(fileno=int(sys.argv[1])))
    _preload()
    wake_reader, wake_writer = socket.socketpair()
    for end in (wake_reader, wake_writer):
        end.setblocking(False)
    signal.set_wakeup_fd(wake_writer.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([host.fileno(), wake_reader.fileno()], [], [])
        if wake_reader.fileno() in readable:
            with suppress(BlockingIOError):
                wake_reader.recv(4096)
            _bury(children, host)
        if host.fileno() not in readable:
            continue
        frame = host.receive()
        if frame is None:
            break
        if frame.kind == "kill":
            # The process is not reaped before it leaves ``children``: its id cannot be another's.
            if int(frame.body) in children:
                os.kill(int(frame.body), signal.SIGKILL)
        elif frame.kind == "fork":
            channel, log = frame.descriptors
            pid = _fork(channel, log, closing=(host.fileno(), wake_reader.fileno()))
            children.add(pid)
            os.close(channel)
            os.close(log)
            host.send("forked", json.dumps([frame.body.decode(), pid]).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _preload() -> None:
    # The host set this because numpy's OpenBLAS starts a pool of threads when it is loaded (and it
    # is, above); one "thread" starts none. Torch must not see it: each rank sets its own threads.
    os.environ.pop("OPENBLAS_NUM_THREADS", None)
    for name in PRELOADED:
        importlib.import_module(name)
    for name in PRELOADED_IF_THERE:
        try:
            importlib.import_module(name)
        except Exception:
            # Not fatal: a rank that needs the module imports it again and tells the user why not.
            traceback.print_exc()


def _fork(channel: int, log: int, closing: tuple[int, ...]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in closing:
        os.close(descriptor)
    live_and_die(channel, log, parent)


def _bury(children: set[int], host: Channel) -> None:
    """Report and reap ranks that ended, and kill what they started and left behind."""
    while children:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            # Each rank leads its own process group, whose number is taken until we reap the rank.
            os.killpg(ended.si_pid, signal.SIGKILL)
        _, status = os.waitpid(ended.si_pid, 0)
        children.discard(ended.si_pid)
        code = os.waitstatus_to_exitcode(status)
        with suppress(OSError):
            host.send("ended", json.dumps([ended.si_pid, code]).encode())


if __name__ == "__main__":
    main()
