"""The lab: an open Dask cluster with a rank host on every worker."""

from __future__ import annotations

import asyncio
import atexit
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed import Client, Future

from workbench import machine
from workbench.cluster.host import Host, gpu_for_each, visible_gpus
from workbench.cluster.own_cluster import OwnCluster
from workbench.cluster.placing import place
from workbench.cluster.rank_host import (
    TOPIC,
    RankHost,
    ask_host,
    describe_host,
    plugin_name,
    take_kept,
)
from workbench.cluster.scheduler_watch import SchedulerWatch
from workbench.errors import PlanError, RunError

if TYPE_CHECKING:
    from types import TracebackType

    import dask.array as da

    from workbench.cluster.gang import Gang

MOST_WORKERS = 64
START_LIMIT_S = 60.0
WORKER_LIMIT_S = 20.0
"""Longest wait for a worker that died to come back."""

CONTROL_LIMIT_S = 10.0
_CLOSE_LIMIT_S = 10.0
_POLL_S = 0.05

_open_labs: list[Lab] = []
_registry = threading.RLock()


def start(
    workers: int | None = None, threads: int | None = None, client: Client | None = None
) -> Lab:
    """Start a Dask cluster on this machine, or adopt a running one.

    The own cluster speaks TLS with credentials made for it alone, listens on 127.0.0.1 only, and
    ends with this process, however that ends.

    Parameters
    ----------
    workers:
        Number of workers, each of which can host one rank. By default one per GPU if there are two
        or more, else one per core, at most 4.
    threads:
        Torch threads per rank; by default the machine's cores, shared equally.
    client:
        A client of a running cluster. It stays open when the lab is closed. Adopting a client that
        an open lab has already adopted gives that lab.

    Raises
    ------
    PlanError
        The numbers, the client or this operating system cannot be used; nothing was started.
    RunError
        The cluster did not start.
    """
    if sys.platform != "linux":
        raise PlanError(
            f"Ranks run on Linux only, and this is {sys.platform}; use WSL2 on Windows or a Linux "
            f"container elsewhere."
        )
    if workers is not None:
        _check_count("workers", workers, MOST_WORKERS)
    if threads is not None:
        _check_count("threads", threads, 4096)
    if client is None:
        return _start_own(workers, threads)
    if workers is not None:
        raise PlanError(
            f"workers={workers} and client= cannot go together: an adopted cluster has the workers "
            f"that it has; leave out workers."
        )
    return _adopt(client, threads)


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
    """A cluster with a rank host on every worker; made by :func:`start`.

    A context manager. One run at a time has its ranks in a lab.

    Attributes
    ----------
    client:
        The Dask client.
    threads:
        Torch threads per rank.
    """

    def __init__(self, client: Client, threads: int | None, cluster: OwnCluster | None) -> None:
        self.client = client
        self.id = uuid.uuid4().hex[:12]
        self.closed = False
        self._cluster = cluster
        self._hosts: dict[str, Host] = {}
        self._gang: Gang | None = None
        self._lock = threading.Lock()
        client.subscribe_topic(TOPIC, self._take_event)
        client.register_plugin(SchedulerWatch(self.id, client.id))
        client.register_plugin(RankHost(self.id))
        self.threads = threads or _equal_threads(self.hosts)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The workers there are now, in a lasting order; rank 0 goes to the first."""
        addresses = self._control(self._addresses, CONTROL_LIMIT_S)
        new = [address for address in addresses if address not in self._hosts]
        for address, answer in self.ask(describe_host, workers=new).items():
            if isinstance(answer, dict):
                self._hosts[address] = Host(worker=address, **answer)
        return tuple(
            sorted((self._hosts[a] for a in addresses if a in self._hosts), key=_lasting_order)
        )

    @property
    def dashboard_link(self) -> str:
        """Address of the Dask dashboard."""
        return str(self.client.dashboard_link)

    def hosts_for(self, size: int) -> tuple[Host, ...]:
        """Return the workers of ``size`` ranks, by rank: one worker each.

        Waits up to 20 seconds for workers of an own cluster that are being started again.

        Raises
        ------
        PlanError
            There are fewer workers than ranks.
        RunError
            The lab is closed, or workers that died did not come back.
        """
        if self.closed:
            raise RunError("This lab is closed; start another: lab = wb.start(workers=2).")
        deadline = time.monotonic() + WORKER_LIMIT_S
        hosts = self.hosts
        there = max(len(hosts), len(self._cluster.worker_spec) if self._cluster else 0)
        if size > there:
            raise PlanError(
                f"{size} ranks need {size} workers, one each, and this cluster has {there}; use at "
                f"most {there} ranks, or start a larger cluster: wb.start(workers={size})."
            )
        while len(hosts) < size:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{size} ranks need {size} workers, and {there - len(hosts)} of {there} are "
                    f"gone and did not come back within {WORKER_LIMIT_S:.0f} s; close this lab and "
                    f"start another.",
                    details=self._worker_logs(),
                )
            time.sleep(_POLL_S)
            hosts = self.hosts
        return hosts[:size]

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

    def kept(self, run_id: str, rank: int, name: str, worker: str) -> Future:
        """Take over an array that a rank has left on its ``worker``, as a future pinned there.

        Each array can be taken once; it is freed when the future is dropped.
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
        self.ask(ask_host, self.id, "forget", run_id, workers=[h.worker for h in self.hosts])

    def ask(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Iterable[str],
        timeout_s: float = CONTROL_LIMIT_S,
    ) -> dict[str, Any]:
        """Call a function on the event loops of workers, all at once, and return the answers.

        A worker that fails, or gives no answer within ``timeout_s``, has the exception as its
        answer. Not to be called on Dask's own threads.
        """

        async def ask_one(worker: str) -> Any:
            try:
                call = self.client.run(function, *args, workers=[worker], on_error="return")
                answers = await asyncio.wait_for(call, timeout_s)
                return answers[worker]
            except Exception as error:
                return error

        async def ask_all(addresses: list[str]) -> list[Any]:
            return await asyncio.gather(*map(ask_one, addresses))

        addresses = list(workers)
        if not addresses:
            return {}
        answers = self._control(lambda: ask_all(addresses), timeout_s + 1.0)
        return dict(zip(addresses, answers, strict=True))

    def close(self) -> None:
        """End what runs, and everything that :func:`start` has started. Safe to call twice."""
        with _registry:
            if self.closed:
                return
            self.closed = True
            _open_labs.remove(self)
        gang = self._gang
        if gang is not None:
            gang.kill("The lab was closed")
            with suppress(RunError):
                gang.join(_CLOSE_LIMIT_S)
        if self._cluster is None:
            self._leave_cluster()
            return
        with suppress(OSError, TimeoutError, RuntimeError):
            self.client.close(timeout=_CLOSE_LIMIT_S)
        with suppress(OSError, TimeoutError):
            self._cluster.close(timeout=_CLOSE_LIMIT_S)

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
        return f"<Lab of {len(self._hosts)} workers, {self.threads} torch threads per rank>"

    def enter(self, gang: Gang) -> None:
        """Note that ``gang`` has the workers now.

        Raises
        ------
        RunError
            Another one has them.
        """
        with self._lock:
            if self.closed:
                raise RunError("This lab is closed; start another: lab = wb.start(workers=2).")
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
        host = self._hosts.get(worker)
        process = self._cluster.process(host.name) if self._cluster and host else None
        if process is None:
            return "", ""
        code = process.exit_code
        return "" if code is None else f" (exit code {code})", process.log

    def _take_event(self, event: tuple[float, Any]) -> None:
        """Hand an event of the cluster on; runs on Dask's thread, so only that."""
        _, message = event
        gang = self._gang
        if gang is not None and message.get("lab") == self.id:
            gang.take_event(message)

    async def _addresses(self) -> list[str]:
        return list(await self.client.ncores())

    def _control(self, call: Callable[[], Any], timeout_s: float) -> Any:
        """Run a coroutine function on the client's loop, with a limit."""
        try:
            return self.client.sync(call, callback_timeout=timeout_s)
        except (TimeoutError, OSError, RuntimeError) as error:
            raise RunError(f"The Dask scheduler does not answer: {error!r}.") from error

    def _leave_cluster(self) -> None:
        async def leave() -> None:
            client = self.client
            for unregister, name in (
                (client.unregister_worker_plugin, plugin_name(self.id)),
                (client.unregister_scheduler_plugin, f"{plugin_name(self.id)}-watch"),
            ):
                with suppress(ValueError, OSError):
                    await unregister(name)

        with suppress(RunError, ValueError):  # the client may be closed, and then this is done
            self._control(leave, _CLOSE_LIMIT_S)
            self.client.unsubscribe_topic(TOPIC)

    def _worker_logs(self) -> str:
        processes = self._cluster.workers.values() if self._cluster else ()
        return "\n\n".join(process.log for process in processes if process.log)


