"""The row in which a teacher hides and locks controls; the share code carries what is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.controls import NAMES
from workbench.ui.language import known, text
from workbench.ui.widget import Chips, box, put

KINDS = {"hide": "hidden", "lock": "locked"}
"""What the buttons do to a control, and what it is then."""


class Limits:
    """The controls by name, buttons that hide or lock one or free all, and what is limited now.

    Parameters
    ----------
    on_change:
        Called on the kernel's threads with the names that are to be ``"hidden"`` and
        ``"locked"``; must return at once.
    """

    def __init__(self, on_change: Callable[[Mapping[str, Sequence[str]]], None]) -> None:
        self._on_change = on_change
        self._limits: Mapping[str, Sequence[str]] = {}
        self._control = widgets.Dropdown(options=NAMES)
        self._buttons = {
            "hide": widgets.Button(icon="eye-slash"),
            "lock": widgets.Button(icon="lock"),
            "free": widgets.Button(icon="unlock"),
        }
        self._chips = Chips()
        for name, button in self._buttons.items():
            button.add_class(f"wb-{name}")
            button.on_click(lambda _button, name=name: self._press(name))
        row = box([self._control, *self._buttons.values()], "wb-keep-row")
        self._chips.root.add_class("wb-chips")
        self.root = box([row, self._chips.root], "wb-limits")

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        chosen = self._control.value
        self._control.description = text("limit.control")
        self._control.options = [(_label(name), name) for name in NAMES]
        self._control.value = chosen
        for name, button in self._buttons.items():
            button.description = text(f"limit.{name}")
            button.tooltip = text(f"limit.{name}.tip")

    def show(self, limits: Mapping[str, Sequence[str]]) -> None:
        """Show which controls are ``"hidden"`` and ``"locked"``, each as a button that frees it."""
        self._limits = limits
        chips: dict[str, tuple[str, str, Callable[[str], None]]] = {}
        for kind in KINDS.values():
            for name in limits.get(kind, ()):
                said = text(f"limit.{kind}", name=_label(name))
                chips[name] = (said, text("limit.one.tip", name=_label(name)), self._free)
        put(self._buttons["free"], not chips, "disabled")
        self._chips.show(text("limit.some" if chips else "limit.none"), chips)

    def _press(self, name: str) -> None:
        if name == "free":
            self._on_change({})
            return
        control = self._control.value
        left = self._without(control)
        kind = KINDS[name]
        self._on_change({**left, kind: [*left[kind], control]})

    def _free(self, control: str) -> None:
        self._on_change(self._without(control))

    def _without(self, control: str) -> dict[str, list[str]]:
        return {
            kind: [name for name in self._limits.get(kind, ()) if name != control]
            for kind in KINDS.values()
        }


def _label(name: str) -> str:
    for key in (f"limit.name.{name}", f"control.{name}", f"option.{name}"):
        if known(key):
            return text(key)
    return name.replace("_", " ")
