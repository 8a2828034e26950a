"""The lab: an open Dask cluster with a rank host on every worker."""

from __future__ import annotations

import atexit
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed import Client, Future
from distributed.comm import get_address_host

from workbench import machine
from workbench.cluster.control import CONTROL_LIMIT_S, Control
from workbench.cluster.feed import Feed
from workbench.cluster.host import Host, equal_threads
from workbench.cluster.own_cluster import OwnCluster
from workbench.cluster.pages import feed_for
from workbench.cluster.placing import load, place
from workbench.cluster.rank_host import TOPIC, RankHost, ask_host, plugin_name, take_kept
from workbench.cluster.roster import Roster
from workbench.cluster.scheduler_watch import SchedulerWatch
from workbench.errors import PlanError, RunError

if TYPE_CHECKING:
    from types import TracebackType

    import dask.array as da

    from workbench.cluster.gang import Gang
    from workbench.sources.source import Region


_CLOSE_LIMIT_S = 10.0

_open_labs: list[Lab] = []
_registry = threading.RLock()


def lab_of(client: Client) -> Lab | None:
    """Return the open lab that has adopted this client, if one has."""
    with _registry:
        return next((lab for lab in _open_labs if lab.client is client), None)


def current_lab() -> Lab:
    """Return the open lab that was started last.

    Raises
    ------
    PlanError
        No lab is open.
    """
    with _registry:
        if not _open_labs:
            raise PlanError("No cluster is open. Start one first: lab = wb.start(workers=2).")
        return _open_labs[-1]


