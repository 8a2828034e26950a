"""The driver: the threads of the panel that talk to Dask.

The panel's callbacks only put a task into a queue. One thread does what takes time. Another one
stops and steers what runs, at once, whatever the first is at. What comes of it is read from the
:class:`~workbench.ui.job.Job` that the driver works on; single attributes are set whole, so that
the thread that draws can read them at any time.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.compare import compare
from workbench.controls import OWN
from workbench.errors import PlanError, RunError
from workbench.planning import plan
from workbench.sharing import decode
from workbench.sweep import sweep
from workbench.ui import language, shelf
from workbench.ui.blame import RefusedError, blame
from workbench.ui.described import Described, described
from workbench.ui.form import Request, check, request, tries
from workbench.ui.guard import Broken
from workbench.ui.impossible import Trying
from workbench.ui.job import TURNS, Job, Kind
from workbench.ui.lab_in_use import LabInUse
from workbench.ui.language import Say
from workbench.ui.shared_lab import SHARED
from workbench.ui.tasks import Tasks
from workbench.ui.training import Training
from workbench.workload import Workload, workload

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.comparison import Comparison
    from workbench.plan import Plan

CLOSE_LIMIT_S = 20.0
MOST_VARIANTS = 8
"""Workloads with a batch size or seed of their own that are kept, with their plans."""


class Driver:
    """Runs what the panel asks for, one after the other, on threads of its own.

    Parameters
    ----------
    work:
        The user's own workload, or None.
    lab:
        The cluster to use, see :class:`workbench.ui.lab_in_use.LabInUse`.

    Attributes
    ----------
    job:
        The newest request and what has come of it, or None.
    training:
        The model that is being trained, or has been, or None.
    described:
        Workloads that have been looked at, by catalogue name.
    planned:
        What was drawn last: what was asked, and its plan or why there is none.
    refused:
        Why a strategy cannot be, or "" if it can: by the request's basis, and strategy.
    using:
        The cluster in use.
    earlier:
        Runs and comparisons that can be chosen.
    language:
        What the driver's sentences are said in.
    """

    def __init__(self, work: Workload | None, lab: Lab | None, language: str = "en") -> None:
        self.job: Job | None = None
        self.training: Training | None = None
        self.described: dict[str, Described] = {}
        self.planned: tuple[Request, Plan | str] | None = None
        self.refused: dict[tuple[Request, str], str] = {}
        self.using = LabInUse(lab)
        self.earlier = shelf.Earlier()
        self.language = language
        self._made: dict[str, Workload] = {} if work is None else {OWN: work}
        self._variants: dict[tuple[Any, ...], Workload] = {}
        self._told: Say = str
        self._waiting: Job | None = None
        self._drawn: Request | None = None
        self._trying = Trying(self._try_one)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        SHARED.join(self)
        self._steering = Tasks("panel steering", lambda: self.language)
        self._tasks = Tasks("panel driver", lambda: self.language, self._idle, self._leave)

    def run(self, request: Request, kind: Kind = "compare") -> Job:
        """Ask for a comparison or a training and return at once.

        While one is going on, that one is returned; but a training that is asked to go on under
        another strategy does.
        """
        with self._lock:
            old = self.job
            if old is not None and old.here and not old.ended:
                if not (kind == old.kind == "train" and request.axes != old.request.axes):
                    return old
                old.stop_asked.set()
            number = 1 if old is None else old.number + 1
            ended = old is None or not old.here or old.ended
            self.job = job = Job(number, request, kind, after=None if ended else old)
        self._tasks.guard.forget()
        self._tasks.put("run", lambda: self._begin(job))
        return job

    def stop(self) -> None:
        """Ask for the end of what goes on and return at once."""
        job = self.job
        if job is not None and not job.ended:
            if job.here:
                job.stop_asked.set()
            self._steering.put("stop", job.stop)

    def pause(self) -> None:
        """Ask what runs to wait after its step, or to go on if it waits, and return at once."""
        self._tell(lambda going, paused: (going.resume if paused else going.pause)(wait=False))

    def step(self) -> None:
        """Ask what is paused for one step more, and return at once."""
        self._tell(lambda going, paused: going.advance(wait=False) if paused else None)

    def _tell(self, what: Callable[[Any, bool], object]) -> None:
        job = self.job
        if job is None or job.ended or job.going is None or not job.here:
            return
        going = job.going

        def tell() -> None:
            with suppress(RunError):  # it has ended in between
                what(going, going.status == "paused")

        self._steering.put("steer", tell)

    def start_cluster(self, workers: int) -> None:
        """Ask for a new cluster in the place of one that is gone, and return at once.

        What was run last is run again; where nothing was, there is a cluster of ``workers`` then.
        """
        self.using.forget()
        job = self.job
        if job is not None and job.ended and job.here:
            self.run(job.request, job.kind)
        else:
            self.using.opening = workers  # it is told from now on
            self._tasks.put("cluster", lambda: self._open(workers))

    def export(self, folder: str) -> None:
        """Ask for files of what was measured last and return at once."""
        self._tasks.put("export", lambda: self._export(folder))

    def attach(self, *paths: str) -> None:
        """Ask for what was measured before, by whomever, and return at once."""
        self._tasks.put("attach", lambda: self._attach(paths))

    def restore(self, code: str) -> tuple[Request, dict[str, list[str]]] | None:
        """Return what a share code asks for, and which controls it hides and locks.

        If it is refused it is None, which is told.
        """
        with language.speaking(self.language):
            try:
                given = decode(code)
                limits = {name: given.pop(name, []) for name in ("hidden", "locked")}
                found = request(self._made.get(OWN), given)
            except PlanError as error:
                self._told = partial(language.translate, str(error))
                return None
            limited = any(limits.values())
            key = "keep.restored_limited" if limited else "keep.restored"
            self._told = partial(language.text, key)
        return found, limits

    def start_over(self) -> None:
        """Forget the weights of the training: the next one begins afresh."""
        self.training = None

    def describe(self, name: str) -> None:
        """Ask for the description of a workload and return at once."""
        self._tasks.put("describe", lambda: self._describe(name))

    def draw(self, request: Request) -> None:
        """Ask for the plan of what the controls say and return at once."""
        self._tasks.put("draw", lambda: self._draw(request))

    @property
    def told(self) -> str:
        """What came of the last share code, export or attachment, in this thread's language."""
        return self._told()

    @property
    def broken(self) -> tuple[Broken, ...]:
        """What tasks have broken with that told of it nowhere else."""
        return (*self._tasks.guard.found.values(), *self._steering.guard.found.values())

    def close(self, wait: bool = True) -> None:
        """Stop what runs, leave the cluster to other panels or close it, and end the threads."""
        if not self._closed.is_set():
            self._closed.set()
            self.stop()
            self._steering.close()
            self._tasks.close()
        if wait:
            self._tasks.join(CLOSE_LIMIT_S)

    # The thread of what takes time.

    def _leave(self) -> None:
        self._steering.join(CLOSE_LIMIT_S)  # what runs is stopped before its cluster is closed
        SHARED.leave(self)

    def _idle(self) -> None:
        """Do what has waited: a run for its turn, or else a try of what could be chosen."""
        waiting, job, task = self._waiting, self.job, self._tasks.guard.task
        if job is not None:
            with task("follow"):
                job.follow()
        with task("earlier"):
            self.earlier.look()
        if waiting is not None:
            self._waiting = None
            self._begin(waiting)
        else:
            with task("try"):
                self._trying.go(TURNS.busy)

    def _begin(self, job: Job) -> None:
        try:
            before, job.after = job.after, None
            if before is not None:
                before.stop()
            if job.ended:  # stopped while it was in the queue
                return
            problems = check(job.request)
            if problems:
                job.problems = {name: partial(str, said) for name, said in problems.items()}
                return
            if not TURNS.take(job):
                job.phase = ("phase.turn", {})
                self._waiting = job
                return
            self._carry_out(job)
        except RefusedError as refused:
            job.problems = {refused.control: refused.sentence}
            job.details = refused.details
        except Exception as error:
            # Told beside what was asked for, with the whole traceback.
            told = f"{type(error).__name__}: {error}"
            job.problems = {"run": partial(language.text, "problem.own", error=told)}
            job.details = traceback.format_exc()

    def _carry_out(self, job: Job) -> None:
        asked = job.request
        with blame("workload"):
            self._make(asked.workload)
        with blame("batch"):
            work = self._changed(asked)
            plan(work, "serial")
        with blame("strategy"):
            strategies = {"compare": asked.strategies, "train": [asked.strategy], "sweep": []}
            ranks = [plan(work, each, **asked.choices).ranks for each in strategies[job.kind]]
        with blame("workers"):
            lab = self._open_lab(job)
            if job.stop_asked.is_set():
                return
            lab.hosts_for(max(ranks, default=asked.workers))
        with blame("run"):
            job.going = self._going(job, work, lab)
        if job.stop_asked.is_set():
            job.stop()

    def _going(self, job: Job, work: Workload, lab: Lab) -> Comparison | Training:
        """Start what is asked for."""
        asked = job.request
        if job.kind == "train":
            return self._train(asked, work, lab)
        how: dict[str, Any] = {
            "steps": asked.steps,
            "repeats": asked.repeats,
            "threads": asked.threads,
            "lab": lab,
            "preview": True,
            "spans": True,
            "wait": False,
        }
        if job.kind == "sweep":
            return sweep(work, workers=asked.workers, **how, **asked.choices)
        return compare(work, asked.strategies, **how, **asked.choices)

    def _train(self, asked: Request, work: Workload, lab: Lab) -> Training:
        before = self.training
        same = before is not None and before.work is work and before.can_go_on
        self.training = Training(
            work,
            asked.strategy,
            steps=asked.steps,
            threads=asked.threads,
            lab=lab,
            options=asked.choices,
            before=before if same else None,
        )
        return self.training

    def _open(self, workers: int) -> None:
        try:
            self.using.open(workers)
        finally:
            self.using.opening = 0

    def _open_lab(self, job: Job) -> Lab:
        """Return the cluster to use; say so where one is started."""

        def starting() -> None:
            job.phase = ("phase.cluster", {"workers": job.request.workers})

        return self.using.open(job.request.workers, starting)

    def _export(self, folder: str) -> None:
        self._told = str
        self._told = shelf.write(self.job, folder)

    def _attach(self, paths: tuple[str, ...]) -> None:
        if self.job is not None and self.job.here and not self.job.ended:
            self._told = partial(language.text, "keep.busy")
            return
        number = 1 if self.job is None else self.job.number + 1
        self._told = str
        job, self._told = shelf.read(paths, number)
        self.job = job or self.job

    def _describe(self, name: str) -> None:
        with suppress(Exception):  # Run tells what is wrong with it
            self.described[name] = described(name, self._make(name))

    def _draw(self, request: Request) -> None:
        self._drawn = request
        try:
            found = plan(self._changed(request), request.strategy, **request.choices)
        except Exception as error:  # somebody's own strategy may raise anything
            self.planned = (request, Broken.of(error).error)
        else:
            self.planned = (request, found)
        self.using.look()

    def _try_one(self) -> bool:
        """Find out of one more strategy whether it can be; return whether there was one left."""
        asked = self._drawn
        if asked is None or check(asked):
            return False
        base = asked.basis
        for _axis, _degree, strategy in tries(asked):
            if (base, strategy) in self.refused:
                continue
            try:
                plan(self._changed(asked), strategy, **asked.choices)
            except Exception as error:
                self.refused[base, strategy] = Broken.of(error).error
            else:
                self.refused[base, strategy] = ""
            return True
        return False

    def _make(self, name: str) -> Workload:
        if name not in self._made:
            self._made[name] = workload(name)
        return self._made[name]

    def _changed(self, asked: Request) -> Workload:
        """Return the workload as it is asked for; the same object as before where nothing is new.

        Plans belong to a workload, and a training goes on with the same one.
        """
        found = self._variants.get(asked.task)
        if found is None:
            found = self._make(asked.workload)
            if any(getattr(found, name) != value for name, value in asked.changes.items()):
                found = found.with_(**asked.changes)
            self._variants = dict([*self._variants.items(), (asked.task, found)][-MOST_VARIANTS:])
        return found
