"""``wb.app()``: the panel, from a press of Run to a measured speedup, beside the notebook's cells.

Three kinds of thread meet here. The kernel's threads run the callbacks, which only put a command
into a queue. The driver's thread takes commands out and talks to Dask. The panel's own thread looks
at the driver four times a second, and is the only one that changes widgets and figures.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from bokeh.io import output_notebook
from IPython import get_ipython
from IPython.display import publish_display_data

from workbench.ui import table
from workbench.ui.driver import CLOSE_LIMIT_S, Driver
from workbench.ui.form import Request, request
from workbench.ui.report import BOKEH
from workbench.ui.state import State, Watcher
from workbench.ui.view import View

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.comparison import Comparison
    from workbench.workload import Workload

TICK_S = 0.25
PRINT_EVERY_S = 2.0

_open: Panel | None = None


def app(work: Workload | None = None, lab: Lab | None = None, **presets: Any) -> Panel:
    """Open the panel; at the end of a notebook's cell it shows itself.

    A panel that is open already is closed, and its cluster goes on to the new one.

    Parameters
    ----------
    work:
        A workload of your own; those of the catalogue stay in the menu.
    lab:
        The cluster to run on. By default the one opened last; if there is none, the first run
        starts one, which ends with the panel.
    presets:
        What the controls show at first: ``workload="digits-mlp"``, ``strategy="data=2"``,
        ``workers=2``, ``batch=64``, ``steps=30``, ``repeats=3``.

    Raises
    ------
    PlanError
        For a preset that there is not, or that cannot be.
    """
    global _open
    asked = request(work, presets)
    panel = Panel(work, lab, asked, keep={name for name in ("batch", "steps") if name in presets})
    if _open is not None:
        panel.driver.give_lab(_open.driver.take_lab())
        _open.close(wait=False)
    _open = panel
    panel.open()
    return panel


class Panel:
    """The controls, the live figures and the table; made by :func:`app`.

    What the buttons do is there as methods too, all of which return at once but :meth:`wait`.
    """

    def __init__(
        self, work: Workload | None, lab: Lab | None, asked: Request, keep: set[str]
    ) -> None:
        self.driver = Driver(work, lab)
        self._watcher = Watcher(self.driver)
        # Batch and steps that the user has given stay, until another workload is chosen.
        self._keep, self._kept_for = keep, asked.workload
        self._view = View(
            asked,
            None if work is None else work.name,
            on_run=lambda: self.run(),
            on_stop=self.stop,
            on_workload=self.driver.describe,
        )
        self._shown: State | None = None
        self._drawn: Request | None = None
        self._printed = (0.0, "")
        self._print = not _in_kernel()
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
        return self._watcher.look()

    @property
    def comparison(self) -> Comparison | None:
        """The comparison of the newest run, for a report or a table of your own."""
        job = self.driver.job
        return None if job is None else job.comparison

    def run(self) -> None:
        """Do what Run does: compare what the controls ask for."""
        self.driver.run(self._view.request())

    def stop(self) -> None:
        """Do what Stop does: end the run within 2 s; what was measured stays."""
        self.driver.stop()

    def wait(self, timeout_s: float | None = None) -> State:
        """Wait until no run is going on, and return the state; for scripts.

        Raises
        ------
        TimeoutError
            If one is still going on after ``timeout_s``.
        """
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        while (job := self.driver.job) is not None and not job.ended:
            if limit is not None and time.monotonic() > limit:
                raise TimeoutError(f"The run still goes on after {timeout_s} s.")
            time.sleep(TICK_S / 5)
        return self.state

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

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        """Return the widgets, and for front ends without widgets the text and the table."""
        bundle = dict(self._view.root._repr_mimebundle_() or {})
        state = self.state
        bundle["text/plain"] = repr(self)
        bundle["text/html"] = (
            "<p><b>Parallel workbench.</b> The live panel cannot be shown here; open the notebook "
            "in JupyterLab, or use <code>panel.run()</code> and <code>panel.wait()</code>.</p>"
            f"<p>{escape(state.text)}</p>{table.rows_table(state.rows) if state.rows else ''}"
        )
        return bundle

    def _ipython_display_(self) -> None:
        if _in_kernel():
            # In the same output as the figures, which need it: no network, and no second cell.
            output_notebook(resources=BOKEH, hide_banner=True)
            publish_display_data(self._repr_mimebundle_())
        else:
            print(repr(self))

    # The panel's thread.

    def _loop(self) -> None:
        while not self._closed.wait(TICK_S):
            try:
                self._tick()
            except Exception as error:
                if not self._closed.is_set():
                    traceback.print_exc()
                    self._view.break_down(error)
                return

    def _tick(self) -> None:
        chosen = self._view.request().workload
        if chosen != self._kept_for:
            self._keep, self._kept_for = set(), chosen
        self._view.show_plan(self.driver.planned)
        asked = replace(self._view.request(), steps=0, repeats=0)
        if asked != self._drawn:
            self._drawn = asked
            self.driver.draw(asked)
        described = self.driver.described.get(chosen)
        if described is not None:
            self._view.suggest(described, self._keep)
        state = self._watcher.look()
        self._view.show(state)
        if self._print and state.job:
            self._say(state)

    def _say(self, state: State) -> None:
        """Print the state where there are no widgets: now and then, and when a run ends."""
        when, before = self._printed
        now = time.monotonic()
        if state.text != before and (not state.busy or now - when >= PRINT_EVERY_S):
            self._printed = (now, state.text)
            print(state.text, file=sys.stdout, flush=True)


def _in_kernel() -> bool:
    """Return whether there is a Jupyter kernel that shows widgets."""
    if os.environ.get("WORKBENCH_NONINTERACTIVE"):
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
