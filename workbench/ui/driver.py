"""The driver: the one thread of the panel that talks to Dask.

The panel's callbacks only put a command into its queue. What comes of it is read from the
:class:`Job` that the driver works on; single attributes are set whole, so that the thread that
draws can read them at any time.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.catalogue import CATALOGUE
from workbench.cluster.lab import Lab, current_lab
from workbench.cluster.starting import start
from workbench.compare import compare
from workbench.errors import PlanError, RunError
from workbench.planning import plan
from workbench.steering import ENDED
from workbench.ui.form import OWN, Request, check
from workbench.workload import Workload, workload

if TYPE_CHECKING:
    from workbench.comparison import Comparison
    from workbench.plan import Plan

CLOSE_LIMIT_S = 20.0


@dataclass
class Job:
    """One press of Run, from the checks to the end.

    Attributes
    ----------
    phase:
        What the driver does before there is a comparison; empty once there is one, or it ended.
    problems:
        Sentences by the control that caused them; ``"run"`` for what broke later.
    details:
        What a developer wants beyond the sentence.
    """

    number: int
    request: Request
    phase: str = "Checking"
    problems: dict[str, str] = field(default_factory=dict)
    details: str = ""
    comparison: Comparison | None = None
    stop_asked: threading.Event = field(default_factory=threading.Event)

    @property
    def status(self) -> str:
        """As of a run: "starting", "running", "stopping", "done", "stopped" or "failed"."""
        if self.problems:
            return "failed"
        if self.comparison is None:
            # A cluster that is being started is kept for the next run, so there is nothing to
            # wait for.
            return "stopped" if self.stop_asked.is_set() else "starting"
        status = str(self.comparison.status)
        if self.stop_asked.is_set() and status in ("starting", "running"):
            return "stopping"
        return status

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED


@dataclass(frozen=True)
class Described:
    """A workload as the panel tells of it: what it is, and what suits it."""

    text: str
    batch: int
    steps: int


class Driver:
    """Runs what the panel asks for, one after the other, on a thread of its own.

    Parameters
    ----------
    work:
        The user's own workload, or None.
    lab:
        The cluster to use. Without one it is the one opened last; if there is none, the driver
        starts one, and closes it at its own end.

    Attributes
    ----------
    job:
        The newest request and what has come of it, or None.
    described:
        Workloads that have been looked at, by catalogue name.
    planned:
        What was drawn last: what was asked, and its plan or why there is none.
    lab:
        The cluster in use, once there is one.
    """

    def __init__(self, work: Workload | None, lab: Lab | None) -> None:
        self.job: Job | None = None
        self.described: dict[str, Described] = {}
        self.planned: tuple[Request, Plan | str] | None = None
        self.lab = lab
        self._given = lab
        self._own: Lab | None = None
        self._made: dict[str, Workload] = {} if work is None else {OWN: work}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="panel driver", daemon=True)
        self._thread.start()

    def run(self, request: Request) -> Job:
        """Ask for a comparison and return at once; while one is going on, that one is returned."""
        with self._lock:
            if self.job is not None and not self.job.ended:
                return self.job
            number = 1 if self.job is None else self.job.number + 1
            self.job = job = Job(number, request)
        self._commands.put(lambda: self._run(job))
        return job

    def stop(self) -> None:
        """Ask for the end of the comparison and return at once."""
        job = self.job
        if job is not None and not job.ended:
            job.stop_asked.set()
            self._commands.put(lambda: self._stop(job))

    def describe(self, name: str) -> None:
        """Ask for the description of a workload and return at once."""
        self._commands.put(lambda: self._describe(name))

    def draw(self, request: Request) -> None:
        """Ask for the plan of what the controls say and return at once."""
        self._commands.put(lambda: self._draw(request))

    def take_lab(self) -> Lab | None:
        """Hand over the cluster that this driver has started: it will not close it any more."""
        with self._lock:
            lab, self._own = self._own, None
        return lab

    def give_lab(self, lab: Lab | None) -> None:
        """Take over a cluster that another driver has started."""
        with self._lock:
            self._own = lab

    def close(self, wait: bool = True) -> None:
        """Stop what runs, close the cluster if the driver has started it, and end the thread."""
        if not self._closed.is_set():
            self._closed.set()
            self.stop()
            self._commands.put(None)
        if wait:
            self._thread.join(CLOSE_LIMIT_S)

    # The driver's thread.

    def _loop(self) -> None:
        while (command := self._commands.get()) is not None:
            command()
        lab = self.take_lab()
        if lab is not None:
            with suppress(RunError):
                lab.close()

    def _run(self, job: Job) -> None:
        problems = check(job.request)
        if problems:
            job.problems = problems
            return
        try:
            self._compare(job)
        except _RefusedError as refused:
            job.problems = {refused.control: refused.sentence}
            job.details = refused.details
        except Exception as error:
            # Nothing of ours may end the driver; the user is told, with the whole traceback.
            job.problems = {"run": f"The panel could not run this: {type(error).__name__}: {error}"}
            job.details = traceback.format_exc()

    def _compare(self, job: Job) -> None:
        asked = job.request
        with _blame("workload"):
            work = self._make(asked.workload)
        with _blame("batch"):
            if asked.batch != work.batch_size:
                work = work.with_(batch_size=asked.batch)
            plan(work, "serial")
        with _blame("strategy"):
            planned = plan(work, asked.strategy)
        with _blame("workers"):
            lab = self._open_lab(job)
            if job.stop_asked.is_set():
                return
            lab.hosts_for(planned.ranks)
        with _blame("run"):
            comparison = compare(
                work,
                asked.strategies,
                steps=asked.steps,
                repeats=asked.repeats,
                lab=lab,
                preview=True,
                spans=True,
                wait=False,
            )
        job.comparison = comparison
        if job.stop_asked.is_set():
            comparison.stop()

    def _open_lab(self, job: Job) -> Lab:
        """Return the cluster to use; start one where there is none, or ours is too small."""
        workers = job.request.workers
        if self._given is not None:
            return self._given
        own = self._own
        if own is not None and (own.closed or len(own.hosts) < workers):
            self.take_lab()
            own.close()
            own = None
        if own is None:
            with suppress(PlanError):
                self.lab = current_lab()
                return self.lab
            job.phase = f"Starting a cluster of {workers} workers"
            own = start(workers=workers)
            self.give_lab(own)
        self.lab = own
        return own

    def _stop(self, job: Job) -> None:
        if job.comparison is not None:
            job.comparison.stop()

    def _describe(self, name: str) -> None:
        with suppress(PlanError, RunError, OSError):  # Run tells what is wrong with it
            work = self._make(name)
            shape = " × ".join(map(str, work.sample_shape))
            about = CATALOGUE[name].description if name in CATALOGUE else "Your own workload."
            self.described[name] = Described(
                f"{about} {work.samples:,} samples of {shape or '1'}.", work.batch_size, work.steps
            )

    def _draw(self, request: Request) -> None:
        try:
            work = self._make(request.workload)
            if request.batch != work.batch_size:
                work = work.with_(batch_size=request.batch)
            found = plan(work, request.strategy)
        except (PlanError, RunError, OSError) as error:
            self.planned = (request, str(error))
        else:
            self.planned = (request, found)

    def _make(self, name: str) -> Workload:
        if name not in self._made:
            self._made[name] = workload(name)
        return self._made[name]


class _RefusedError(Exception):
    """What was asked cannot be done; names the control that asked for it."""

    def __init__(self, control: str, sentence: str, details: str) -> None:
        super().__init__(sentence)
        self.control, self.sentence, self.details = control, sentence, details


@contextmanager
def _blame(control: str) -> Iterator[None]:
    """Mark what a block refuses as the fault of one control."""
    try:
        yield
    except (PlanError, RunError) as error:
        raise _RefusedError(control, str(error), getattr(error, "details", "")) from error
