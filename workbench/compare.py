"""Compare strategies: interleaved repeats, two baselines, a proof that the results are the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.arguments import check_repeats, check_steps, check_threads
from workbench.errors import PlanError, RunError
from workbench.execution import STOP_GRACE_S, Stopped
from workbench.machine import describe
from workbench.placement import Placement
from workbench.planning import plan as make_plan
from workbench.run import ENDED, WARM_UP_STEPS, Run, Status
from workbench.speedup import FEWEST_STEPS, Entry, rows, seconds_left
from workbench.state import largest_difference

if TYPE_CHECKING:
    import pandas as pd

    from workbench.cluster.lab import Lab
    from workbench.plan import Plan
    from workbench.preview import Preview
    from workbench.workload import Workload

PROOF_STEPS = 5
PROOF_TOLERANCE = 1e-8


def compare(
    work: Workload,
    strategies: Sequence[str],
    *,
    steps: int = 30,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "auto",
    prove: bool = True,
    preview: bool = False,
    folder: str | Path | None = None,
    lab: Lab | None = None,
    wait: bool = True,
    on_change: Callable[[Comparison], None] | None = None,
    **options: Any,
) -> Comparison:
    """Time ``strategies`` against the serial run, in turn, ``repeats`` times each.

    Two baselines are always measured: one process with one thread, and one process with as many
    threads as the strategies have cores. After the first repeat every strategy's result is
    proved: five steps in float64, on the same ranks, against the serial run. A strategy that is not
    made to give that result (compressed gradients, steps of its own) is not: its row says so.

    Parameters
    ----------
    threads:
        Torch threads per rank of the strategies; those of the lab if left out.
    prove:
        Whether to prove the results (a few seconds).
    preview:
        Whether ``comparison.preview`` shows a picture that a model makes, now and then; it is sent
        between two steps and not timed.
    wait:
        Whether to return at the end, or at once with a comparison that fills in the background.
    on_change:
        Called, on the background thread, when a run starts and when it ends.

    Raises
    ------
    PlanError
        If one of the strategies cannot be done; nothing is started.
    RunError
        If a run breaks, and ``wait`` is true.
    """
    from workbench.cluster.lab import current_lab

    lab = lab or current_lab()
    if isinstance(strategies, str):
        strategies = [strategies]
    comparison = Comparison(
        work,
        [make_plan(work, strategy, **options) for strategy in strategies],
        serial=make_plan(work, "serial", **options),
        steps=check_steps(steps, WARM_UP_STEPS + FEWEST_STEPS),
        repeats=check_repeats(repeats),
        threads=check_threads(lab.threads if threads is None else threads),
        device=device,
        prove=prove,
        preview=preview,
        folder=folder,
        lab=lab,
        on_change=on_change or (lambda _comparison: None),
    )
    comparison.start()
    if not wait:
        return comparison
    try:
        return comparison.wait()
    except KeyboardInterrupt:  # nobody else has a handle to stop it by
        comparison.stop()
        raise


@dataclass(frozen=True)
class Progress:
    """How far a comparison is; ``eta_s`` is None before that can be told."""

    done_steps: int
    total_steps: int
    eta_s: float | None
    text: str


class Comparison:
    """A table of speedups that fills while the runs go on; may be read from any thread.

    Attributes
    ----------
    status:
        As of a :class:`workbench.run.Run`.
    error:
        What broke, if it failed; the rows until then stay.
    unproved:
        Why ``same_result`` stays open where it was to be proved: what broke in float64.
    machine:
        What it was measured on.
    """

    def __init__(
        self,
        work: Workload,
        plans: Sequence[Plan],
        *,
        serial: Plan,
        steps: int,
        repeats: int,
        threads: int,
        device: str,
        prove: bool,
        preview: bool,
        folder: str | Path | None,
        lab: Lab,
        on_change: Callable[[Comparison], None],
    ) -> None:
        from workbench.cluster.devices import resolve_device

        self.work, self.steps, self.repeats = work, steps, repeats
        self.lab, self.device, self.prove, self.folder = lab, device, prove, folder
        self._previews = preview
        self.status: Status = "starting"
        self.error: RunError | PlanError | None = None
        self.unproved: str | None = None
        self.machine = describe()
        self.runs: tuple[Run, ...] = ()
        self._on_change = on_change
        self._now = "Starting"
        self._proved = 0
        self._stop_asked = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._placement = Placement(lab)
        plans = list({p.strategy: p for p in plans if p.ranks > 1}.values())
        for plan in plans:
            lab.hosts_for(plan.ranks)
        cores = max((p.ranks * threads for p in plans), default=lab.threads * len(lab.hosts))
        lines = [(serial, 1), *([(serial, cores)] if cores > 1 else [])]
        lines += [(p, threads) for p in plans]
        self._plans = [plan for plan, _ in lines]
        self.entries = [
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
        ]
        self._all_threads = self.entries[1 if cores > 1 else 0]
        self._driver = threading.Thread(target=self._drive, name="comparison", daemon=True)

    def start(self) -> None:
        """Start working in the background."""
        self._driver.start()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per baseline and strategy; keys are those of ``docs/design.md``."""
        return rows(self.entries, self._all_threads)

    @property
    def preview(self) -> Preview | None:
        """The newest picture of the newest run that has one."""
        return next((run.preview for run in reversed(self.runs) if run.preview), None)

    @property
    def progress(self) -> Progress:
        """Steps done and to do, seconds left, and what goes on, in words."""
        proofs = PROOF_STEPS * len(self._to_prove()) + PROOF_STEPS if self._to_prove() else 0
        total = self.steps * self.repeats * len(self.entries) + proofs
        done = sum(run.step for entry in self.entries for run in entry.runs) + self._proved
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
            self.status = "stopping"
        if self.runs:
            self.runs[-1].stop()
        self._ended.wait(STOP_GRACE_S)

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame (needs pandas)."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return machine, workload, rows and state, ready for JSON."""
        progress = self.progress
        return {
            "machine": self.machine,
            "workload": {
                "name": self.work.name,
                "batch_size": self.work.batch_size,
                "samples": self.work.samples,
                "seed": self.work.seed,
                "dtype": self.work.dtype,
            },
            "status": self.status,
            "error": None if self.error is None else str(self.error),
            "unproved": self.unproved,
            "steps": self.steps,
            "repeats": self.repeats,
            "progress": {"done_steps": progress.done_steps, "total_steps": progress.total_steps},
            "rows": self.rows,
        }

    def __repr__(self) -> str:
        """Say how far it is, and the speedups so far."""
        found = ", ".join(
            f"{row['strategy']} {row['threads']}t {row['speedup']:.2f}x"
            for row in self.rows
            if row["speedup"] is not None
        )
        return f"<Comparison {self.work.name}: {self.status}{': ' if found else ''}{found}>"

    # The driver's thread.

    def _drive(self) -> None:
        status: Status = "failed"
        try:
            for repeat in range(self.repeats):
                for plan, entry in zip(self._plans, self.entries, strict=True):
                    self._time(plan, entry, repeat)
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
                self.status = status
            self._now = status.capitalize()
            self._ended.set()
            self._on_change(self)

    def _time(self, plan: Plan, entry: Entry, repeat: int) -> None:
        self._now = f"{entry.strategy} on {entry.baseline}, repeat {repeat + 1} of {self.repeats}"
        run = self._new_run(self.work, plan, entry.threads, self.steps, self._placement, repeat)
        entry.runs.append(run)
        self._go(run)
        entry.backend = run.backend
        entry.complete = repeat == self.repeats - 1
        self._on_change(self)

    def _new_run(
        self,
        work: Workload,
        plan: Plan,
        threads: int,
        steps: int,
        placement: Placement,
        repeat: int,
    ) -> Run:
        return Run(
            work,
            plan,
            steps=steps,
            threads=threads,
            device=self.device,
            record_spans=False,
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
            if self.status == "starting":
                self.status = "running"
        run.start()
        if self._stop_asked.is_set():  # asked while the run was made: it could not be told then
            run.stop()
        self._on_change(self)
        run.wait()
        if self._stop_asked.is_set() or run.status == "stopped":
            raise Stopped

    def _to_prove(self) -> list[int]:
        return [
            n for n, p in enumerate(self._plans) if p.ranks > 1 and not p.inexact and self.prove
        ]

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
                self._on_change(self)
        except RunError as error:  # a model may need float32; the times still say what they say
            if self._stop_asked.is_set():
                raise Stopped from None
            self.unproved = f"The results could not be proved in float64. {error}"

    def _proof_run(self, work: Workload, number: int, placement: Placement) -> Run:
        run = self._new_run(
            work,
            self._plans[number].in_full,
            self.entries[number].threads,
            PROOF_STEPS,
            placement,
            0,
        )
        shown = self.runs
        try:
            self._go(run)
        finally:
            self.runs = shown
        self._proved += run.step
        return run

    def _seconds_left(self) -> float | None:
        if self.status in ENDED:
            return 0.0
        return seconds_left(self.entries, self.steps, self.repeats)
