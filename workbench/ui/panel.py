"""``wb.app()``: the panel, from a press of Run to a measured speedup, beside the notebook's cells.

Three kinds of thread meet here. The kernel's threads run the callbacks, which only put a command
into a queue. The driver's thread takes commands out and talks to Dask. The panel's own thread looks
at the driver four times a second, and is the only one that changes widgets and figures.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bokeh.io import output_notebook
from IPython import get_ipython
from IPython.display import publish_display_data

from workbench import machine
from workbench.controls import checked
from workbench.strategies.notation import parse
from workbench.ui import language as speech
from workbench.ui.actions import Presses
from workbench.ui.driver import CLOSE_LIMIT_S, Driver
from workbench.ui.form import FEWEST_USEFUL_STEPS, Request, check_kinds, request
from workbench.ui.guess import Guess
from workbench.ui.keep import Keep
from workbench.ui.language import text
from workbench.ui.lines import Lines
from workbench.ui.report import BOKEH
from workbench.ui.shelf import EXPORTS
from workbench.ui.state import State, Watcher
from workbench.ui.still_page import still_page
from workbench.ui.training import Training
from workbench.ui.view import View

if TYPE_CHECKING:
    from workbench.attaching import AttachedComparison
    from workbench.cluster.lab import Lab
    from workbench.comparison import Comparison
    from workbench.workload import Workload

TICK_S = 0.25

_of_cell: dict[str, Panel] = {}
"""Panels by the notebook's cell that has opened them."""


def app(
    work: Workload | None = None,
    lab: Lab | None = None,
    *,
    lang: str | None = None,
    hidden: Sequence[str] = (),
    locked: Sequence[str] = (),
    predict_first: bool = False,
    **presets: Any,
) -> Panel:
    """Open the panel; at the end of a notebook's cell it shows itself.

    Several panels may be open: they share one cluster and take turns on it. A cell that is run
    again closes the panel that it has opened before.

    Parameters
    ----------
    work:
        A workload of your own; those of the catalogue stay in the menu.
    lab:
        The cluster to run on. By default the one opened last; if there is none, the first run
        starts one, which ends with the last panel.
    lang:
        ``"en"`` or ``"zh"``; by default that of ``WORKBENCH_LANG`` or of the locale.
    hidden, locked:
        Controls that are not shown, or cannot be changed, for a lesson: names of presets.
    predict_first:
        Whether Run, Sweep and Train wait until a guess of the speedup is locked.
    presets:
        What the controls show at first: ``workload="digits-mlp"``, ``strategy="data=2,tensor=2"``,
        ``compare=["data=4"]``, ``workers=4``, ``threads=1``, ``batch=64``, ``steps=30``,
        ``repeats=3``, ``seed=1``, ``accumulate=4``, and every option of the strategies, such as
        ``precision="bf16"`` or ``schedule="gpipe"``.

    Raises
    ------
    PlanError
        For a language, a control or a preset that there is not, or that cannot be.
    """
    language = speech.preferred(lang)
    with speech.speaking(language):
        check_kinds(work, lab, presets)
        asked = request(work, presets)
        limits = checked({"hidden": hidden, "locked": locked})
        keep: set[str] = {name for name in ("batch", "steps", "seed") if name in presets}
        panel = Panel(work, lab, asked, keep, language, limits, predict_first)
        cell = _cell()
        if cell:
            before = _of_cell.pop(cell, None)
            _of_cell[cell] = panel
            if before is not None:
                before.close(wait=False)
        panel.open()
    return panel


