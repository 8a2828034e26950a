"""Ranks that start together, work on one job and end together: the client's side."""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import Future, span

from workbench.cluster.context import RankContext
from workbench.cluster.orders import orders_for, submit
from workbench.cluster.rank_host import ask_host, kill_on_host
from workbench.cluster.tally import RankInfo, Tally
from workbench.cluster.verdict import Failure
from workbench.errors import RunError

if TYPE_CHECKING:
    from workbench.cluster.host import Host
    from workbench.cluster.lab import Lab

START_LIMIT_S = 60.0
KILL_LIMIT_S = 2.0
RESULT_LIMIT_S = 60.0

_TICK_S = 0.1
_SILENCE_S = 1.0  # events can get lost: after as long without one the hosts are asked
_MOST_BETWEEN_LOOKS_S = 5.0
_LOOK_LIMIT_S = 2.0
_MARGIN_S = 10.0
_KILL_TRIES = 3


@dataclass(frozen=True)
class GangEnd:
    """How a gang ended; ``results`` holds what the target returned, by rank, if ``ok``."""

    ok: bool
    error: RunError | None
    results: tuple[Any, ...]


class Gang:
    """Ranks that start together, work on one job and end together.

    If one rank fails, all others are killed, and the first cause is what the user is told.

    Parameters
    ----------
    lab:
        Where; one gang at a time.
    run_id:
        A name that no other run has.
    size:
        Number of ranks; the lab must have as many workers.
    threads:
        Torch threads per rank.
    device:
        "cpu" or "cuda", see :func:`workbench.cluster.devices.resolve_device`.
    target:
        ``target(context, job)`` is the work of each rank: a function of a module that the workers
        can import.
    job:
        A pickled object, loaded in each rank and handed to ``target``.
    shares:
        For each rank, futures of arrays on its worker by name, see :meth:`Lab.place`; they are
        ``context.arrays`` there.
    hosts:
        The worker of each rank; the first ones of the lab if left out.
    label:
        What Dask's own pages call its work.
    on_message:
        ``on_message(rank, kind, data)`` is called with what ranks send, in order for each rank.
    on_end:
        ``on_end(end)`` is called exactly once when :meth:`start` has begun to start ranks, also if
        that fails. Both are called on the gang's own thread and must be quick.

    Attributes
    ----------
    ranks:
        One :class:`RankInfo` per rank, once all are up; empty before.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        run_id: str,
        size: int,
        threads: int,
        device: str,
        target: Callable[[RankContext, Any], Any],
        job: bytes,
        shares: Sequence[Mapping[str, Future]],
        on_message: Callable[[int, str, Any], None],
        on_end: Callable[[GangEnd], None],
        hosts: Sequence[Host] | None = None,
        label: str = "ranks",
    ) -> None:
        if len(shares) != size:
            raise ValueError(f"{size} ranks and shares for {len(shares)}")
        self.run_id = run_id
        self.size = size
        self.threads = threads
        self.device = device
        self.label = label
        self.ranks: tuple[RankInfo, ...] = ()
        self._lab = lab
        self._work = {"target": pickle.dumps(target), "job": job}
        self._shares = shares
        self._hosts = None if hosts is None else tuple(hosts)
        self._on_message = on_message
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._tally = Tally(run_id, ())
        self._starting: dict[int, Future] = {}
        self._stopped = ""
        self._end: GangEnd | None = None
        self._settled = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        """Start all ranks; return when each has met the others.

        Raises
        ------
        PlanError
            The lab has fewer workers than ranks; nothing was started.
        RunError
            Another gang has the lab; or a rank did not start, or failed at once, or the gang was
            killed meanwhile: then ``on_end`` is told the same.
        """
        self._lab.enter(self)
        try:
            hosts = self._hosts or self._lab.hosts_for(self.size)
            self._tally = Tally(self.run_id, hosts)
            orders = orders_for(self, self._lab, self._tally.hosts, self._work)
            with span("workbench", self.label):  # Dask's own pages can be filtered by it
                for order, shares in zip(orders, self._shares, strict=True):
                    self._starting[order["rank"]] = submit(self._lab, order, shares)
        except BaseException:
            self._free_workers()  # some ranks may have started
            self._lab.leave(self)
            raise
        self._shares = ()  # the tasks hold the data now; it is the caller's to keep it for longer
        name = f"workbench-gang-{self.run_id}"
        threading.Thread(target=self._follow, name=name, daemon=True).start()
        try:
            settled = self._settled.wait(START_LIMIT_S + _MARGIN_S)
        except BaseException:  # Ctrl-C
            self.kill("The start was interrupted")
            raise
        if not self.ranks:
            error = self._end.error if settled and self._end else None
            raise error or RunError(f"Run {self.run_id} neither started nor failed in time.")

    def tell(self, command: str) -> None:
        """Give a command to every rank, which finds it in ``context.commands()``."""
        self._ask(ask_host, self._lab.id, "command", self.run_id, command, timeout_s=KILL_LIMIT_S)

    def kill(self, reason: str = "Stopped on request") -> None:
        """Kill all ranks at once, whatever they do; ``on_end`` follows. Safe to call again.

        ``reason`` begins the sentence of the error that ``on_end`` is told.
        """
        if not self._ended.is_set():
            self._stopped = self._stopped or reason
            self._inbox.put({"kind": "stop"})
            self._kill_ranks(self._workers())

    def join(self, timeout_s: float) -> GangEnd:
        """Wait for the end and return it.

        Raises
        ------
        RunError
            It has not ended within ``timeout_s``.
        """
        if not self._ended.wait(timeout_s) or self._end is None:
            raise RunError(f"Run {self.run_id} has not ended within {timeout_s:g} s.")
        return self._end

    def take_event(self, event: dict[str, Any]) -> None:
        """Take an event of the lab; returns at once."""
        if event["run"] == self.run_id or event["kind"] == "worker gone":
            self._inbox.put(event)

    # What follows runs on the gang's own thread.

    def _follow(self) -> None:
        try:
            self._watch()
        except Exception as error:
            # Whatever this is, the workers must come free and the caller must hear of it.
            self._stopped = f"Following the ranks failed: {error!r}"
        try:
            self._end = self._conclude()
            self._lab.leave(self)
            self._on_end(self._end)
        finally:
            self._ended.set()
            self._settled.set()

    def _watch(self) -> None:
        """Take events until all ranks are done, one has failed, or somebody stops it."""
        begun = looked = time.monotonic()
        while not self._stopped and not self._tally.over:
            hurried = not self.ranks or self._tally.failing
            silent = False
            try:
                self._take(self._inbox.get(timeout=_TICK_S if hurried else _SILENCE_S))
            except queue.Empty:
                silent = True
            now = time.monotonic()
            if now - looked > (_SILENCE_S if silent else _MOST_BETWEEN_LOOKS_S):
                self._look()
                looked = time.monotonic()
            if not self.ranks:
                self._check_starts()
                if now - begun > START_LIMIT_S and not self._stopped:
                    late = ", ".join(map(str, self._tally.not_up))
                    self._stopped = f"Ranks {late} did not start within {START_LIMIT_S:.0f} s"

    def _take(self, event: dict[str, Any]) -> None:
        if event["kind"] == "message":
            self._on_message(event["rank"], *pickle.loads(event["data"]))
        elif event["kind"] == "state":
            self._report(event["data"])
        elif event["kind"] == "worker gone":
            self._tally.lose(event["data"], *self._lab.end_of_worker(event["data"]))

    def _report(self, report: Mapping[str, Any]) -> None:
        self._tally.report(report)
        if not self.ranks and self._tally.up:
            self.ranks = self._tally.up
            self._starting.clear()
            self._settled.set()

    def _check_starts(self) -> None:
        """Look for ranks whose start has failed at Dask."""
        for rank, future in list(self._starting.items()):
            if future.status in ("error", "lost", "cancelled"):
                del self._starting[rank]
                error = future.exception(timeout=_LOOK_LIMIT_S) if future.status == "error" else ""
                worker = self._tally.hosts[rank].worker
                self._tally.fail(Failure(rank, "start", worker, text=str(error)))

    def _look(self) -> None:
        """Ask the hosts how their ranks are, in case an event was lost."""
        if self._lab.client.status != "running":
            self._stopped = self._stopped or "The connection to the Dask cluster was lost"
            return
        with suppress(RunError):
            question = (ask_host, self._lab.id, "reports", self.run_id)
            for report in _reports(self._ask(*question, timeout_s=_LOOK_LIMIT_S)):
                self._report(report)

    def _conclude(self) -> GangEnd:
        """Free the workers and return the end."""
        error: RunError | None = None
        results: tuple[Any, ...] = ()
        try:
            if self._tally.done:
                results = self._results()
            reports = self._free_workers()
            if not self._tally.done:
                error = self._tally.error(reports, self._stopped)
        except Exception as problem:
            error = error or RunError(f"The end of run {self.run_id} was not clean: {problem}")
        return GangEnd(error is None, error, results)

    def _free_workers(self) -> list[Mapping[str, Any]]:
        """Leave nothing of the gang on the workers; return the last reports of killed ranks."""
        for future in self._starting.values():
            with suppress(Exception):  # of a cluster that may be gone; nothing depends on it
                future.cancel()
        self._starting.clear()
        reports: list[Mapping[str, Any]] = []
        if not self._tally.done:
            waiting = self._workers()
            for _ in range(_KILL_TRIES):
                answers = self._kill_ranks(waiting)
                reports += _reports(answers)
                # Of a busy machine a question may be lost, and its ranks would go on for ever.
                waiting -= {w for w, said in answers.items() if not isinstance(said, TimeoutError)}
                if not waiting or self._lab.client.status != "running":
                    break
        with suppress(RunError):  # no connection: the workers of a client that is gone know
            self._ask(ask_host, self._lab.id, "end_meeting", self.run_id, timeout_s=KILL_LIMIT_S)
        return reports

    def _results(self) -> tuple[Any, ...]:
        results = []
        for rank, host in enumerate(self._tally.hosts):
            question = (ask_host, self._lab.id, "result", self.run_id, rank)
            answers = self._lab.ask(*question, workers=[host.worker], timeout_s=RESULT_LIMIT_S)
            answer = answers[host.worker]
            if not isinstance(answer, bytes):
                raise RunError(f"the result of rank {rank} cannot be had: {answer!r}")
            results.append(pickle.loads(answer))
        return tuple(results)

    # These run on any thread.

    def _kill_ranks(self, workers: set[str]) -> dict[str, Any]:
        """Kill whatever ranks there are on ``workers`` and return the hosts' answers."""
        question = (kill_on_host, self._lab.id, self.run_id)
        try:
            return self._lab.ask(*question, workers=workers, timeout_s=KILL_LIMIT_S)
        except RunError:  # no connection: hosts kill the ranks of a client that is gone
            return {}

    def _ask(self, function: Callable[..., Any], *args: Any, timeout_s: float) -> dict[str, Any]:
        """Ask every host that has a rank and is still there."""
        return self._lab.ask(function, *args, workers=self._workers(), timeout_s=timeout_s)

    def _workers(self) -> set[str]:
        return {host.worker for host in self._tally.hosts} - self._tally.gone


def _reports(answers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return all reports in the hosts' answers; a host that failed to answer has none."""
    return [report for answer in answers.values() if isinstance(answer, list) for report in answer]
