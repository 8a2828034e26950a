"""The panel's widgets: made once, then changed by one thread only, and only where news is.

Nothing here knows Dask or threads; a :class:`~workbench.ui.state.State` goes in, and a
:class:`~workbench.ui.form.Request` comes out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench import machine
from workbench.catalogue import CATALOGUE
from workbench.findings import findings
from workbench.plan import Plan
from workbench.strategies import STRATEGIES
from workbench.ui import figures, form, pictures, table, texts
from workbench.ui.driver import Described
from workbench.ui.form import OWN, Request
from workbench.ui.live_figure import LiveFigure
from workbench.ui.placement_page import PlacementPage
from workbench.ui.plan_view import PlanView
from workbench.ui.state import State
from workbench.ui.style import STYLE
from workbench.ui.timeline_figure import timeline_chart, timeline_columns

CONTROLS = ("workload", "strategy", "workers", "batch", "steps")


class View:
    """The widgets of one panel.

    Parameters
    ----------
    asked:
        What the controls show at first.
    own_name:
        Name of the user's own workload, or None.
    on_run, on_stop, on_workload:
        Called on the kernel's threads when a button is pressed or another workload is chosen;
        must return at once.
    """

    def __init__(
        self,
        asked: Request,
        own_name: str | None,
        on_run: Callable[[], None],
        on_stop: Callable[[], None],
        on_workload: Callable[[str], None],
    ) -> None:
        self.lock = threading.RLock()
        self._repeats = asked.repeats
        self._cores = machine.cores()
        self._described: Described | None = None
        self._shown: State | None = None
        own = [(f"{own_name} (yours)", OWN)] if own_name is not None else []
        workloads = [*own, *((f"{e.name}: {e.title}", e.name) for e in CATALOGUE.values())]
        strategies = [
            ("Serial (one process)", "serial"),
            *((f"{s.family.capitalize()} ({s.axis})", s.axis) for s in STRATEGIES.values()),
        ]
        number = widgets.IntText
        self._controls: dict[str, Any] = {
            "workload": widgets.Dropdown(
                description="Workload", options=workloads, value=asked.workload
            ),
            "strategy": widgets.Dropdown(
                description="Strategy", options=strategies, value=asked.axis
            ),
            "workers": number(description="Workers", value=asked.workers),
            "batch": number(description="Batch", value=asked.batch),
            "steps": number(description="Steps", value=asked.steps),
        }
        self._notes = {name: widgets.HTML() for name in (*CONTROLS, "run")}
        self._place = widgets.HTML()
        self._run = widgets.Button(description="Run", icon="play", button_style="primary")
        self._stop = widgets.Button(
            description="Stop", icon="stop", button_style="danger", disabled=True
        )
        self._progress = widgets.FloatProgress(min=0.0, max=1.0)
        self._message = widgets.HTML()
        self._result = widgets.HTML()
        self._python = widgets.HTML()
        self._table = widgets.HTML()
        self._pictures = widgets.HTML()
        self._plan = PlanView()
        self._where = PlacementPage()
        self._charts = (
            figures.speedup_chart(),
            figures.loss_chart(),
            figures.share_chart(),
            timeline_chart(),
        )
        self._figures = [LiveFigure(chart.figure, self.lock) for chart in self._charts]
        self.root = self._layout()
        self._run.on_click(lambda _button: on_run())
        self._stop.on_click(lambda _button: on_stop())
        self._controls["workload"].observe(lambda change: on_workload(change["new"]), "value")

    def request(self) -> Request:
        """Return what the controls ask for now."""
        controls = self._controls
        return Request(
            workload=controls["workload"].value,
            axis=controls["strategy"].value,
            workers=controls["workers"].value,
            batch=controls["batch"].value,
            steps=controls["steps"].value,
            repeats=self._repeats,
        )

    def suggest(self, described: Described, keep: set[str]) -> None:
        """Tell about the chosen workload, and set batch and steps to what suits it.

        Controls named in ``keep`` stay as they are.
        """
        if described is self._described:
            return
        self._described = described
        for name, value in (("batch", described.batch), ("steps", described.steps)):
            if name not in keep:
                self._controls[name].value = value

    def show(self, state: State) -> None:
        """Bring every widget up to date; what has not changed sends nothing."""
        with self.lock:
            asked = self.request()
            self._show_notes(asked, state)
            _set(self._python, _python(asked))
            if state is self._shown:
                return
            _set(self._place, f"<span>{escape(state.place)}</span>")
            _set(self._message, f'<span class="wb-{state.status}">{escape(state.message)}</span>')
            _set(self._progress, state.done)
            _set(self._progress, _BAR.get(state.status, ""), "bar_style")
            _set(self._run, state.busy, "disabled")
            _set(self._stop, not state.busy or state.status == "stopping", "disabled")
            _set(self._result, _result(state))
            _set(self._table, _runs(state))
            _set(self._pictures, pictures.strip(state.preview))
            self._draw(state)
            self._shown = state

    def show_plan(self, planned: tuple[Request, Plan | str] | None) -> None:
        """Show the plan of what the controls say, or why there is none."""
        with self.lock:
            self._plan.show(planned)
            if planned is not None and isinstance(planned[1], Plan):
                self._where.show(planned[1])

    def break_down(self, error: Exception) -> None:
        """Say that the panel cannot go on."""
        with self.lock:
            sentence = (
                f"The panel cannot draw any more ({type(error).__name__}: {error}). What runs goes "
                "on; open another panel with wb.app()."
            )
            _set(
                self._notes["run"], f'<div class="wb-problem" role="alert">{escape(sentence)}</div>'
            )

    def redraw(self) -> None:
        """Send every figure whole, for browsers that open the notebook from now on."""
        with self.lock:
            for live, chart in zip(self._figures, self._charts, strict=True):
                live.update_from_model(chart.figure)

    def close(self) -> None:
        """Take the widgets off the page."""
        with self.lock:
            for widget in _all_widgets(self.root):
                widget.close()

    def _draw(self, state: State) -> None:
        columns = (
            figures.speedup_columns(state.points),
            figures.loss_columns(state.curves),
            figures.share_columns(state.bars),
            timeline_columns(state.timeline),
        )
        for chart, data in zip(self._charts, columns, strict=True):
            chart.draw(data)
        ended = not state.busy and self._shown is not None and self._shown.busy
        if ended:
            self.redraw()

    def _show_notes(self, asked: Request, state: State) -> None:
        """Show beside each control what is wrong with it, or else what is worth knowing."""
        notes = form.hints(asked, self._cores)
        if self._described is not None:
            notes["workload"] = self._described.text
        for name, place in self._notes.items():
            problem = state.problems.get(name)
            corrected = name != "run" and asked != state.request
            if problem is not None and not corrected:
                more = ""
                if state.details:
                    more = (
                        f"<details><summary>Details</summary><pre>{escape(state.details)}</pre>"
                        "</details>"
                    )
                _set(place, f'<div class="wb-problem" role="alert">{escape(problem)}</div>{more}')
            else:
                note = notes.get(name, "")
                _set(place, f'<div class="wb-hint">{escape(note)}</div>' if note else "")

    def _layout(self) -> widgets.VBox:
        fields = [
            _box([self._controls[name], self._notes[name]], "wb-field", f"wb-{name}")
            for name in CONTROLS
        ]
        charts = [
            _box([live], "wb-chart", f"wb-chart-{chart.name}")
            for live, chart in zip(self._figures, self._charts, strict=True)
        ]
        self._run.add_class("wb-run")
        self._stop.add_class("wb-stop")
        self._message.add_class("wb-message")
        title = widgets.HTML('<h2 class="wb-title">Parallel workbench</h2>')
        root = _box(
            [
                widgets.HTML(f"<style>{STYLE}</style>"),
                _box([title, self._place], "wb-head"),
                _box(fields, "wb-fields"),
                _box([self._run, self._stop, self._progress, self._message], "wb-buttons"),
                self._notes["run"],
                self._result,
                self._pictures,
                _box(charts, "wb-charts"),
                self._plan.root,
                self._where.folded(),
                self._table,
                self._python,
            ],
            "wb-panel",
        )
        assert isinstance(root, widgets.VBox)
        return root


_BAR = {"done": "success", "failed": "danger", "stopped": "warning"}
"""How the progress bar is coloured; the message beside it says the same in words."""


def _box(children: list[Any], *classes: str) -> widgets.VBox:
    box = widgets.VBox(children)
    for name in classes:
        box.add_class(name)
    return box


def _set(widget: Any, value: Any, trait: str = "value") -> None:
    if getattr(widget, trait) != value:
        setattr(widget, trait, value)


def _result(state: State) -> str:
    """Return the badge, and one sentence per strategy."""
    if not state.bars:
        return ""
    kind, sentence = texts.badge(state.bars)
    lines = "".join(f"<p>{escape(line)}</p>" for line in findings(state.bars, machine.cores()))
    if kind == "none" and state.request is not None and state.request.axis != "serial":
        return ""  # the strategy's turn has not come
    mark = {"yes": "✓ ", "no": "✗ ", "unknown": "… "}.get(kind, "")
    return f'<div class="wb-badge wb-badge-{kind}">{mark}{escape(sentence)}</div>{lines}'


def _runs(state: State) -> str:
    return f"<h3>Runs, all measured</h3>{table.rows_table(state.rows)}" if state.rows else ""


def _python(asked: Request) -> str:
    return (
        "<details class='wb-python'><summary>The same in Python</summary>"
        f"<pre>{escape(asked.python())}</pre></details>"
    )


def _all_widgets(widget: Any) -> list[Any]:
    children = getattr(widget, "children", ())
    return [widget, *(inner for child in children for inner in _all_widgets(child))]
