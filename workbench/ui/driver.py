"""The driver: the one thread of the panel that talks to Dask.

The panel's callbacks only put a command into its queue. What comes of it is read from the
:class:`~workbench.ui.job.Job` that the driver works on; single attributes are set whole, so that
the thread that draws can read them at any time.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
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
from workbench.ui.impossible import Trying
from workbench.ui.job import TURNS, Job, Kind
from workbench.ui.shared_lab import SHARED, gone
from workbench.ui.training import Training
from workbench.workload import Workload, workload

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.comparison import Comparison
    from workbench.plan import Plan

CLOSE_LIMIT_S = 20.0
MOST_VARIANTS = 8
"""Workloads with a batch size or seed of their own that are kept, with their plans."""

IDLE_S = 0.25
"""How long the driver waits for a command before it looks at what waits for its turn."""


class Driver:
    """Runs what the panel asks for, one after the other, on a thread of its own.

    Parameters
    ----------
    work:
        The user's own workload, or None.
    lab:
        The cluster to use. Without one it is the one opened last; if there is none, one is started
        that all panels share, and closed with the last of them.

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
    lab:
        The cluster in use, once there is one.
    told:
        What came of the last share code, export or attachment.
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
        self.lab = lab
        self.told = ""
        self.earlier = shelf.Earlier()
        self.language = language
        self._given = lab
        self._lost = False
        self._made: dict[str, Workload] = {} if work is None else {OWN: work}
        self._variants: dict[tuple[Any, ...], Workload] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: Job | None = None
        self._drawn: Request | None = None
        self._trying = Trying(self._try_one)
        self._closed = threading.Event()
        self._lock = threading.Lock()
        SHARED.join(self)
        self._thread = threading.Thread(target=self._loop, name="panel driver", daemon=True)
        self._thread.start()

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
            self.job = job = Job(number, request, kind, after=old)
        self._commands.put(lambda: self._begin(job))
        return job

    def stop(self) -> None:
        """Ask for the end of what goes on and return at once."""
        job = self.job
        if job is not None and not job.ended:
            if job.here:
                job.stop_asked.set()
            self._commands.put(job.stop)

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

        self._commands.put(tell)

    def start_cluster(self) -> None:
        """Ask for a new cluster in the place of one that is gone, and return at once."""
        self._given = self.lab = None
        self._lost = False
        job = self.job
        if job is not None and job.ended and job.here:
            self.run(job.request, job.kind)

    def export(self, folder: str) -> None:
        """Ask for files of what was measured last and return at once."""
        self._commands.put(lambda: self._export(folder))

    def attach(self, *paths: str) -> None:
        """Ask for what was measured before, by whomever, and return at once."""
        self._commands.put(lambda: self._attach(paths))

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
                self.told = language.translate(str(error))
                return None
            limited = any(limits.values())
            self.told = language.text("keep.restored_limited" if limited else "keep.restored")
        return found, limits

    def start_over(self) -> None:
        """Forget the weights of the training: the next one begins afresh."""
        self.training = None

    def describe(self, name: str) -> None:
        """Ask for the description of a workload and return at once."""
        self._commands.put(lambda: self._describe(name))

    def draw(self, request: Request) -> None:
        """Ask for the plan of what the controls say and return at once."""
        self._commands.put(lambda: self._draw(request))

    @property
    def cluster_gone(self) -> bool:
        """Whether the cluster in use is closed, or was found without workers; asks nobody."""
        return self._lost or (self.lab is not None and self.lab.closed)

    @property
    def dashboard(self) -> str:
        """Address of the page of all runs on the cluster in use; "" where there is none."""
        lab = self.lab
        if lab is None or lab.closed or not lab.feed.on:
            return ""
        return f"{lab.dashboard_link.removesuffix('/status')}/workbench"

    def close(self, wait: bool = True) -> None:
        """Stop what runs, leave the cluster to other panels or close it, and end the thread."""
        if not self._closed.is_set():
            self._closed.set()
            self.stop()
            self._commands.put(None)
        if wait:
            self._thread.join(CLOSE_LIMIT_S)

    # The driver's thread.

    def _loop(self) -> None:
        while True:
            try:
                command = self._commands.get(timeout=IDLE_S)
            except queue.Empty:
                command = self._idle
            if command is None:
                break
            language.speak(self.language)
            command()
        SHARED.leave(self)

    def _idle(self) -> None:
        """Do what has waited: a run for its turn, or else a try of what could be chosen."""
        waiting, job = self._waiting, self.job
        if job is not None:
            job.follow()
        self.earlier.look()
        if waiting is not None:
            self._waiting = None
            self._begin(waiting)
        else:
            self._trying.go(TURNS.busy)

    def _begin(self, job: Job) -> None:
        if job.ended:  # stopped while it was in the queue
            return
        problems = check(job.request)
        if problems:
            job.problems = problems
            return
        if job.after is not None and job.after.here and not job.after.ended:
            job.after.stop()
        if not TURNS.take(job):
            job.phase = ("phase.turn", {})
            self._waiting = job
            return
        try:
            self._carry_out(job)
        except RefusedError as refused:
            job.problems = {refused.control: refused.sentence}
            job.details = refused.details
        except Exception as error:
            # Nothing of ours may end the driver; the user is told, with the whole traceback.
            job.problems = {
                "run": language.text("problem.own", error=f"{type(error).__name__}: {error}")
            }
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

    def _open_lab(self, job: Job) -> Lab:
        """Return the cluster to use; start one where there is none, or ours is too small."""

        def starting() -> None:
            job.phase = ("phase.cluster", {"workers": job.request.workers})

        if self._given is not None:
            if gone(self._given):
                self._lost = True
                raise RunError(language.text("cluster.gone"))
            return self._given
        self.lab = SHARED.lab_for(job.request.workers, starting)
        return self.lab

    def _export(self, folder: str) -> None:
        self.told = shelf.write(self.job, folder)

    def _attach(self, paths: tuple[str, ...]) -> None:
        if self.job is not None and self.job.here and not self.job.ended:
            self.told = language.text("keep.busy")
            return
        number = 1 if self.job is None else self.job.number + 1
        job, self.told = shelf.read(paths, number)
        self.job = job or self.job

    def _describe(self, name: str) -> None:
        with suppress(PlanError, RunError, OSError):  # Run tells what is wrong with it
            self.described[name] = described(name, self._make(name))

    def _draw(self, request: Request) -> None:
        self._drawn = request
        try:
            found = plan(self._changed(request), request.strategy, **request.choices)
        except (PlanError, RunError, OSError) as error:
            self.planned = (request, str(error))
        else:
            self.planned = (request, found)

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
            except (PlanError, RunError, OSError) as error:
                self.refused[base, strategy] = str(error)
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
