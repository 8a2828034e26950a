"""Whether a page shows the panel: its widgets answer, and its figures say that they are drawn.

A kernel is not told who is on the other end. What runs notebooks without showing them (nbclient,
nbconvert) takes widgets and never answers; other front ends show the widgets but cannot load
BokehJS, or show neither. So the panel rings until its page answers.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

NOBODY_S = 3.0
"""Seconds after which whoever does not even name the notebook's cells is taken for nobody."""

PAGE_S = 10.0
"""Seconds that a page gets, which may be busy; only those in which the kernel could hear it."""

FIGURES_S = 12.0
"""Seconds that figures get to be drawn for the first time, once the widgets have answered."""

ASK_S = 0.25
"""Seconds in which a kernel that is free says so, and between two questions whether it is."""

RING_S = (0.5, 5.0)
"""Seconds between two rings: at first, and when nobody has come for ``PAGE_S``."""


class Presence:
    """Rings a bell in the page until somebody answers; all but the callbacks is one thread's.

    The bell is a Play widget out of sight, the one standard widget whose view does something when
    the kernel asks for it: told to play, it counts from 0 to 1.

    Attributes
    ----------
    root:
        The bell, which must be in the page with the panel.
    answered:
        Whether a page has shown the widgets.
    drawn:
        Whether a page has drawn the figures.
    """

    def __init__(self) -> None:
        self.root = widgets.Play(min=0, max=1, interval=50)
        self.root.layout.display = "none"
        self.root.observe(self._hear, "value")
        self.answered = self.drawn = False
        self._answered_s = 0.0
        self._displayed_s: float | None = None
        self._named = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung_s = 0.0
        self._listened_s, self._asked_s = 0.0, 0.0
        self._listening = False

    def display(self, named: bool) -> None:
        """Begin to ring; called in a kernel by the cell that shows the panel.

        Parameters
        ----------
        named:
            Whether the request names the cell, as front ends for people do.
        """
        self._named, self._displayed_s = named, time.monotonic()
        with suppress(RuntimeError):  # a kernel of another kind: then time counts as it passes
            self._loop = asyncio.get_running_loop()

    def draw(self) -> None:
        """Take note that a page has drawn a figure; called on the kernel's threads."""
        self.drawn = True
        self._answer()

    @property
    def missing(self) -> str:
        """What is not shown: ``"page"`` (all of it), ``"figures"``, or "" while nothing is."""
        now = time.monotonic()
        if self.drawn:
            return ""
        if self.answered:
            return "figures" if now - self._answered_s > FIGURES_S else ""
        if self._displayed_s is None:
            return "page"
        if not self._named:
            return "page" if now - self._displayed_s > NOBODY_S else ""
        heard_s = now - self._displayed_s if self._loop is None else self._listened_s
        return "page" if heard_s > PAGE_S else ""

    @property
    def nobody(self) -> bool:
        """Whether what ends now is to be told in text, at once: no page, or none that would."""
        return self.missing == "page" or not (self.answered or self._named)

    def ring(self) -> None:
        """Ring if it is time to; called by the panel's thread again and again."""
        if self.answered or self._displayed_s is None:
            return
        self._listen()
        now = time.monotonic()
        early, late = RING_S
        if now - self._rung_s < (early if now - self._displayed_s < PAGE_S else late):
            return
        self._rung_s = now
        # The view only minds a change.
        self.root.playing = False
        self.root.playing = True

    def _hear(self, change: dict[str, Any]) -> None:
        if change["new"] == 1:
            self._answer()

    def _answer(self) -> None:
        if not self.answered:
            self._answered_s = time.monotonic()
            self.answered = True

    def _listen(self) -> None:
        """Count how long the kernel's main thread could have heard an answer.

        Without subshells a cell that runs is in the way of every answer; that is no silence.
        """
        now = time.monotonic()
        if self._loop is None or self._listening or now < self._asked_s + ASK_S:
            return
        self._listening, self._asked_s = True, now
        try:
            self._loop.call_soon_threadsafe(self._listened)
        except RuntimeError:  # the kernel ends
            self._loop = None

    def _listened(self) -> None:
        if time.monotonic() < self._asked_s + ASK_S:
            self._listened_s += ASK_S
        self._listening = False
