"""The panel's widgets: made once, then changed by one thread only, and only where news is.

Nothing here knows Dask or threads; a :class:`~workbench.ui.state.State` goes in, and a
:class:`~workbench.ui.form.Request` comes out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench import machine
from workbench.plan import Plan
from workbench.ui import figures, passages, pictures
from workbench.ui.about import About
from workbench.ui.accuracy_figure import accuracy_chart, accuracy_columns
from workbench.ui.actions import Actions, Presses
from workbench.ui.chart import Chart, Columns
from workbench.ui.controls import Controls
from workbench.ui.described import Described
from workbench.ui.form import Request
from workbench.ui.guard import Broken, Guard
from workbench.ui.guess import Guess
from workbench.ui.keep import Keep
from workbench.ui.language import text
from workbench.ui.live_figure import LiveFigure
from workbench.ui.memory_figure import memory_chart, memory_columns
from workbench.ui.pace import Clock, Due, rests
from workbench.ui.placement_page import PlacementPage
from workbench.ui.plan_view import PlanView
from workbench.ui.presence import Presence
from workbench.ui.state import State
from workbench.ui.step_menu import StepMenu
from workbench.ui.still_page import StillFigures
from workbench.ui.style import STYLE
from workbench.ui.throughput_figure import throughput_chart, throughput_columns
from workbench.ui.timeline_figure import timeline_chart, timeline_columns
from workbench.ui.why_table import why_table
from workbench.ui.widget import Fold, all_of, box, problem, put

READ = ("throughput", "accuracy", "share", "timeline", "memory")
"""Figures that are read rather than watched, see :class:`workbench.ui.pace.Pace`."""


class View:
    """The widgets of one panel.

    Parameters
    ----------
    asked:
        What the controls show at first.
    own_name:
        Name of the user's own workload, or None.
    presses, keep:
        What the buttons do, and the fold of what is kept.
    on_workload:
        Called on the kernel's threads with the name of another workload that is chosen; must
        return at once.
    on_step:
        Called likewise with the step that the timeline is to show, see
        :class:`workbench.ui.step_menu.StepMenu`.
    limits, predict_first:
        Controls that are ``"hidden"`` and ``"locked"``, and whether Run waits for a guess.

    Attributes
    ----------
    guard:
        What parts of the panel have broken with: the others are shown none the less.
    """

    def __init__(
        self,
        asked: Request,
        own_name: str | None,
        presses: Presses,
        keep: Keep,
        on_workload: Any,
        on_step: Any,
        limits: Mapping[str, Sequence[str]],
        predict_first: bool = False,
    ) -> None:
        self.lock = threading.RLock()
        self.guard = Guard()
        self.controls = Controls(asked, own_name, limits)
        self.actions = Actions(presses, predict_first)
        self._shown: State | None = None
        self._said: State | None = None
        self._clock = Clock()
        self.keep = keep
        self._price = widgets.BoundedFloatText(value=0.0, min=0.0, max=1e6, step=0.1)
        self._price_drawn = 0.0
        self._drawn_guess: Guess | None = None
        self._place = widgets.HTML()
        self._title = widgets.HTML()
        self._problem = widgets.HTML()
        self._broken = widgets.HTML()
        self._result = widgets.HTML()
        self._python = widgets.HTML()
        self._pace = widgets.HTML()
        self._why, self._table, self._details = (widgets.HTML() for _ in range(3))
        self._details_fold = Fold(box([self._details, self._price]), "wb-details")
        self._python_fold = Fold(self._python)
        self._pictures = widgets.HTML()
        self._plan = PlanView()
        self._there: Mapping[str, float] = {}
        self._where = PlacementPage(ask=lambda: self._there)
        self._where_fold = Fold(self._where.root)
        self._charts: tuple[Chart, ...] = (
            figures.speedup_chart(),
            figures.loss_chart(),
            throughput_chart(),
            accuracy_chart(),
            figures.share_chart(),
            timeline_chart(),
            memory_chart(),
        )
        self.presence = Presence()
        tells = [self.presence.draw, *(None for _ in self._charts[1:])]  # one speaks for all
        self._figures = [
            LiveFigure(chart.figure, self.lock, tell)
            for chart, tell in zip(self._charts, tells, strict=True)
        ]
        self._stills = StillFigures()
        self._about = [About(chart.name) for chart in self._charts]
        self._step = StepMenu(on_step)
        self.root = self._layout()
        self.speak()
        workload = self.controls.fields["workload"]
        workload.observe(lambda change: on_workload(change["new"]), "value")

    def request(self) -> Request:
        """Return what the controls ask for now."""
        with self.lock:
            return self.controls.request()

    def fill(self, asked: Request) -> None:
        """Have the controls show what is asked for."""
        with self.lock:
            self.controls.fill(asked)

    def limit(self, limits: Mapping[str, Sequence[str]]) -> None:
        """Hide and lock controls, and free all others."""
        with self.lock:
            self.controls.limit(limits)

    @property
    def code(self) -> str:
        """The share code of what the controls say."""
        with self.lock:
            return self.controls.request().code(self.controls.limits)

    def suggest(self, described: Described, keep: set[str]) -> None:
        """Tell about the chosen workload, and set what suits it, but for the controls in keep."""
        with self.lock:
            self.controls.suggest(described, keep)

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        with self.lock:
            put(self._title, f'<h2 class="wb-title">{escape(text("title"))}</h2>')
            self.controls.speak()
            self.actions.speak()
            self._plan.speak()
            self._where.speak()
            self._where_fold.say(text("where.title"))
            self._details_fold.say(text("table.details"))
            self.keep.speak()
            self._step.speak()
            self._price.description = text("cost.price")
            self._python_fold.say(text("python.title"))
            for chart, about in zip(self._charts, self._about, strict=True):
                chart.speak()
                about.speak()
            self._clock = Clock()
            shown, self._shown = self._shown, None
            if shown is not None:
                self.redraw()

    def show(
        self,
        state: State,
        refused: Mapping[tuple[Request, str], str] | None = None,
        planned: tuple[Request, Plan | str] | None = None,
        told: str = "",
        there: Mapping[str, float] | None = None,
    ) -> None:
        """Bring every widget up to date; what has not changed sends nothing.

        ``there`` has the workers that chunks are placed on, see
        :class:`workbench.ui.lab_in_use.LabInUse`: nothing here waits for a cluster.
        """
        with self.lock:
            part, asked = self.guard.task, self.controls.request()
            with part("plan"):
                self._plan.show(planned)
            with part("placement"):
                self._there = there or {}
                if planned is not None and isinstance(planned[1], Plan):
                    self._where.show(planned[1])
            with part("controls"):
                corrected = asked != state.request
                problems = {} if corrected else dict(state.problems)
                why = planned[1] if planned and planned[0].strategy == asked.strategy else ""
                self.controls.show(problems, refused or {}, why if isinstance(why, str) else "")
            with part("python"):
                put(self._python, passages.python(asked))
            with part("keep"):
                self.keep.show(self.code, self.controls.limits, told)
                self.keep.list_earlier(state.earlier)
            guess, price = self.actions.locked, float(self._price.value)
            if price != self._price_drawn:
                self._price_drawn = price
                with part("details"):
                    put(self._details, passages.details(state, price))
            if state is not self._shown or guess is not self._drawn_guess:
                due = self._clock.look(state, again=guess is not self._drawn_guess)
                with part("state"):
                    put(self._pace, passages.paced(state))
                    put(self._place, passages.place(state))
                    put(self._problem, passages.trouble(state))
                if due.moving:
                    with part("result"):
                        put(self._result, passages.result(state))
                    with part("pictures"):
                        put(self._pictures, pictures.strip(state.preview))
                if due.read:
                    with part("why"):
                        put(self._why, why_table(state.bars, machine.cores()))
                    with part("table"):
                        put(self._table, passages.runs(state))
                    with part("details"):
                        put(self._details, passages.details(state, price))
                self._draw(state, guess, due)
                self._shown, self._drawn_guess = state, guess
                if due.said:
                    self._said = state
            # Last: who reads "Done" finds all that was measured.
            with part("actions"):
                self.actions.show(state, asked.strategy, self._said)

    def stand_in(self, state: State, measured: Any) -> None:
        """Show still figures of what was measured where the page draws no live ones."""
        with self.lock:
            instead = self.presence.missing == "figures"
            self._stills.show(instead, state, measured)
            if instead:
                # Not taken away: a page that scrolls to them may draw them yet.
                self._charts_box.add_class("wb-unseen")
            else:
                self._charts_box.remove_class("wb-unseen")

    def tell_broken(self, others: Sequence[Broken]) -> None:
        """Say what parts of the panel have broken with, and what ``others`` have."""
        with self.lock:
            found = (*self.guard.found.values(), *others)
            told = {each.sentence: problem(each.sentence, each.details) for each in found}
            put(self._broken, "".join(told.values()))

    def redraw(self) -> None:
        """Send every figure whole, for browsers that open the notebook from now on."""
        with self.lock:
            for live, chart in zip(self._figures, self._charts, strict=True):
                live.update_from_model(chart.figure)

    def close(self) -> None:
        """Take the widgets off the page."""
        with self.lock:
            for widget in all_of(self.root):
                widget.close()

    def _draw(self, state: State, guess: Guess | None, due: Due) -> None:
        columns: tuple[Callable[[], Columns], ...] = (
            lambda: figures.speedup_columns(state.points, guess),
            lambda: figures.loss_columns(state.curves),
            lambda: throughput_columns(state.curves),
            lambda: accuracy_columns(state.curves),
            lambda: figures.share_columns(state.bars),
            lambda: timeline_columns(state.timeline),
            lambda: memory_columns(state.memory),
        )
        for chart, about, made in zip(self._charts, self._about, columns, strict=True):
            moves = due.read if chart.name in READ else due.moving
            if moves or due.read:
                with self.guard.task(f"figure {chart.name}"):
                    data = made()
                    if moves:
                        chart.draw(data)
                    if due.read:
                        about.show(data)
        if due.read:
            self._step.show(state.recorded, state.timeline.label if state.timeline else "")
        if rests(state) and self._shown is not None and not rests(self._shown):
            self.redraw()  # nothing new will come that would tell a page that is loaded now

    def _layout(self) -> Any:
        charts = [
            box(
                [*([self._step.root] if chart.name == "timeline" else []), live, about.root],
                *("wb-chart", f"wb-chart-{chart.name}"),
            )
            for live, about, chart in zip(self._figures, self._about, self._charts, strict=True)
        ]
        self._charts_box = box(charts, "wb-charts")
        return box(
            [
                widgets.HTML(f"<style>{STYLE}</style>"),
                self.presence.root,
                box([self._title, self._place, self.actions.language], "wb-head"),
                self.controls.root,
                self.actions.predict,
                self.actions.root,
                box([self._problem, self._broken, self.actions.cluster], "wb-trouble"),
                self._result,
                self._pictures,
                self._pace,
                self._stills.root,
                self._charts_box,
                self._why,
                self._table,
                self._details_fold.root,
                self._plan.root,
                self._where_fold.root,
                self._python_fold.root,
                self.keep.root,
            ],
            "wb-panel",
        )