def _start_own(workers: int | None, threads: int | None) -> Lab:
    gpus = visible_gpus()
    cores = machine.cores()
    workers = workers or (len(gpus) if len(gpus) >= 2 else min(cores, 4))
    threads = threads or max(1, cores // workers)
    try:
        cluster = OwnCluster(workers, max(1, cores // workers), gpus)
    except (OSError, RuntimeError) as error:
        raise RunError(f"The Dask cluster did not start: {error}") from error
    client = None
    try:
        client = Client(cluster, timeout=CONTROL_LIMIT_S)
        _wait_for_workers(client, cluster, workers)
        return _opened(Lab(client, threads, cluster))
    except BaseException:
        if client is not None:
            client.close(timeout=_CLOSE_LIMIT_S)
        cluster.close(timeout=_CLOSE_LIMIT_S)
        raise


def _adopt(client: Client, threads: int | None) -> Lab:
    if not isinstance(client, Client) or client.asynchronous:
        raise PlanError(
            f"client= takes a synchronous dask.distributed.Client; got {type(client).__name__}."
        )
    if client.status != "running":
        raise PlanError(f"The client is {client.status}, not running; connect another.")
    with _registry:
        for lab in _open_labs:
            if lab.client is client:
                return lab
    if not client.ncores():
        raise PlanError("The client's cluster has no workers; scale it up first.")
    return _opened(Lab(client, threads, None))


def _opened(lab: Lab) -> Lab:
    with _registry:
        _open_labs.append(lab)
    return lab


def _wait_for_workers(client: Client, cluster: OwnCluster, workers: int) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while len(client.ncores()) < workers:
        failed = [p for p in cluster.workers.values() if p.exit_code not in (None, 0)]
        if failed or time.monotonic() > deadline:
            raise RunError(
                f"{workers} Dask workers were asked for, and {len(client.ncores())} came up within "
                f"{START_LIMIT_S:.0f} s."
                if not failed
                else f"A Dask worker ended with exit code {failed[0].exit_code} while starting.",
                details="\n\n".join(process.log for process in cluster.workers.values()),
            )
        time.sleep(_POLL_S)


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise PlanError(f"{name} must be a whole number from 1 to {most}; got {value!r}.")


def _equal_threads(hosts: Sequence[Host]) -> int:
    per_machine: dict[str, int] = {}
    for host in hosts:
        per_machine[host.host_id] = per_machine.get(host.host_id, 0) + 1
    return max(1, min((h.cores // per_machine[h.host_id] for h in hosts), default=1))


def _lasting_order(host: Host) -> tuple[bool, int, str]:
    """Order by name, numbers by value; a worker that comes back has its name again."""
    number = host.name.isdigit()
    return not number, int(host.name) if number else 0, host.name


def resolve_device(device: str, lab: Lab, size: int) -> str:
    """Return "cuda" if ``device`` allows it and each of ``size`` ranks has a GPU, else "cpu".

    Raises
    ------
    PlanError
        ``device`` is not "auto", "cpu" or "cuda", or "cuda" was asked for and GPUs are too few.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise PlanError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}.")
    if device == "cpu":
        return "cpu"
    hosts = lab.hosts_for(size)
    if gpu_for_each(hosts) is not None:
        return "cuda"
    if device == "auto":
        return "cpu"
    count = len({(host.host_id, gpu) for host in hosts for gpu in host.gpus})
    raise PlanError(
        f"device='cuda' needs a GPU for each of {size} ranks, and their workers see {count}; use "
        f"device='cpu'" + (f" or at most {count} ranks." if count else ".")
    )


@atexit.register
def _close_all() -> None:
    with _registry:
        left = list(_open_labs)
    for lab in left:
        lab.close()
