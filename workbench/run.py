"""One execution of a plan: started in the background, watched live, stopped at any time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from workbench.arguments import KEEP_CHECKPOINTS, check_steps, check_threads
from workbench.bubble import Bubble, bubble_of
from workbench.checkpoint.periodic import Periodic
from workbench.errors import PlanError, RunError
from workbench.execution import (
    Execution,
    Finished,
    Stopped,
    forget_state,
)
from workbench.measured import Row, SpanRow
from workbench.placement import Placement, kept_arrays
from workbench.planning import plan as make_plan
from workbench.records import RunFolder, drive, name_of
from workbench.resuming import Ended, Start, start_from
from workbench.steering import ENDED, Status, Steered

if TYPE_CHECKING:
    import dask.array as da
    from distributed import Future

    from workbench.cluster.gang import RankInfo
    from workbench.cluster.lab import Lab
    from workbench.plan import Plan
    from workbench.preview import Preview
    from workbench.workload import Workload


def run(
    work: Workload,
    strategy: str = "serial",
    *,
    steps: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    spans: bool = True,
    preview: bool = False,
    folder: str | Path | None = None,
    lab: Lab | None = None,
    start: Ended | None = None,
    checkpoint_every: int | None = None,
    checkpoint_to: str | Path | None = None,
    checkpoint_keep: int = KEEP_CHECKPOINTS,
    **options: Any,
) -> Run:
    """Start to train ``work`` under ``strategy`` on the open cluster, and return at once.

    Parameters
    ----------
    strategy:
        ``"serial"``, or degrees on axes: ``"data=2"``.
    steps:
        Updates to make; the workload's own number if left out.
    threads:
        Torch threads of every rank; those of the lab if left out.
    device:
        ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where there is a GPU for each rank, else CPU.
    spans:
        Whether ranks record what they do when (under 1 % of a step).
    preview:
        Whether ``run.preview`` shows what a model from images to images makes of one of them, about
        every fifth step; what that costs falls between the steps.
    folder:
        Parent of the run's folder; ``workbench-runs`` if left out.
    lab:
        The cluster; the one opened last if left out.
    start:
        A run that has ended, or that was loaded, of the same model, under any strategy: this one
        goes on from its weights, its optimizer's state and its place in the order of the data.
    checkpoint_every, checkpoint_to, checkpoint_keep:
        Save to the folder ``checkpoint_to`` after every so many steps and at the end, and keep the
        newest few; ``wb.load(checkpoint_to)`` takes the newest. Ranks only stop to copy their
        state in memory, as long as the disk is done before the next one.
    options:
        As for :func:`workbench.plan`: ``accumulate=2``, ``batch_norm="local"``.

    Raises
    ------
    PlanError
        If it cannot be done, or a folder cannot be written to. What the values of the data forbid
        is found on the workers, and is the run's ``error``.
    """
    from workbench.cluster.lab import current_lab

    lab = lab or current_lab()
    planned = make_plan(work, strategy, **options)
    started = Run(
        work,
        planned,
        steps=check_steps(work.steps if steps is None else steps),
        threads=check_threads(lab.threads if threads is None else threads),
        device=device,
        record_spans=spans,
        preview=preview,
        folder=folder,
        placement=Placement(lab),
        start=None if start is None else start_from(start, work, planned),
        checkpoints=_periodic(checkpoint_every, checkpoint_to, checkpoint_keep, planned),
    )
    started.start()
    return started


def _periodic(every: int | None, to: str | Path | None, keep: int, plan: Plan) -> Periodic | None:
    if every is None and to is None:
        return None
    if every is None or to is None:
        raise PlanError(
            "Checkpoints while a run goes on need checkpoint_every= and checkpoint_to=; to save "
            "once, when it has ended, there is wb.save(run, path)."
        )
    return Periodic(to, every, keep, plan)


class Run(Steered):
    """A handle on one execution of a plan; every method may be called from any thread.

    Attributes
    ----------
    ranks:
        Which rank runs where: worker, pid, device, threads.
    folder:
        Where ``run.json``, ``steps.jsonl`` and ``spans.jsonl`` are.
    """

    plan: Plan

    def __init__(
        self,
        work: Workload,
        plan: Plan,
        *,
        steps: int,
        threads: int,
        device: str,
        record_spans: bool,
        folder: str | Path | None,
        placement: Placement,
        repeat: int = 0,
        preview: bool = False,
        start: Start | None = None,
        checkpoints: Periodic | None = None,
    ) -> None:
        from workbench.cluster.devices import resolve_device

        super().__init__(plan, steps=steps, threads=threads)
        self.work, self.repeat = work, repeat
        self.lab = placement.lab
        self.lab.hosts_for(plan.ranks)  # refused here, before anything starts
        self.device = resolve_device(device, self.lab, plan.ranks)
        self.ranks: tuple[RankInfo, ...] = ()
        self.first_step = start.step if start else 0
        self.accuracy: float | None = None
        self.test_loss: float | None = None
        self.kept: Mapping[str, Mapping[int, tuple[tuple[int, ...], str]]] = {}
        self._taken: dict[tuple[int, str], Future] = {}
        self._periodic = checkpoints
        name = name_of(work.name, plan.strategy)
        self._record = RunFolder.create(folder, name)
        self.folder = self._record.path
        drive(self.folder, self)
        self.run_id = f"{self.folder.name}-{uuid4().hex[:8]}"
        self._execution = Execution(
            work,
            plan,
            run_id=self.run_id,
            steps=steps,
            threads=threads,
            device=self.device,
            record_spans=record_spans,
            preview=preview,
            placement=placement,
            start=start,
            on_start=self._started,
            on_rows=self._receive,
            on_pace=self._paced,
            on_snapshot=self._keep_copy,
            snapshot_every=0 if checkpoints is None else checkpoints.every,
        )
        self._driver = threading.Thread(target=self._drive, name=f"run {name}", daemon=True)

    def start(self) -> None:
        """Start working in the background."""
        weakref.finalize(self, forget_state, self.lab, self.run_id, self._taken).atexit = False
        self._record.write_summary(self.summary())
        self._driver.start()

    @property
    def bubble(self) -> Bubble | None:
        """How much the ranks of a pipeline waited, beside theory; None without one or its spans."""
        return bubble_of(self.plan, self.spans)

    @property
    def preview(self) -> Preview | None:
        """The newest picture, where ``preview`` was asked for and the model makes pictures."""
        return self._execution.preview

    @cached_property
    def predicted_memory_bytes(self) -> tuple[int, ...]:
        """What the plan says that each rank keeps, see ``plan.memory(rank)``."""
        return tuple(self.plan.memory(rank).total_bytes for rank in range(self.plan.ranks))

    @property
    def backend(self) -> str:
        """How the ranks talk: ``"solo"``, ``"shared memory"``, ``"gloo"`` or ``"nccl"``."""
        return self.ranks[0].backend if self.ranks else ""

    @property
    def moved_bytes(self) -> int | None:
        """Bytes that went from worker to worker before the first step, measured; None before.

        Data that was not where its rank is, and the state of the run that this one goes on from.
        What a worker reads from files, or is sent by this process, is not among them.
        """
        return self._execution.moved_bytes

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The checkpoints that ``checkpoint_to`` holds of this run, the newest last."""
        return () if self._periodic is None else self._periodic.saved

    @property
    def checkpoint_error(self) -> Exception | None:
        """Why the last checkpoint could not be written, in spite of which the run went on."""
        return None if self._periodic is None else self._periodic.error

    @property
    def parameters(self) -> dict[str, da.Array]:
        """The trained parameters as dask arrays whose chunks lie on the workers that own them."""
        return self.state("parameter")

    def state(self, kind: str) -> dict[str, da.Array]:
        """Return what is kept of ``kind`` as dask arrays: "parameter", "buffer", "optimizer"...

        Raises
        ------
        RunError
            If the run has not ended with its state kept, or its lab is closed.
        """
        if not self.kept:
            raise RunError(
                f"The run {self.label} has no parameters to give: it is {self.status}."
                + ("" if self.status in ENDED else " Wait for its end with run.wait().")
            )
        if self.lab.closed:
            raise RunError(
                f"The parameters of the run {self.label} are gone with its lab, which is closed; "
                "take what is needed before that, with array.compute()."
            )
        return kept_arrays(self.plan, self.kept, kind, self.take)

    def summary(self) -> dict[str, Any]:
        """Return the run in numbers, ready for JSON."""
        return {
            "workload": self.work.name,
            "strategy": self.plan.strategy,
            "ranks": self.plan.ranks,
            "threads": self.threads,
            "device": self.device,
            "backend": self.backend,
            "batch_size": self.work.batch_size,
            "samples": self.work.samples,
            "seed": self.work.seed,
            "dtype": self.work.dtype,
            "status": self.status,
            "error": None if self.error is None else str(self.error),
            "first_step": self.first_step,
            "steps": self.steps,
            "steps_done": self.step,
            "step_s": self.step_s,
            "bytes_per_step": self.plan.bytes_per_step,
            "moved_bytes": self.moved_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "predicted_memory_bytes": self.predicted_memory_bytes,
            "accuracy": self.accuracy,
            "test_loss": self.test_loss,
            **({"checkpoints": [str(path) for path in self.checkpoints]} if self._periodic else {}),
            **({"checkpoint_error": str(self.checkpoint_error)} if self.checkpoint_error else {}),
            **({"bubble": asdict(found)} if (found := self.bubble) else {}),
        }

    def __repr__(self) -> str:
        """Say how far it is."""
        done = f"step {self.step} of {self.steps}"
        return f"<Run {self.work.name} {self.label}: {self.status}, {done}>"

    def take(self, rank: int, name: str) -> Future:
        """Return the future of an array that a rank has kept; it can be taken over only once."""
        with self._lock:
            if (rank, name) not in self._taken:
                worker = self.ranks[rank].worker
                self._taken[rank, name] = self.lab.kept(self.run_id, rank, name, worker)
            return self._taken[rank, name]

    # What follows runs on the driver's thread and on the gang's.

    def _drive(self) -> None:
        status: Status = "failed"
        try:
            status = self._finish(self._execution.run())
        except Stopped:
            status = "stopped"
        except PlanError as error:
            self.error = error
        except RunError as error:
            self.error = self._with_what_is_kept(error)
        except Exception as error:
            self.error = RunError(f"The run broke: {type(error).__name__}: {error}")
            self.error.__cause__ = error
        finally:
            with self._lock:
                self.status = status
            if self._periodic is not None:
                self._periodic.finish(self)
            try:
                self._record.finish(self.summary(), self.history, self.spans)
            except OSError as problem:  # what was learned is kept; who waits must hear of the end
                self.error = self.error or RunError(
                    f"The records of the run could not be written to {self.folder}: {problem}"
                )
                self.status = "failed"
            finally:
                self._ended.set()

    def _started(self, ranks: tuple[RankInfo, ...]) -> None:
        with self._lock:
            self.ranks = ranks
            if self.status == "starting":
                self.status = "running"

    def _receive(self, rows: list[Row], spans: list[SpanRow]) -> None:
        self._add(rows, spans)
        self.peak_memory_bytes = tuple(self._execution.peak_memory_bytes)
        self._record.add(rows, spans, self.plan.ranks)

    def _keep_copy(self, rank: int, data: Mapping[str, Any]) -> None:
        if self._periodic is not None:
            self._periodic.receive(self, rank, data, self._execution.tell)

    def _finish(self, finished: Finished) -> Status:
        with self._lock:
            self._rows, self._spans = finished.rows, finished.spans
            self.dropped_spans = finished.dropped_spans
            self.peak_memory_bytes = finished.peak_memory_bytes
        self.kept = finished.kept
        if finished.score is not None:
            self.accuracy, self.test_loss = finished.score.accuracy, finished.score.loss
        return "stopped" if finished.stopped else "done"

    def _with_what_is_kept(self, error: RunError) -> RunError:
        count = (
            f"{self.step} finished step{'' if self.step == 1 else 's'}" if self.step else "no step"
        )
        return RunError(
            f"{error} Kept: the records of {count}, in {self.folder}; the cluster can be "
            f"used at once.",
            rank=error.rank,
            step=error.step,
            details=error.details,
        )
