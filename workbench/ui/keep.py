"""What is kept of the panel: a share code of all controls, files of what was measured, old runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.ui.language import text
from workbench.ui.limits import Limits
from workbench.ui.shelf import EXPORTS
from workbench.ui.widget import Fold, box, hint, put


class Keep:
    """The fold with the share code, its limits, the export and the old runs.

    Parameters
    ----------
    on_restore, on_export, on_attach:
        Called with what is typed (a code, a folder, a folder), on the kernel's threads; must
        return at once.
    on_limit:
        Called likewise with what a teacher hides and locks, see
        :class:`workbench.ui.limits.Limits`.
    """

    def __init__(
        self,
        on_restore: Callable[[str], None],
        on_export: Callable[[str], None],
        on_attach: Callable[[str], None],
        on_limit: Callable[[Mapping[str, Sequence[str]]], None],
    ) -> None:
        self._limits = Limits(on_limit)
        self._code, self._said = widgets.HTML(), widgets.HTML()
        self._rows = {
            "restore": (widgets.Text(), widgets.Button(icon="refresh"), on_restore),
            "export": (widgets.Text(value=EXPORTS), widgets.Button(icon="download"), on_export),
            "attach": (widgets.Text(), widgets.Button(icon="folder-open"), on_attach),
        }
        rows = []
        for name, (field, button, press) in self._rows.items():
            button.on_click(lambda _button, field=field, press=press: press(field.value.strip()))
            button.add_class(f"wb-{name}")
            field.add_class(f"wb-{name}-text")
            rows.append(box([field, button], "wb-keep-row"))
        self._fold = Fold(box([self._code, self._limits.root, *rows, self._said]), "wb-keep")
        self.root = self._fold.root

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        self._fold.say(text("keep.title"))
        self._limits.speak()
        for name, (field, button, _press) in self._rows.items():
            button.description = text(f"keep.{name}")
            button.tooltip = text(f"keep.{name}.tip")
            field.placeholder = text(f"keep.{name}.empty")

    def show(self, code: str, limits: Mapping[str, Sequence[str]], said: str) -> None:
        """Show the share code of what the controls say, its limits, and what the last press did."""
        label = escape(text("keep.code"))
        shown = f'<pre aria-label="{label}">{escape(code)}</pre>'
        put(self._code, f'<div class="wb-label">{label}</div>{shown}')
        self._limits.show(limits)
        put(self._said, f'<div role="status">{hint(said)}</div>')

    def fields(self) -> dict[str, Any]:
        """Return the fields to type into, by name."""
        return {name: field for name, (field, _button, _press) in self._rows.items()}