class Lab:
    """A cluster with a rank host on every worker; made by :func:`workbench.start`.

    A context manager. One run at a time has its ranks in a lab.

    Attributes
    ----------
    client:
        The Dask client.
    threads:
        Torch threads per rank.
    id:
        What tells this lab from others on the same cluster.
    feed:
        What tells the pages of the Dask dashboard of the runs; off if there are no pages.
    """

    def __init__(self, client: Client, threads: int | None, cluster: OwnCluster | None) -> None:
        self.client = client
        self.id = uuid.uuid4().hex[:12]
        self.closed = False
        address = client.scheduler_info()["address"]
        self._here = get_address_host(address) in ("127.0.0.1", "::1", "localhost")
        self._cluster = cluster
        self._control = Control(client)
        self._roster = Roster(self._control, cluster)
        self._gang: Gang | None = None
        self._lock = threading.Lock()
        # An own scheduler ends with its client and need not clean up after it.
        watched = client.id if cluster is None else None
        try:
            client.subscribe_topic(TOPIC, self._take_event)
            client.register_plugin(SchedulerWatch(self.id, watched))
            client.register_plugin(RankHost(self.id))
            self.threads = threads or equal_threads(self.hosts)
            self.feed: Feed = feed_for(client, self._control)
        except BaseException:
            self._leave_cluster()
            raise
        with _registry:
            _open_labs.append(self)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The workers there are now, in a lasting order; rank 0 goes to the first."""
        return self._roster.hosts()

    @property
    def dashboard_link(self) -> str:
        """Address of the Dask dashboard."""
        return str(self.client.dashboard_link)

    def crowded_by(self, threads: int) -> bool:
        """Return whether ``threads`` at work in this lab leave no core of this machine to others.

        A scheduler that is on this machine is taken to have its workers here.
        """
        return self._here and threads >= machine.cores()

    def hosts_for(self, size: int) -> tuple[Host, ...]:
        """Return the workers of ``size`` ranks, by rank: one worker each.

        Waits up to a minute for workers that died and are being started again.

        Raises
        ------
        PlanError
            There are fewer workers than ranks.
        RunError
            The lab is closed, or workers that died did not come back.
        """
        self._check_open()
        return self._roster.hosts_for(size)

    def place(self, shares: Sequence[da.Array], hosts: Sequence[Host]) -> list[Future]:
        """Put each share, whole, on the worker of its rank, in memory that the rank can map.

        Returns at once with a future per share, to hand to a :class:`~workbench.cluster.gang.Gang`.
        Dask frees the memory when the future is dropped.

        Raises
        ------
        PlanError
            An array's shape is unknown, or its items are Python objects.
        """
        return [
            place(self.client, share, host.worker)
            for share, host in zip(shares, hosts, strict=True)
        ]

    def who_has(self, keys: Sequence[Any]) -> dict[Any, list[str]]:
        """Return the addresses of the workers that hold what Dask knows under each of ``keys``.

        Raises
        ------
        RunError
            The scheduler does not answer.
        """

        async def ask() -> dict[Any, list[str]]:
            return {k: list(v) for k, v in (await self.client.scheduler.who_has(keys=keys)).items()}

        found: dict[Any, list[str]] = self._control.call(ask, CONTROL_LIMIT_S)
        return {key: found.get(key, []) for key in keys}

    def load(self, region: Region, host: Host) -> Future:
        """Have a rank's region of a file on its worker, see :mod:`workbench.cluster.placing`."""
        return load(self.client, region, host.worker)

    def kept(self, run_id: str, rank: int, name: str, worker: str) -> Future:
        """Take over an array that a rank has left on its ``worker``, as a future pinned there.

        Dask frees the array when the future is dropped. Asked again before that, this gives the
        same; afterwards the future fails with a RunError.
        """
        return self.client.submit(
            take_kept,
            self.id,
            run_id,
            rank,
            name,
            key=f"workbench-kept-{run_id}-{rank}-{name}",
            workers=[worker],
            allow_other_workers=False,
            retries=0,
            pure=False,
        )

    def forget(self, run_id: str) -> None:
        """Free, on every worker, what the ranks of a run have kept and nobody has taken."""
        self.ask(ask_host, self.id, "forget", run_id, workers=self._control.workers())

    def ask(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Iterable[str],
        timeout_s: float = CONTROL_LIMIT_S,
    ) -> dict[str, Any]:
        """Ask workers, see :meth:`workbench.cluster.control.Control.ask`."""
        return self._control.ask(function, *args, workers=workers, timeout_s=timeout_s)

    def close(self) -> None:
        """End what runs, and everything that was started for the lab. Safe to call twice."""
        with _registry:
            if self.closed:
                return
            self.closed = True
            _open_labs.remove(self)
        self.feed.close()
        gang = self._gang
        if gang is not None:
            gang.kill("The lab was closed")
            with suppress(RunError):
                gang.join(_CLOSE_LIMIT_S)
        if self._cluster is None:
            self._leave_cluster()
        else:
            self._cluster.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<Lab, closed>"
        return f"<Lab at {self.client.dashboard_link}, {self.threads} torch threads per rank>"

    def enter(self, gang: Gang) -> None:
        """Note that ``gang`` has the workers now.

        Raises
        ------
        RunError
            Another one has them, or the lab is closed.
        """
        with self._lock:
            self._check_open()
            if self._gang is not None:
                raise RunError(f"Run {self._gang.run_id} is still going; stop it first.")
            self._gang = gang

    def leave(self, gang: Gang) -> None:
        """Note that ``gang`` has ended."""
        with self._lock:
            if self._gang is gang:
                self._gang = None

    def end_of_worker(self, worker: str) -> tuple[str, str]:
        """Return how an own worker that is gone came to its end, and what it printed."""
        return self._roster.end_of(worker)

    def _check_open(self) -> None:
        if self.closed:
            raise RunError("This lab is closed; start another: lab = wb.start(workers=2).")

    def _take_event(self, event: tuple[float, Any]) -> None:
        """Hand an event of the cluster on; runs on Dask's thread, so only that."""
        _, message = event
        gang = self._gang
        if gang is not None and message.get("lab") == self.id:
            gang.take_event(message)

    def _leave_cluster(self) -> None:
        """Take our plugins from the cluster, and with them our processes."""

        async def leave() -> None:
            client, name = self.client, plugin_name(self.id)
            for unregister in (client.unregister_worker_plugin, client.unregister_scheduler_plugin):
                with suppress(ValueError, OSError, KeyError):
                    await unregister(name)

        with suppress(RunError, ValueError):  # the client may be closed, and then this is done
            self._control.call(leave, _CLOSE_LIMIT_S)
            self.client.unsubscribe_topic(TOPIC)


@atexit.register
def _close_all() -> None:
    with _registry:
        left = list(_open_labs)
    for lab in left:
        lab.close()
