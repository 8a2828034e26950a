"""What widgets are put together with: boxes, folds, notes; and what is no news is not sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.ui.language import text


def box(children: Sequence[Any], *classes: str) -> Any:
    """Return a column of widgets with CSS classes."""
    made = widgets.VBox(list(children))
    for name in classes:
        made.add_class(name)
    return made


def put(widget: Any, value: Any, trait: str = "value") -> None:
    """Set a trait; what it has already sends nothing."""
    if getattr(widget, trait) != value:
        setattr(widget, trait, value)


def all_of(widget: Any) -> list[Any]:
    """Return a widget and all that is in it."""
    children = getattr(widget, "children", ())
    return [widget, *(inner for child in children for inner in all_of(child))]


def problem(sentence: str, details: str = "") -> str:
    """Return what is wrong, as HTML; ``details`` are folded."""
    more = ""
    if details:
        summary = escape(text("details"))
        more = f"<details><summary>{summary}</summary><pre>{escape(details)}</pre></details>"
    return f'<div class="wb-problem" role="alert">{escape(sentence)}</div>{more}'


def hint(sentence: str) -> str:
    """Return what is worth knowing, as HTML; nothing for nothing."""
    return f'<div class="wb-hint">{escape(sentence)}</div>' if sentence else ""


def copied(label: str, content: str) -> str:
    """Return text to copy under a label, as HTML, with a button that the browser alone obeys."""
    select = (
        "const text = this.previousElementSibling, range = document.createRange();"
        "range.selectNodeContents(text);"
        "getSelection().removeAllRanges();"
        "getSelection().addRange(range);"
        "if (document.execCommand('copy')) this.textContent = this.dataset.done"
    )  # what navigator.clipboard does is allowed on addresses with https alone
    named, done = escape(label), escape(text("copy.done"))
    return (
        f'<div class="wb-label">{named}</div>'
        f'<pre tabindex="0" aria-label="{named}">{escape(content)}</pre>'
        f'<button type="button" class="jupyter-button wb-copy" data-done="{done}" '
        f'onclick="{escape(select)}">{escape(text("copy.do"))}</button>'
    )


class Fold:
    """Something that is folded away under a title, until the title is pressed.

    The browser alone does it (see the style sheet), so that the keyboard works, and no kernel that
    computes is in the way. New content leaves it as it is, open or folded.
    """

    def __init__(self, content: Any, *classes: str) -> None:
        self._title = widgets.HTML()
        self.root = box([self._title, content], "wb-fold", *classes)

    def say(self, title: str) -> None:
        """Set the title, which folds it."""
        put(self._title, f"<details><summary>{escape(title)}</summary></details>")


class Chips:
    """A row of buttons, each of which takes out what it names."""

    def __init__(self) -> None:
        self.root = widgets.HBox()
        self._shown: object = None

    def show(
        self,
        label: str,
        chips: Mapping[str, tuple[str, str, Callable[[str], None]]],
        locked: bool = False,
    ) -> None:
        """Show ``chips`` after a label, unless they are shown already.

        Parameters
        ----------
        label:
            What is said before them.
        chips:
            By name what is written on each, its tooltip, and what is called with its name when it
            is pressed.
        locked:
            Whether none can be pressed.
        """
        asked = (label, [(name, *chip[:2]) for name, chip in chips.items()], locked)
        if asked == self._shown:
            return
        self._shown = asked
        before = self.root.children
        self.root.children = (
            widgets.HTML(f'<span class="wb-hint">{escape(label)}</span>'),
            *(self._button(name, *chip, locked) for name, chip in chips.items()),
        )
        for old in before:
            old.close()

    def _button(
        self, name: str, label: str, tip: str, press: Callable[[str], None], locked: bool
    ) -> Any:
        button = widgets.Button(description=f"{label} ✕", tooltip=tip, disabled=locked)
        button.add_class("wb-chip")
        button.on_click(lambda _button: press(name))
        return button
