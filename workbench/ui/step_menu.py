"""Two menus above the timeline: of which strategy, and which of its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.timeline import WHICH
from workbench.ui.language import text, translate
from workbench.ui.widget import put


class StepMenu:
    """Which step the timeline shows.

    Parameters
    ----------
    on_choose:
        Called on the kernel's threads with the label of what was recorded, "" for the newest, and
        one of :data:`workbench.timeline.WHICH`; must return at once.
    """

    def __init__(self, on_choose: Callable[[str, str], None]) -> None:
        self.label = widgets.Dropdown(options=[])
        self.which = widgets.Dropdown(options=[(name, name) for name in WHICH])
        self.root = widgets.HBox([self.label, self.which])
        self.root.add_class("wb-step")
        self._on_choose, self._filling = on_choose, False
        for field in (self.label, self.which):
            field.observe(lambda _change: self._choose(), "value")
        self._recorded: tuple[str, ...] = ()
        self.show((), "")

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        self.label.description = text("timeline.strategy")
        self.which.description = text("timeline.step")
        which = self.which.value
        self._fill(self.which, [(text(f"timeline.step.{name}"), name) for name in WHICH], which)
        self._fill(self.label, self._named(), self.label.value)

    def show(self, recorded: Sequence[str], shown: str) -> None:
        """Offer what was recorded, and mark what is shown."""
        if tuple(recorded) != self._recorded:
            self._recorded = tuple(recorded)
            self._fill(self.label, self._named(), shown)
        put(self.root.layout, "" if recorded else "none", "display")

    def _named(self) -> list[tuple[str, str]]:
        return [(translate(label), label) for label in self._recorded]

    def _fill(self, field: widgets.Dropdown, options: list[tuple[str, str]], value: object) -> None:
        """Change what is offered, which is no choice of anybody's."""
        self._filling = True
        try:
            if tuple(options) != tuple(field.options):
                field.options = options
            if value in [each for _, each in options]:
                put(field, value)
        finally:
            self._filling = False

    def _choose(self) -> None:
        if not self._filling and self.label.value is not None:
            newest = self.label.value == self._recorded[-1]  # which another one may be soon
            self._on_choose("" if newest else self.label.value, self.which.value)
