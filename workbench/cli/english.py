"""Numbers in words for the terminal, which speaks English; reports speak the user's language."""

from __future__ import annotations

from workbench.ui import texts
from workbench.ui.language import speaking


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``count(2, "thread") == "2 threads"``."""
    with speaking("en"):
        return texts.count(number, noun)


def time_left(seconds: float) -> str:
    """Return a rough time that stays: ``"about 12 s left"``."""
    with speaking("en"):
        return texts.time_left(seconds)
