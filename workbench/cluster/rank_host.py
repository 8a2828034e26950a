"""The rank host: what every Dask worker has to start, watch and end ranks.

The functions at the end are what the client asks of a host. They run on the worker's event loop
(``client.run``), so that a worker whose threads are all busy still answers, or as tasks where Dask
brings arrays or takes them.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker
from distributed.comm import get_address_host
from numpy.typing import NDArray

from workbench import machine
from workbench.cluster.devices import visible_gpus
from workbench.cluster.host import host_id
from workbench.cluster.launcher import ForkserverLostError, Launcher
from workbench.cluster.meeting import Meeting, enter, open_meeting
from workbench.cluster.rank_meter import RankMeter
from workbench.cluster.seat import Seat, Share
from workbench.cluster.shared_array import shared
from workbench.errors import RunError

TOPIC = "workbench"
"""The one topic of Dask events on which hosts speak: the scheduler keeps a log of each topic."""

_KILL_S = 1.0
_REMEMBERED_RUNS = 1000

Report = dict[str, Any]


def plugin_name(lab_id: str) -> str:
    """Return the name under which a lab's rank hosts are registered at Dask."""
    return f"workbench-{lab_id}"


class RankHost(WorkerPlugin):
    """The rank host of one lab on one worker.

    Dask makes one on every worker, also on workers that come later.
    """

    def __init__(self, lab_id: str) -> None:
        self.lab_id = lab_id
        self.name = plugin_name(lab_id)

    def setup(self, worker: Worker) -> None:
        """Start the forkserver; it loads torch while others do their work."""
        self._worker = worker
        self._lock = threading.Lock()
        self._seats: dict[tuple[str, int], Seat] = {}
        self._meetings: dict[str, Meeting] = {}
        self._stopped: deque[str] = deque(maxlen=_REMEMBERED_RUNS)
        self._launcher = Launcher()
        self.meter = RankMeter(worker)

    async def teardown(self, worker: Worker) -> None:
        """End the forkserver and every rank."""
        self.meter.close()
        await asyncio.to_thread(self._launcher.close)
        for meeting in self._meetings.values():
            meeting.close()

    def start(
        self, order: dict[str, Any], arrays: Mapping[str, Share], span_id: str | None = None
    ) -> int:
        """Start the rank that ``order`` describes and return its process id.

        ``span_id`` is Dask's name for what the rank's time is counted to.

        Raises
        ------
        RunError
            The run has been stopped meanwhile, or the rank could not be started.
        """
        run_id, rank = order["run_id"], order["rank"]
        with self._lock:
            if run_id in self._stopped:
                raise RunError(f"Run {run_id} has been stopped.")
            self._drop_finished()
            seat = self._seats[run_id, rank] = Seat(run_id, rank, self._teller(run_id, rank))
            meeting = self._meetings.get(run_id)
            # A descriptor of our own: who stops the run closes the meeting's while we wait.
            descriptor = meeting.another_descriptor() if meeting else None
        try:
            if meeting is None:
                descriptor = enter(order["meeting"])
            order = {**order, "address": get_address_host(self._worker.address)}
            work = pickle.dumps(order)
            try:
                pid = seat.launch(self._living_launcher(), work, arrays, descriptor)
            except ForkserverLostError:  # it may have died while it was idle
                if run_id in self._stopped:
                    raise
                pid = seat.launch(self._living_launcher(), work, arrays, descriptor)
        except BaseException:
            with self._lock:
                self._seats.pop((run_id, rank), None)
            seat.ended.set()
            raise
        finally:
            if descriptor is not None:
                os.close(descriptor)
        self.meter.watch(seat, order["label"], span_id)
        if run_id in self._stopped:
            seat.kill()
        return pid

    def kill(self, run_id: str) -> list[Report]:
        """Kill every rank of a run, for sure, and return how they ended."""
        with self._lock:
            self._stopped.append(run_id)
            seats = self._seats_of(run_id)
            launcher = self._launcher
        # A seat without a process waits for a forkserver that still loads torch; ``start`` will
        # find that the run has been stopped.
        forked = [seat for seat in seats if seat.pid is not None]
        for seat in forked:
            seat.kill()
        if not all([seat.ended.wait(_KILL_S) for seat in forked]):
            launcher.close()  # it does not answer, but the kernel does
            for seat in forked:
                seat.ended.wait(_KILL_S)
        self._living_launcher()  # it shall be ready for the next run
        return [seat.report() for seat in seats]

    def reports(self, run_id: str) -> list[Report]:
        """Return how the ranks of a run are."""
        with self._lock:
            return [seat.report() for seat in self._seats_of(run_id)]

    def command(self, run_id: str, text: str) -> None:
        """Hand a command to the ranks of a run."""
        for seat in self._seats_of(run_id):
            seat.command(text)

    def result(self, run_id: str, rank: int) -> bytes | None:
        """Return what the rank's target returned, pickled."""
        return self._seats[run_id, rank].result

    def take(self, run_id: str, rank: int, name: str) -> NDArray[Any]:
        """Hand over an array that a rank has kept."""
        with self._lock:
            seat = self._seats.get((run_id, rank))
            if seat is None or name not in seat.kept:
                raise RunError(f"Rank {rank} of run {run_id} has not kept an array {name!r} here.")
            return seat.kept.pop(name)

    def meet(self, run_id: str, backend: str, one_machine: bool) -> dict[str, Any]:
        """Make the meeting place of a run and return the invitation to it."""
        meeting = open_meeting(
            backend,
            one_machine=one_machine,
            address=get_address_host(self._worker.address),
            folder=Path(self._worker.local_directory),
        )
        with self._lock:
            self._meetings[run_id] = meeting
        return meeting.invitation

    def end_meeting(self, run_id: str) -> None:
        """Close the meeting place of a run, if it is here."""
        with self._lock:
            meeting = self._meetings.pop(run_id, None)
        if meeting is not None:
            meeting.close()

    def forget(self, run_id: str) -> None:
        """Free all that is left of a run that has ended."""
        with self._lock:
            for seat in self._seats_of(run_id):
                if seat.ended.is_set():
                    del self._seats[run_id, seat.rank]

    def _living_launcher(self) -> Launcher:
        """Return the launcher, a new one if its forkserver has died."""
        with self._lock:
            if not self._launcher.alive:
                self._launcher.close()
                self._launcher = Launcher()
            return self._launcher

    def _seats_of(self, run_id: str) -> list[Seat]:
        return [seat for (run, _), seat in self._seats.items() if run == run_id]

    def _drop_finished(self) -> None:
        for key, seat in list(self._seats.items()):
            if seat.ended.is_set() and not seat.kept:
                del self._seats[key]

    def _teller(self, run_id: str, rank: int) -> Any:
        def tell(kind: str, data: Any) -> None:
            event = {"lab": self.lab_id, "run": run_id, "rank": rank, "kind": kind, "data": data}
            self._worker.log_event(TOPIC, event)

        return tell


