"""From a plan to its end: place the data, start the ranks, wait, merge what they did."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle

from workbench.accuracy import BatchAccuracy, accuracies
from workbench.cluster.placing import received_bytes
from workbench.errors import PlanError, RunError
from workbench.measured import Row, SpanRow
from workbench.preview import Assembly, Preview
from workbench.spans import KINDS
from workbench.telling import Told

if TYPE_CHECKING:
    from distributed import Future

    from workbench.cluster.gang import Gang, GangEnd, RankInfo
    from workbench.cluster.host import Host
    from workbench.cluster.lab import Lab
    from workbench.placement import Placement, Shares
    from workbench.plan import Plan
    from workbench.resuming import Start
    from workbench.scoring import Score
    from workbench.workload import Workload

STOP_GRACE_S = 1.0
LOOK_EVERY_S = 1.0
FORGET_LIMIT_S = 60.0


class Stopped(Exception):
    """The run was told to stop before it had anything to show."""


@dataclass(frozen=True)
class Finished:
    """What all ranks together have done: exact, unlike what was seen live.

    ``kept`` are shapes and dtypes of the shares left on workers: by name, then by rank;
    ``peak_memory_bytes`` is by rank.
    """

    rows: list[Row]
    spans: list[SpanRow]
    dropped_spans: int
    kept: Mapping[str, Mapping[int, tuple[tuple[int, ...], str]]]
    score: Score | None
    stopped: bool
    peak_memory_bytes: tuple[int, ...]


class Execution:
    """Carries out one plan, once, on the thread that calls :meth:`run`; others may stop it."""

    def __init__(
        self,
        work: Workload,
        plan: Plan,
        *,
        run_id: str,
        steps: int,
        threads: int,
        device: str,
        record_spans: bool,
        preview: bool,
        placement: Placement,
        start: Start | None,
        on_start: Callable[[tuple[RankInfo, ...]], None],
        on_rows: Callable[[list[Row], list[SpanRow]], None],
        on_pace: Callable[[bool], None],
        on_snapshot: Callable[[int, Mapping[str, Any]], None],
        snapshot_every: int = 0,
    ) -> None:
        self.work, self.plan, self.run_id, self.steps = work, plan, run_id, steps
        self.threads, self.device, self.record_spans = threads, device, record_spans
        self._previews, self._images = preview, Assembly()
        self.placement, self.on_start, self.on_rows = placement, on_start, on_rows
        self.on_pace, self.on_snapshot = on_pace, on_snapshot
        self.snapshot_every = snapshot_every
        self.moved_bytes: int | None = None
        self.start = start
        self._told = Told(self)
        self._accuracy = BatchAccuracy(plan.ranks)
        self.peak_memory_bytes = [0] * plan.ranks
        self._stop_asked = threading.Event()
        self._ended = threading.Event()
        self._gang: Gang | None = None
        self._telling = threading.Lock()
        self._up = False
        self._untold: list[str] = []

    def run(self) -> Finished:
        """Do it.

        Raises
        ------
        Stopped
            If it was stopped before the ranks could end in good order.
        PlanError
            If the data holds what cannot be learned from.
        RunError
            If something broke.
        """
        self._told.start()
        status = "failed"
        try:
            finished = self._merge(self._work())
            self._told.judge(None if finished.score is None else finished.score.accuracy)
            status = "done"
            return finished
        except (Stopped, PlanError):
            raise
        except Exception as error:
            # A worker may be gone: what Dask was to compute there, it would wait for in vain.
            self.placement.release()
            if self._stop_asked.is_set():
                raise Stopped from None
            if self.placement.lab.closed:
                raise RunError("The lab was closed before the run could end.") from error
            raise
        finally:
            self._ended.set()
            self._told.end("stopped" if self._stop_asked.is_set() else status)
            # They are methods of a run that holds this: it is freed, with what its ranks have left
            # on the workers, when nobody holds it, and not when the garbage collector comes by.
            self.on_start = self.on_rows = self.on_pace = self.on_snapshot = _tell_nobody

    @property
    def preview(self) -> Preview | None:
        """The newest picture of the training, if it was asked for and the workload has any."""
        return self._images.newest

    def stop(self) -> None:
        """End it: ranks at work end after the step in hand, or are killed after a second."""
        self._stop_asked.set()
        gang = self._gang
        if gang is not None and not self._ended.is_set():
            if gang.ranks:
                gang.tell("stop")
                self._ended.wait(STOP_GRACE_S)
            if not self._ended.is_set():
                gang.kill()

    def tell(self, command: str) -> None:
        """Give the ranks a command of :class:`workbench.pacing.Pace`, as soon as they are up."""
        with self._telling:
            if self._up and self._gang is not None:
                self._gang.tell(command)
            else:
                self._untold.append(command)

    def _work(self) -> GangEnd:
        from workbench.cluster.gang import Gang
        from workbench.engine import Job, train

        hosts = self.placement.hosts(self.work, self.plan)
        self.placement.check(self.work, self.plan, self._stop_asked)
        received = self._received(hosts)
        shares = self.placement.shares(self.work, self.plan, hosts, self._stop_asked)
        if self.start is not None:
            self.placement.add(shares, self.start, self.plan, hosts)
        self._arrive(shares, hosts)
        self.moved_bytes = self._received(hosts) - received
        ended: queue.SimpleQueue[GangEnd] = queue.SimpleQueue()
        job = Job(
            self.work.payload(),
            self.plan,
            self.steps,
            self.record_spans,
            self._previews,
            self.start.step if self.start else 0,
            self.snapshot_every,
        )
        self._gang = Gang(
            self.placement.lab,
            run_id=self.run_id,
            size=self.plan.ranks,
            threads=self.threads,
            device=self.device,
            label=self.plan.strategy,
            target=train,
            job=cloudpickle.dumps(job),
            shares=shares,
            hosts=hosts,
            on_message=self._receive,
            on_end=ended.put,
        )
        self._check_stop()
        self._gang.start()
        self.on_start(self._gang.ranks)
        with self._telling:
            self._up = True
            for command in self._untold:
                self._gang.tell(command)
        if self._stop_asked.is_set():
            self._gang.kill()
        return ended.get()

    def _arrive(self, shares: Shares, hosts: tuple[Host, ...]) -> None:
        """Wait until the data is in place, or a worker that should hold some of it is gone."""
        lab = self.placement.lab
        waiting = [future for share in shares for future in share.values()]
        looked_s = time.monotonic()
        while waiting:
            self._check_stop()
            waiting = [future for future in waiting if not future.done()]
            time.sleep(0.005 if waiting else 0)
            if waiting and time.monotonic() - looked_s > LOOK_EVERY_S:
                _check_workers(hosts, lab)  # Dask waits for a worker that is gone
                looked_s = time.monotonic()
        for future in (future for share in shares for future in share.values()):
            if future.status != "finished":
                _check_workers(hosts, lab)
                problem = future.exception(timeout=5) if future.status == "error" else None
                raise RunError(
                    f"The data could not be put in place: {problem or future.status}"
                ) from problem

    def _received(self, hosts: tuple[Host, ...]) -> int:
        """Return the bytes that the workers of ranks have received from others."""
        answers = self.placement.lab.ask(received_bytes, workers=[host.worker for host in hosts])
        return sum(answer for answer in answers.values() if isinstance(answer, int))

    def _check_stop(self) -> None:
        if self._stop_asked.is_set():
            raise Stopped

    def _receive(self, rank: int, kind: str, data: Any) -> None:
        if kind == "preview":
            self._images.add(data)
            return
        if kind == "snapshot":
            self.on_snapshot(rank, data)
            return
        if kind == "pace":
            self._told.pause(data["paused"])
            self.on_pace(data["paused"])
            return
        self.peak_memory_bytes[rank] = data["peak_memory_bytes"]
        spans = _span_rows(rank, data["spans"])
        rows = [*data["rows"], *self._accuracy.add(rank, data["judged"])]
        self._told.take(rows, spans)
        self.on_rows(rows, spans)

    def _merge(self, end: GangEnd) -> Finished:
        if end.error is not None:
            raise end.error
        outcomes = end.results
        return Finished(
            rows=_merged([o.rows for o in outcomes], accuracies(o.judged for o in outcomes)),
            dropped_spans=sum(outcome.dropped_spans for outcome in outcomes),
            spans=[row for rank, o in enumerate(outcomes) for row in _span_rows(rank, o.spans)],
            kept={
                name: {rank: o.kept[name] for rank, o in enumerate(outcomes) if name in o.kept}
                for name in dict.fromkeys(name for o in outcomes for name in o.kept)
            },
            score=outcomes[0].score,
            stopped=outcomes[0].stopped,
            peak_memory_bytes=tuple(o.peak_memory_bytes for o in outcomes),
        )


def _tell_nobody(*_news: object) -> None:
    """Stand where somebody was told of news."""


def _check_workers(hosts: tuple[Host, ...], lab: Lab) -> None:
    there = {host.worker for host in lab.hosts}
    for rank, host in enumerate(hosts):
        if host.worker not in there:
            raise RunError(
                f"The worker of rank {rank} ({host.worker}) died before the data was in place.",
                rank=rank,
            )


def _merged(per_rank: list[list[Row]], accuracy: Mapping[int, float]) -> list[Row]:
    """Return one row per step: rank 0's, with mean times and the most bytes over the ranks.

    Rows of the steps of which ``accuracy`` is known have it too.
    """
    merged = []
    for rows in zip(*per_rank, strict=True):
        row = dict(rows[0])
        for key in ("step_s", *(f"{kind}_s" for kind in KINDS)):
            row[key] = sum(r[key] for r in rows) / len(rows)
        row["sent_bytes"] = max(r["sent_bytes"] for r in rows)
        if (step := int(row["step"])) in accuracy:
            row["accuracy"] = accuracy[step]
        merged.append(row)
    return merged


def _span_rows(rank: int, spans: list[Any]) -> list[SpanRow]:
    keys = ("step", "kind", "name", "start_s", "stop_s", "sent_bytes")
    return [{"rank": rank, **{key: getattr(span, key) for key in keys}} for span in spans]


def forget_state(lab: Lab, run_id: str, taken: dict[tuple[int, str], Future]) -> None:
    """Free what a run that nobody holds any more has left on the workers and nobody has taken.

    The garbage collector calls this on any thread, Dask's own too, so another one does it.
    """
    from distributed import wait

    def forget() -> None:
        with suppress(Exception):  # a cluster that is gone has nothing left to free
            if taken:
                wait(list(taken.values()), timeout=FORGET_LIMIT_S)
            taken.clear()
            if not lab.closed:
                lab.forget(run_id)

    with suppress(RuntimeError):  # no thread can be started while the interpreter shuts down
        threading.Thread(target=forget, name=f"forget {run_id}", daemon=True).start()
