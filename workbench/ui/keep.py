"""What is kept of the panel: a share code of all controls, files of what was measured, old runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.records import DEFAULT_FOLDER
from workbench.ui.language import text
from workbench.ui.limits import Limits
from workbench.ui.shelf import EXPORTS
from workbench.ui.widget import Fold, box, copied, hint, put


class Keep:
    """The fold with the share code, its limits, the export and the old runs.

    Parameters
    ----------
    on_restore, on_export, on_attach:
        Called with what is typed (a code, a folder, a folder or several), on the kernel's threads;
        must return at once.
    on_limit:
        Called likewise with what a teacher hides and locks, see
        :class:`workbench.ui.limits.Limits`.
    """

    def __init__(
        self,
        on_restore: Callable[[str], None],
        on_export: Callable[[str], None],
        on_attach: Callable[..., None],
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
        self._earlier = widgets.SelectMultiple(
            options=(), rows=5, layout={"width": "560px"}, style={"description_width": "initial"}
        )
        self._compare = widgets.Button(icon="columns")
        self._earlier.add_class("wb-earlier")
        self._compare.add_class("wb-earlier-compare")
        self._compare.on_click(lambda _button: self._compare_chosen(on_attach))
        rows.append(box([self._earlier, self._compare], "wb-keep-row"))
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

        self._earlier.description = text("keep.earlier")
        self._compare.description = text("keep.compare")
        self._compare.tooltip = text("keep.compare.tip")

    def list_earlier(self, folders: Sequence[str]) -> None:
        """Offer folders of earlier runs to choose from; what is chosen stays so."""
        if tuple(self._earlier.options) != tuple(folders):
            chosen = [name for name in self._earlier.value if name in folders]
            self._earlier.options = tuple(folders)
            self._earlier.value = tuple(chosen)

    def _compare_chosen(self, on_attach: Callable[..., None]) -> None:
        if chosen := self._earlier.value:
            on_attach(*(str(Path(DEFAULT_FOLDER, name)) for name in chosen))

    def show(self, code: str, limits: Mapping[str, Sequence[str]], said: str) -> None:
        """Show the share code of what the controls say, its limits, and what the last press did."""
        put(self._code, copied(text("keep.code"), code))
        self._limits.show(limits)
        put(self._said, f'<div role="status">{hint(said)}</div>')

    def fields(self) -> dict[str, Any]:
        """Return the fields to type into, by name."""
        return {name: field for name, (field, _button, _press) in self._rows.items()}