def host_of(worker: Worker, lab_id: str) -> RankHost:
    """Return a lab's rank host on ``worker``."""
    host = worker.plugins.get(plugin_name(lab_id))
    if not isinstance(host, RankHost) or not hasattr(host, "_launcher"):
        raise RunError(f"Worker {worker.address} has no rank host.")
    return host


def ask_host(lab_id: str, question: str, *details: Any, dask_worker: Worker) -> Any:
    """Call a method of the rank host that returns at once."""
    return getattr(host_of(dask_worker, lab_id), question)(*details)


async def kill_on_host(lab_id: str, run_id: str, *, dask_worker: Worker) -> list[Report]:
    """Kill the ranks of a run on this worker."""
    return await asyncio.to_thread(host_of(dask_worker, lab_id).kill, run_id)


async def describe_host(*, dask_worker: Worker) -> dict[str, Any]:
    """Return what a :class:`workbench.cluster.host.Host` says of this worker."""
    return {
        "name": str(dask_worker.name),
        "host_id": host_id(),
        "cores": machine.cores(),
        "gpus": await asyncio.to_thread(visible_gpus),
        "memory_bytes": machine.memory_bytes(),
    }


def start_rank(lab_id: str, order: dict[str, Any], arrays: dict[str, Share]) -> int:
    """Task: start a rank on the worker this runs on, which must be the one that was meant."""
    worker = get_worker()
    if worker.address != order["worker"]:
        raise RunError(f"Rank {order['rank']} was sent to {worker.address}, not {order['worker']}.")
    task = worker.state.tasks.get(worker.get_current_task())
    return host_of(worker, lab_id).start(order, arrays, getattr(task, "span_id", None))


def take_kept(lab_id: str, run_id: str, rank: int, name: str) -> NDArray[Any]:
    """Task: give Dask an array that a rank on this worker has kept."""
    return shared(host_of(get_worker(), lab_id).take(run_id, rank, name))
