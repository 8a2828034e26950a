"""A comparison as it goes on: interleaved repeats, two baselines, a proof of every result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.compared import Compared, Facts, Progress
from workbench.errors import PlanError, RunError
from workbench.execution import STOP_GRACE_S, Stopped
from workbench.machine import describe
from workbench.placement import Placement
from workbench.records import ComparisonFolder, drive, name_of
from workbench.run import Run
from workbench.speedup import Entry, seconds_left
from workbench.state import largest_difference
from workbench.steering import ENDED, PAUSE_LIMIT_S, Status
from workbench.telling import show_comparison

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.plan import Plan
    from workbench.preview import Preview
    from workbench.workload import Workload

PROOF_STEPS = 5
SPAN_STEPS = 8
PROOF_TOLERANCE = 1e-8


class Comparison(Compared):
    """A table of speedups that fills while the runs go on; may be read from any thread.

    Attributes
    ----------
    error:
        What broke, if it failed; the rows until then stay.
    folder:
        Where ``comparison.json`` and the folders of all runs are.
    """

    def __init__(
        self,
        work: Workload,
        plans: Sequence[Plan],
        *,
        serial: Plan,
        refused: Mapping[str, str],
        steps: int,
        repeats: int,
        threads: int,
        device: str,
        prove: bool,
        preview: bool,
        spans: bool,
        price_per_worker_hour: float | None,
        folder: str | Path | None,
        lab: Lab,
        on_change: Callable[[Comparison], None],
    ) -> None:
        from workbench.cluster.devices import resolve_device

        plans = list({p.strategy: p for p in plans if p.ranks > 1}.values())
        for plan in plans:
            lab.hosts_for(plan.ranks)
        cores = max((p.ranks * threads for p in plans), default=lab.threads * len(lab.hosts))
        lines = [(serial, 1), *([(serial, cores)] if cores > 1 else [])]
        lines += [(p, threads) for p in plans]
        super().__init__(
            Facts.of(work),
            [
                Entry(
                    plan.strategy,
                    plan.ranks,
                    threads_,
                    resolve_device(device, lab, plan.ranks),
                    plan.bytes_per_step,
                    same_result=False if plan.inexact else None,
                    proof=f"not by design: {plan.inexact}" if plan.inexact else "",
                )
                for plan, threads_ in lines
            ],
            steps=steps,
            repeats=repeats,
            machine=describe(),
            refused=refused,
            price_per_worker_hour=price_per_worker_hour,
        )
        self.work, self.lab, self.device, self.prove = work, lab, device, prove
        self._plans = [plan for plan, _ in lines]
        self._previews, self._record_spans = preview, spans
        self._status: Status = "starting"
        self.error: RunError | PlanError | None = None
        self.runs: tuple[Run, ...] = ()
        self._on_change = on_change
        self._now = "Starting"
        self._aside_steps = 0
        self._recorded: dict[str, str] = {}  # folder of the run that a timeline is from, by label
        self._stop_asked, self._pause_asked = threading.Event(), threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._placement = Placement(lab)
        self._record = ComparisonFolder.create(folder, name_of(work.name, "comparison"))
        self.folder = self._record.path
        drive(self.folder, self)
        self._driver = threading.Thread(target=self._drive, name="comparison", daemon=True)

    def start(self) -> None:
        """Start working in the background."""
        self._keep()
        show_comparison(self)
        self._driver.start()

    @property
    def status(self) -> Status:
        """As of a run; "paused" while the run that goes on is."""
        waits = self._status == "running" and self.runs[-1].status == "paused"
        return "paused" if waits else self._status

    @property
    def crowded(self) -> bool:
        """Whether any line takes all cores of this machine: then all are watched as seldom."""
        return self.lab.crowded_by(max(entry.ranks * entry.threads for entry in self.entries))

    @property
    def preview(self) -> Preview | None:
        """The newest picture of the newest run that has one."""
        return next((run.preview for run in reversed(self.runs) if run.preview), None)

    @property
    def progress(self) -> Progress:
        """Steps done and to do, seconds left, and what goes on, in words."""
        proofs = PROOF_STEPS * len(self._to_prove()) + PROOF_STEPS if self._to_prove() else 0
        recorded = SPAN_STEPS * len(self.entries) if self._record_spans else 0
        total = self.steps * self.repeats * len(self.entries) + proofs + recorded
        done = sum(run.step for entry in self.entries for run in entry.runs) + self._aside_steps
        return Progress(done, total, self._seconds_left(), self._now)

    def wait(self, timeout_s: float | None = None) -> Comparison:
        """Wait for the end; raises what made it fail, or TimeoutError."""
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"The comparison still goes on after {timeout_s} s: {self._now}.")
        if self.error is not None:
            raise self.error
        return self

    def stop(self) -> None:
        """End it within 2 s; the rows stay."""
        with self._lock:
            self._stop_asked.set()
            if self.status in ENDED:
                return
            self._status = "stopping"
        if self.runs:
            self.runs[-1].stop()
        self._ended.wait(STOP_GRACE_S)

    def pause(self, *, wait: bool = True) -> Comparison:
        """Pause the run that goes on, or the next one; as of :meth:`workbench.run.Run.pause`."""
        self._pause_asked.set()
        self._told(lambda run: run.pause(wait=False))
        return self._until(lambda: self.status == "paused", wait)

    def resume(self, *, wait: bool = True) -> Comparison:
        """Go on after a pause, or take back one that has not come yet."""
        self._pause_asked.clear()
        self._told(lambda run: run.resume(wait=False))
        return self._until(lambda: self.status != "paused", wait)

    def advance(self, steps: int = 1, *, wait: bool = True) -> Comparison:
        """Make ``steps`` steps of the run that is paused, and pause again, if need be in the next.

        Errors are those of :meth:`workbench.run.Run.advance`.
        """
        if not self.runs:
            raise RunError(f"The comparison is {self.status}: there is no run yet to make steps.")
        run = self.runs[-1]
        before = run.pauses
        run.advance(steps, wait=False)

        def again() -> bool:
            now = self.runs[-1]
            return now.status == "paused" and (now is not run or run.pauses > before)

        return self._until(again, wait, steps)

    def _told(self, tell: Callable[[Run], object]) -> None:
        """Tell the run that goes on, unless it ends just now; the next one is told when it starts.

        Raises
        ------
        RunError
            If the comparison has ended.
        """
        if self.status in (*ENDED, "stopping"):
            raise RunError(f"The comparison takes no more commands: it is {self.status}.")
        if self.runs and self.runs[-1].status not in (*ENDED, "stopping"):
            with suppress(RunError):
                tell(self.runs[-1])

    def _until(self, obeyed: Callable[[], bool], wait: bool, steps: int = 1) -> Comparison:
        deadline = time.monotonic() + PAUSE_LIMIT_S * steps
        while wait and not obeyed() and not self._ended.wait(0.01):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"The comparison is still {self.status} {PAUSE_LIMIT_S * steps:.0f} s after it "
                    "was told otherwise; a step takes long, or its cluster is gone."
                )
        return self

    # The driver's thread.

    def _drive(self) -> None:
        status: Status = "failed"
        try:
            for repeat in range(self.repeats):
                for plan, entry in zip(self._plans, self.entries, strict=True):
                    self._time(plan, entry, repeat)
                if repeat == 0 and self._record_spans:
                    self._record_all()
                if repeat == 0 and self._to_prove():
                    self._prove_all()
            status = "done"
        except Stopped:
            status = "stopped"
        except (RunError, PlanError) as error:
            self.error = error
        except Exception as error:
            self.error = RunError(f"The comparison broke: {type(error).__name__}: {error}")
            self.error.__cause__ = error
        finally:
            with self._lock:
                if self._stop_asked.is_set() and status != "done":
                    status, self.error = "stopped", None
                self._status = status
            self._now = status.capitalize()
            try:
                self._keep()
            except RunError as error:  # what was measured stays; who waits must hear of it
                self._status, self.error = "failed", self.error or error
            self._ended.set()
            self._on_change(self)

    def _changed(self) -> None:
        self._keep()
        self._on_change(self)

    def _keep(self) -> None:
        """Write down what there is, so that it can be read back whatever happens next."""
        try:
            self._record.write(self.to_json(), self.entries, self._recorded)
        except OSError as problem:
            raise RunError(
                f"The comparison could not be written to {self.folder}: {problem}"
            ) from problem

    def _time(self, plan: Plan, entry: Entry, repeat: int) -> None:
        self._now = f"{entry.strategy} on {entry.baseline}, repeat {repeat + 1} of {self.repeats}"
        run = self._new_run(plan, entry.threads, self.steps, self._placement, repeat)
        entry.runs.append(run)
        self._go(run)
        entry.backend = run.backend
        entry.complete = repeat == self.repeats - 1
        self._changed()

    def _new_run(
        self,
        plan: Plan,
        threads: int,
        steps: int,
        placement: Placement,
        repeat: int = 0,
        work: Workload | None = None,
        record_spans: bool = False,
    ) -> Run:
        return Run(
            work or self.work,
            plan,
            steps=steps,
            threads=threads,
            device=self.device,
            record_spans=record_spans,
            preview=self._previews,
            folder=self.folder,
            placement=placement,
            repeat=repeat,
        )

    def _go(self, run: Run) -> None:
        """Do one run to its end."""
        if self._stop_asked.is_set():
            raise Stopped
        self.runs = (*self.runs, run)
        with self._lock:
            if self._status == "starting":
                self._status = "running"
        run.start()
        if self._stop_asked.is_set():  # asked while the run was made: it could not be told then
            run.stop()
        elif self._pause_asked.is_set():
            run.pause(wait=False)
        self._changed()
        run.wait()
        if self._stop_asked.is_set() or run.status == "stopped":
            raise Stopped

    def _to_prove(self) -> list[int]:
        return [
            n for n, p in enumerate(self._plans) if p.ranks > 1 and not p.inexact and self.prove
        ]

    def _aside(self, run: Run) -> Run:
        """Do a run that is no line of the table."""
        shown = self.runs
        try:
            self._go(run)
        finally:
            self.runs = shown
        self._aside_steps += run.step
        return run

    def _record_all(self) -> None:
        """Have every strategy make a few steps of which all is recorded."""
        for plan, entry in zip(self._plans, self.entries, strict=True):
            self._now = f"Recording what the ranks do: {entry.strategy} on {entry.baseline}"
            run = self._new_run(plan, entry.threads, SPAN_STEPS, self._placement, record_spans=True)
            self.timelines[run.label] = self._aside(run).spans
            if bubble := run.bubble:
                self.bubbles[entry.strategy] = bubble
            self._recorded[run.label] = run.folder.name
            self._changed()

    def _prove_all(self) -> None:
        """Prove every strategy by a few steps in float64: no error can hide in rounding.

        What a plan computes in less is left out of its proof, and the row says so.
        """
        work = self.work.with_(dtype="float64", test_data=None)
        placement = Placement(self.lab)
        self._now = "Proving the result: serial in float64"
        try:
            wanted = self._proof_run(work, 0, placement)
            for number in self._to_prove():
                entry = self.entries[number]
                self._now = f"Proving the result: {entry.strategy} in float64"
                got = self._proof_run(work, number, placement)
                entry.max_difference = largest_difference(wanted, got)
                entry.same_result = entry.max_difference <= PROOF_TOLERANCE
                entry.proof = "in float64" + (", without bf16" if self._plans[number].low else "")
                self._changed()
        except RunError as error:  # a model may need float32; the times still say what they say
            if self._stop_asked.is_set():
                raise Stopped from None
            self.unproved = f"The results could not be proved in float64. {error}"

    def _proof_run(self, work: Workload, number: int, placement: Placement) -> Run:
        plan, threads = self._plans[number].in_full, self.entries[number].threads
        return self._aside(self._new_run(plan, threads, PROOF_STEPS, placement, work=work))

    def _seconds_left(self) -> float | None:
        if self.status in ENDED:
            return 0.0
        return seconds_left(self.entries, self.steps, self.repeats)
