"""Ranks that start together, work on one job and end together: the client's side."""

from __future__ import annotations

import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed import Future

from workbench.cluster.context import RankContext
from workbench.cluster.host import Host, gpu_for_each
from workbench.cluster.rank_host import ask_host, kill_on_host, start_rank
from workbench.cluster.verdict import Failure, failure_from, first_cause, run_error
from workbench.errors import RunError

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab

START_LIMIT_S = 60.0
COMM_LIMIT_S = 60.0
"""Time limit of each collective: the last net, when a rank hangs without dying."""

KILL_LIMIT_S = 2.0
RESULT_LIMIT_S = 60.0

_SILENCE_S = 1.0  # events can get lost: after as long without one the hosts are asked
_MOST_BETWEEN_LOOKS_S = 5.0
_LOOK_LIMIT_S = 2.0
_CAUSE_S = 1.0  # how long a better explanation for lost contact is waited for


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Where and how one rank runs."""

    rank: int
    worker: str
    host: str
    pid: int
    device: str
    threads: int
    backend: str


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
    on_message:
        ``on_message(rank, kind, data)`` is called with what ranks send, in order for each rank.
    on_end:
        ``on_end(end)`` is called exactly once when :meth:`start` has begun to start ranks, after
        all messages, also if a rank could not be started. Both are called on the gang's own thread
        and must be quick.

    Attributes
    ----------
    ranks:
        One :class:`RankInfo` per rank, once :meth:`start` has returned.
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
    ) -> None:
        if len(shares) != size:
            raise ValueError(f"{size} ranks and shares for {len(shares)}")
        self.run_id = run_id
        self.ranks: tuple[RankInfo, ...] = ()
        self._lab = lab
        self._size = size
        self._threads = threads
        self._device = device
        self._target = pickle.dumps(target)
        self._job = job
        self._shares = shares
        self._on_message = on_message
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._hosts: tuple[Host, ...] = ()
        self._starts: list[Future] = []
        self._infos: dict[int, RankInfo] = {}
        self._done: set[int] = set()
        self._failures: dict[int, Failure] = {}
        self._failed_at = 0.0
        self._steps: dict[int, int] = {}
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
            self._hosts = self._lab.hosts_for(self._size)
            orders = self._orders()
        except BaseException:
            self._lab.leave(self)
            raise
        name = f"workbench-gang-{self.run_id}"
        threading.Thread(target=self._follow, name=name, daemon=True).start()
        for rank, order in enumerate(orders):
            self._submit(rank, order)
        if not self._settled.wait(START_LIMIT_S + KILL_LIMIT_S):
            self.kill(f"{self._size} ranks did not start within {START_LIMIT_S:.0f} s")
            self._ended.wait(KILL_LIMIT_S)
        if len(self.ranks) < self._size:
            assert self._end is not None  # it has settled without ranks
            raise self._end.error or RunError(f"Run {self.run_id} ended while it started.")

    def tell(self, command: str) -> None:
        """Give a command to every rank, which finds it in ``context.commands()``."""
        self._ask(ask_host, self._lab.id, "command", self.run_id, command, timeout_s=KILL_LIMIT_S)

    def kill(self, reason: str = "") -> None:
        """Kill all ranks at once, whatever they do; ``on_end`` follows. Safe to call again.

        ``reason`` begins the sentence of the error that ``on_end`` is told.
        """
        if self._ended.is_set():
            return
        self._stopped = self._stopped or reason or "It was stopped on request"
        self._kill_ranks()
        self._inbox.put({"kind": "stop"})

    def join(self, timeout_s: float) -> GangEnd:
        """Wait for the end and return it.

        Raises
        ------
        RunError
            It has not ended within ``timeout_s``.
        """
        if not self._ended.wait(timeout_s):
            raise RunError(f"Run {self.run_id} has not ended within {timeout_s:g} s.")
        assert self._end is not None
        return self._end

    def take_event(self, event: dict[str, Any]) -> None:
        """Take an event of the lab; returns at once."""
        if event["run"] == self.run_id or event["kind"] == "worker gone":
            self._inbox.put(event)

    # What follows to start ranks runs on the caller's thread.

    def _orders(self) -> list[dict[str, Any]]:
        """Return what each rank is to do, after making the place where they meet."""
        from workbench.comm.connect import choose  # loads torch, which not every client needs

        ids = [host.host_id for host in self._hosts]
        backend = choose(ids, self._device)
        first = self._hosts[0].worker
        answer = self._lab.ask(
            ask_host,
            self._lab.id,
            "meet",
            self.run_id,
            backend,
            len(set(ids)) == 1,
            workers=[first],
        )[first]
        if isinstance(answer, Exception):
            raise RunError(f"Worker {first} does not serve ranks: {answer}") from answer
        gpus = gpu_for_each(self._hosts) if self._device == "cuda" else None
        common = {
            "run_id": self.run_id,
            "size": self._size,
            "threads": self._threads,
            "backend": backend,
            "meeting": answer,
            "target": self._target,
            "job": self._job,
            "timeout_s": COMM_LIMIT_S,
            "path": [str(Path(entry).absolute()) for entry in sys.path],
        }
        return [
            {
                **common,
                "rank": rank,
                "worker": host.worker,
                "device": "cpu" if gpus is None else f"cuda:{gpus[rank]}",
            }
            for rank, host in enumerate(self._hosts)
        ]

    def _submit(self, rank: int, order: dict[str, Any]) -> None:
        future = self._lab.client.submit(
            start_rank,
            self._lab.id,
            order,
            dict(self._shares[rank]),
            key=f"workbench-start-{self.run_id}-{rank}",
            workers=[order["worker"]],
            allow_other_workers=False,
            retries=0,
            pure=False,
        )

        def note(done: Future) -> None:
            if done.status == "error":
                self._inbox.put({"kind": "no start", "rank": rank, "data": done.exception()})
            elif done.status in ("lost", "cancelled"):
                self._inbox.put({"kind": "no start", "rank": rank, "data": "its task was lost"})

        future.add_done_callback(note)
        self._starts.append(future)

    # What follows runs on the gang's own thread, except where said.

    def _follow(self) -> None:
        """Take events until the gang has ended."""
        begun = looked = time.monotonic()
        while not self._over():
            try:
                event = self._inbox.get(timeout=0.1 if self._failures else _SILENCE_S)
                self._take(event)
                silent = False
            except queue.Empty:
                silent = True
            now = time.monotonic()
            if (silent and now - looked > _SILENCE_S) or now - looked > _MOST_BETWEEN_LOOKS_S:
                self._look()
                looked = time.monotonic()
            if not self._settled.is_set() and now - begun > START_LIMIT_S:
                late = sorted(set(range(self._size)) - set(self._infos))
                self._stopped = f"Ranks {late} did not start within {START_LIMIT_S:.0f} s"
        self._conclude()

    def _over(self) -> bool:
        if self._stopped or len(self._done) == self._size:
            return True
        if not self._failures:
            return False
        known = len(self._failures) + len(self._done) == self._size
        waited = time.monotonic() - self._failed_at > _CAUSE_S
        return known or waited or any(failure.is_cause for failure in self._failures.values())

    def _take(self, event: dict[str, Any]) -> None:
        kind, data = event["kind"], event.get("data")
        if kind == "message":
            self._on_message(event["rank"], *pickle.loads(data))
        elif kind == "state":
            self._take_report(data)
        elif kind == "worker gone":
            for rank, host in enumerate(self._hosts):
                if host.worker == data:
                    how, log = self._lab.end_of_worker(data)
                    self._fail(Failure(rank, "worker", data, text=how, details=log))
        elif kind == "no start":
            rank = event["rank"]
            self._fail(Failure(rank, "start", self._hosts[rank].worker, text=str(data)))

    def _take_report(self, report: Mapping[str, Any]) -> None:
        rank = report["rank"]
        if report["step"] is not None:
            self._steps[rank] = report["step"]
        if report["up"] and rank not in self._infos:
            self._note_up(rank, report["up"])
        failure = failure_from(report, self._hosts[rank].worker)
        if failure is not None:
            self._fail(failure)
        elif report["outcome"] is not None:
            self._done.add(rank)

    def _note_up(self, rank: int, up: Mapping[str, Any]) -> None:
        host = self._hosts[rank]
        self._infos[rank] = RankInfo(
            rank=rank,
            worker=host.worker,
            host=host.host_id.partition("/")[0],
            pid=up["pid"],
            device=up["device"],
            threads=up["threads"],
            backend=up["backend"],
        )
        if len(self._infos) == self._size:
            self.ranks = tuple(self._infos[rank] for rank in range(self._size))
            self._starts.clear()
            self._shares = ()
            self._settled.set()

    def _fail(self, failure: Failure) -> None:
        """Note a failure; the first of each rank counts, and a cause counts more than an effect."""
        before = self._failures.get(failure.rank)
        if failure.rank not in self._done and (before is None or not before.is_cause):
            self._failures[failure.rank] = failure
            self._failed_at = self._failed_at or time.monotonic()

    def _look(self) -> None:
        """Ask the hosts how their ranks are, in case an event was lost."""
        try:
            answers = self._ask(
                ask_host, self._lab.id, "reports", self.run_id, timeout_s=_LOOK_LIMIT_S
            )
        except RunError:
            if self._lab.client.status != "running":
                self._stopped = "The connection to the Dask cluster was lost"
            return
        for answer in answers.values():
            if not isinstance(answer, Exception):
                for report in answer:
                    self._take_report(report)

    def _conclude(self) -> None:
        """Free the workers, then tell the end."""
        for future in self._starts:
            with suppress(Exception):
                future.cancel()
        error = None
        results: tuple[Any, ...] = ()
        if len(self._done) == self._size:
            try:
                results = self._results()
            except Exception as problem:
                error = RunError(f"The results of run {self.run_id} could not be had: {problem}")
        else:
            error = self._error(self._kill_ranks())
        with suppress(RunError):
            self._ask(ask_host, self._lab.id, "end_meeting", self.run_id, timeout_s=KILL_LIMIT_S)
        self._starts.clear()
        self._end = GangEnd(error is None, error, results)
        self._lab.leave(self)
        try:
            self._on_end(self._end)
        finally:
            self._ended.set()
            self._settled.set()

    def _error(self, answers: Mapping[str, Any]) -> RunError:
        step = max(self._steps.values(), default=None)
        if self._stopped:
            return RunError(f"{self._stopped}: run {self.run_id} has ended.", step=step)
        cause = first_cause(self._failures.values())
        for report in (r for a in answers.values() if isinstance(a, list) for r in a):
            if report["step"] is not None:
                step = max(step or 0, report["step"])
        return run_error(self.run_id, cause, step)

    def _results(self) -> tuple[Any, ...]:
        results = []
        for rank, host in enumerate(self._hosts):
            answer = self._lab.ask(
                ask_host,
                self._lab.id,
                "result",
                self.run_id,
                rank,
                workers=[host.worker],
                timeout_s=RESULT_LIMIT_S,
            )[host.worker]
            if not isinstance(answer, bytes):
                raise RunError(f"rank {rank} gives {answer!r}")
            results.append(pickle.loads(answer))
        return tuple(results)

    def _kill_ranks(self) -> dict[str, Any]:
        """Kill whatever ranks there are and return the hosts' answers; also on other threads."""
        try:
            return self._ask(
                kill_on_host, self._lab.id, self.run_id, timeout_s=KILL_LIMIT_S
            )
        except RunError:  # no connection: the hosts kill the ranks of a client that is gone
            return {}

    def _ask(self, function: Callable[..., Any], *args: Any, timeout_s: float) -> dict[str, Any]:
        workers = [host.worker for host in self._hosts]
        return self._lab.ask(function, *args, workers=workers, timeout_s=timeout_s)
