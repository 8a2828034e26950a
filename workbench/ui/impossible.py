"""What cannot be chosen: found out beforehand at little cost, refused at once, told in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from html import escape

from workbench.ui import form
from workbench.ui.form import Request
from workbench.ui.language import text, translate
from workbench.ui.look import CROSS

BUDGET_S = 0.1
"""How long strategies are tried in one go while nothing runs; at least one is."""

BUSY_SHARE = 0.02
"""The share of one core that trying may take from what runs."""

Refused = Mapping[tuple[Request, str], str]
"""Why a strategy cannot be, "" if it can: by the request's basis, and strategy."""


class Trying:
    """Tries one strategy after the other, for as long as nothing else is slowed by it.

    Parameters
    ----------
    try_one:
        Tries one more, and returns whether there was one.
    """

    def __init__(self, try_one: Callable[[], bool]) -> None:
        self._try_one = try_one
        self._next_s = 0.0

    def go(self, busy: bool) -> None:
        """Try some strategies; one now and then while something runs (``busy``)."""
        begun_s = time.monotonic()
        if busy and begun_s < self._next_s:
            return
        while self._try_one():
            took_s = time.monotonic() - begun_s
            if busy or took_s > BUDGET_S:
                self._next_s = begun_s + took_s / BUSY_SHARE
                return


@dataclass(frozen=True)
class TakenBack:
    """A degree that somebody chose and that was not taken, while the controls stay as they are."""

    axis: str
    degree: str
    why: str
    left: Request

    @property
    def sentence(self) -> str:
        """What was not taken, and why."""
        return text("axes.taken_back", choice=f"{self.axis}={self.degree}", why=translate(self.why))


def taken_back(before: Request, now: Request, refused: Refused) -> TakenBack | None:
    """Return the degree that is to be taken back of what has changed, if it is known not to be.

    That is one whose mark was seen: of the request before, with one axis changed.
    """
    if replace(before, axes=()) != replace(now, axes=()):
        return None
    was, became = dict(before.axes), dict(now.axes)
    changed = [(axis, degree) for axis, degree in became.items() if was.get(axis) != degree]
    if len(changed) != 1 or any(axis not in became for axis in was):
        return None
    why = marks(before, refused).get(changed[0][0], {}).get(changed[0][1], "")
    return TakenBack(*changed[0], why, before) if why else None


def marks(asked: Request, refused: Refused) -> dict[str, dict[str, str]]:
    """Return by axis the degrees that cannot be chosen now, each with the reason in English."""
    found: dict[str, dict[str, str]] = {}
    for axis, degree, strategy in form.tries(asked):
        if why := refused.get((asked.basis, strategy)):
            found.setdefault(axis, {})[degree] = why
    return found


def reasons(marked: Mapping[str, Mapping[str, str]]) -> str:
    """Return HTML with the reason of each axis's least degree, and the others folded away."""
    lines, others = "", ""
    for axis, found in marked.items():
        first, *rest = found.items()
        lines += _line(f"{CROSS} {axis} = {', '.join(found)}", first[1])
        others += "".join(_line(f"{axis}={degree}", why) for degree, why in rest)
    if others:
        others = f"<details><summary>{escape(text('axes.others'))}</summary><ul>{others}</ul>"
        others += "</details>"
    return f'<ul class="wb-impossible">{lines}</ul>{others}' if lines else ""


def _line(what: str, why: str) -> str:
    return f"<li><b>{escape(what)}</b>: {escape(translate(why))}</li>"