class Panel:
    """The controls, the live figures and the table; made by :func:`app`.

    What the buttons do is there as methods too, all of which return at once but :meth:`wait`.
    """

    def __init__(
        self,
        work: Workload | None,
        lab: Lab | None,
        asked: Request,
        keep: set[str],
        language: str,
        limits: Mapping[str, Sequence[str]],
        predict_first: bool = False,
    ) -> None:
        self.driver = Driver(work, lab, language)
        self._watcher = Watcher(self.driver)
        # What the user has given stays, until another workload is chosen.
        self._keep, self._kept_for = keep, asked.workload
        self._language = language
        presses = Presses(
            run=self.run,
            pause=self.pause,
            step=self.step,
            sweep=self.sweep,
            train=self.train,
            start_over=self.driver.start_over,
            stop=self.stop,
            start_cluster=self.start_cluster,
            lock=self._lock_guess,
            language=self.speak,
        )
        keep_fold = Keep(
            self.restore, self.export, self.attach, lambda limits: self.limit(**limits)
        )
        own_name = None if work is None else work.name
        called = self.driver.describe, self._watcher.look_at
        self._view = View(asked, own_name, presses, keep_fold, *called, limits, predict_first)
        self._spoken = language
        self._drawn: Request | None = None
        self._in_kernel = _in_kernel()
        self._lines = Lines()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="panel", daemon=True)
        self.driver.describe(asked.workload)

    def open(self) -> None:
        """Start to follow the driver."""
        self._view.show(self._watcher.look())
        self._thread.start()
        atexit.register(self.close)

    @property
    def state(self) -> State:
        """What the panel shows now."""
        with speech.speaking(self._language):
            return self._watcher.look()

    @property
    def comparison(self) -> Comparison | AttachedComparison | None:
        """The comparison of the newest run, for a report or a table of your own."""
        job = self.driver.job
        going = None if job is None else job.going
        return None if isinstance(going, Training) else going

    @property
    def training(self) -> Training | None:
        """The model that Train has trained, run after run."""
        return self.driver.training

    def run(self) -> None:
        """Do what Run does: compare what the controls ask for."""
        self.driver.run(self._view.request())

    def train(self) -> None:
        """Do what Train does: train under the chosen strategy, and go on with the weights."""
        self.driver.run(self._view.request(), "train")

    def sweep(self) -> None:
        """Do what Sweep does: measure every strategy that suits the workload, up to all workers."""
        self.driver.run(self._view.request(), "sweep")

    def pause(self) -> None:
        """Do what Pause does: what runs waits after its step; called again, it goes on."""
        self.driver.pause()

    def step(self) -> None:
        """Do what Step does: what waits makes one step, and waits again."""
        self.driver.step()

    def start_cluster(self) -> None:
        """Do what Start a cluster does: another in the place of one that is gone."""
        self.driver.start_cluster(self._view.request().workers)

    @property
    def code(self) -> str:
        """The share code of what the controls say, and of which are hidden or locked."""
        return self._view.code

    def restore(self, code: str) -> None:
        """Set, hide and lock controls as a share code says; what is wrong with it is told."""
        found = self.driver.restore(code)
        if found is not None:
            asked, limits = found
            self._keep, self._kept_for = {"batch", "steps", "seed"}, asked.workload
            with speech.speaking(self._language):
                self._view.fill(asked)
                self._view.limit(limits)

    def limit(self, hidden: Sequence[str] = (), locked: Sequence[str] = ()) -> None:
        """Hide and lock controls, named as for :func:`app`, and free all others.

        Raises
        ------
        PlanError
            For a control that there is not.
        """
        self._view.limit(checked({"hidden": hidden, "locked": locked}))

    def export(self, folder: str = EXPORTS) -> None:
        """Write what was measured last to ``folder``: tables, figures, report, trace."""
        self.driver.export(folder)

    def attach(self, *paths: str) -> None:
        """Show what was measured before, see :func:`workbench.attach`; the newest if left out.

        Of several paths all are shown, in one table and one figure.
        """
        self.driver.attach(*paths)

    def guess(self, speedup: float, because: str = "") -> None:
        """Lock a guess of the chosen strategy's speedup over one thread, for runs from now on."""
        asked, job = self._view.request(), self.driver.job
        threads = asked.threads or max(1, machine.cores() // max(1, asked.workers))
        cores = parse(asked.strategy).size * threads
        self._view.actions.locked = Guess(
            asked, speedup, cores, because, after=job.number if job else 0
        )

    def speak(self, language: str) -> None:
        """Speak another language from now on: ``"en"`` or ``"zh"``."""
        self._language = self.driver.language = speech.preferred(language)

    def stop(self) -> None:
        """Do what Stop does: end the run within 2 s; what was measured stays."""
        self.driver.stop()

    def wait(self, timeout_s: float | None = None) -> State:
        """Wait until no run is going on, and return the state; for scripts.

        In a notebook that no page shows, as when nbclient runs it, progress is printed meanwhile,
        and the table and still figures are shown at the end.

        Raises
        ------
        TimeoutError
            If one is still going on after ``timeout_s``.
        """
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        presence, lines = self._view.presence, Lines()
        while (job := self.driver.job) is not None and not job.ended:
            if limit is not None and time.monotonic() > limit:
                raise TimeoutError(f"The run still goes on after {timeout_s} s.")
            if self._in_kernel and lines.due and presence.missing == "page":
                lines.say(self.state)
            time.sleep(TICK_S / 5)
        state = self.state
        if self._in_kernel and job is not None and presence.nobody:
            lines.say(state)
            publish_display_data({"text/plain": repr(self), "text/html": self._page(state)})
        return state

    def close(self, wait: bool = True) -> None:
        """Stop what runs, end the panel's threads, and take it off the page."""
        atexit.unregister(self.close)
        first = not self._closed.is_set()
        self._closed.set()
        self.driver.close(wait)
        if wait and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_LIMIT_S)
        if first:
            self._view.close()

    # What a cell, a terminal and a page without JavaScript show.

    def __repr__(self) -> str:
        state = self.state
        closed = " (closed)" if self._closed.is_set() else ""
        return f"<Parallel workbench panel{closed}: {state.text}>"

    def _page(self, state: State, *said: str) -> str:
        with speech.speaking(self._language):
            return still_page([*said, state.text], state.rows, self.comparison)

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        """Return the widgets; for front ends without them a sentence, the table and figures."""
        bundle = dict(self._view.root._repr_mimebundle_() or {})
        with speech.speaking(self._language):
            said = f"{text('static.title')} {text('static.text')}"
        bundle["text/plain"] = repr(self)
        bundle["text/html"] = self._page(self.state, said)
        return bundle

    def _ipython_display_(self) -> None:
        if self._in_kernel:
            # In the same output as the figures, which need it: no network, and no second cell.
            output_notebook(resources=BOKEH, hide_banner=True)
            publish_display_data(self._repr_mimebundle_())
            self._view.presence.display(named=bool(_cell()))
        else:
            print(repr(self))

    # The panel's thread.

    def _loop(self) -> None:
        while not self._closed.wait(TICK_S):
            with self._view.guard.task("panel"):
                self._tick()
            with self._view.guard.task("broken"):
                self._view.tell_broken(self._watcher.broken)

    def _tick(self) -> None:
        speech.speak(self._language)
        if self._spoken != self._language:
            self._spoken = self._language
            self._view.speak()
        chosen = self._view.request().workload
        if chosen != self._kept_for:
            self._keep, self._kept_for = set(), chosen
        asked = replace(self._view.request(), steps=FEWEST_USEFUL_STEPS, repeats=1, also=())
        if asked != self._drawn:
            self._drawn = asked
            self.driver.draw(asked)
        described = self.driver.described.get(chosen)
        if described is not None:
            with self._view.guard.task("suggest"):
                self._view.suggest(described, self._keep)
        state = self._watcher.look()
        driver = self.driver
        self._view.show(state, driver.refused, driver.planned, driver.told, driver.using.workers)
        self._view.presence.ring()
        self._view.stand_in(state, self.comparison)
        if not self._in_kernel and state.job:
            self._lines.say(state)

    def _lock_guess(self) -> None:
        actions = self._view.actions
        if actions.locked is None:
            self.guess(float(actions.guess.value), str(actions.because.value))
        else:
            actions.locked = None


def _cell() -> str:
    """Return what tells this cell from the others of the notebook; "" outside of one."""
    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):
        return ""
    return str((shell.get_parent() or {}).get("metadata", {}).get("cellId", ""))


def _in_kernel() -> bool:
    """Return whether there is a Jupyter kernel that shows widgets."""
    if os.environ.get("WORKBENCH_NONINTERACTIVE"):
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
