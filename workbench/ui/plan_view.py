"""The panel's view of the plan, before anything runs: one layer at a time."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.plan import Plan
from workbench.ui.about import About
from workbench.ui.cut_table import cut_columns
from workbench.ui.form import Request
from workbench.ui.language import current, speaking, text, translate
from workbench.ui.layer_picture import first_layer, picture
from workbench.ui.schedule_picture import schedule_picture
from workbench.ui.traffic import traffic
from workbench.ui.widget import Fold, box, hint, put


class PlanView:
    """A menu of the layers, the picture of the chosen one with its data, and the schedule."""

    def __init__(self) -> None:
        self._layer = widgets.Dropdown(options=[], layout={"display": "none"})
        self._picture = widgets.HTML()
        self._plan: Plan | None = None
        self._shown: object = None
        self._language = current()
        self._about = About("cut")
        self._schedule = widgets.HTML()
        parts = [self._layer, self._picture, self._about.root, self._schedule]
        self._fold = Fold(box(parts), "wb-plan")
        self._tables = widgets.HTML()
        self._tables_fold = Fold(self._tables, "wb-traffic")
        self.root = box([self._fold.root, self._tables_fold.root])
        self._layer.observe(lambda _change: self._draw(), "value")

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        self._language = current()
        self._fold.say(text("plan.title"))
        self._tables_fold.say(text("traffic.title"))
        self._layer.description = text("plan.layer")
        self._about.speak()
        self._shown = None

    def show(self, planned: tuple[Request, Plan | str] | None) -> None:
        """Show a plan, or the sentence that says why there is none."""
        if planned is None or planned is self._shown:
            return
        self._shown = planned
        found = planned[1]
        self._plan = found if isinstance(found, Plan) else None
        put(self._tables, hint(text("traffic.none")) if self._plan is None else traffic(self._plan))
        if self._plan is None or self._plan.ranks == 1:
            self._layer.layout.display = "none"
            said = text("plan.serial") if self._plan is not None else translate(str(found))
            self._picture.value = escape(said)
            self._about.show(cut_columns(None))
            put(self._schedule, "")
            return
        names = [planned.layer.name for planned in self._plan.layers if planned.layer.arguments]
        first = first_layer(self._plan)
        before: Any = self._layer.value
        self._layer.options = list(dict.fromkeys(names))
        self._layer.value = before if before in names else first
        self._layer.layout.display = ""
        put(self._schedule, schedule_picture(self._plan))
        self._draw()

    def _draw(self) -> None:
        # Also on a kernel's thread, which speaks whatever it does.
        if self._plan is not None and self._layer.value:
            with speaking(self._language):
                self._picture.value = picture(self._plan, self._layer.value).svg
                self._about.show(cut_columns(self._plan, self._layer.value))
