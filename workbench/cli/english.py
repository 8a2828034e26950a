"""Numbers in words for those lines of the terminal that are English in every language."""

from __future__ import annotations

from workbench.ui import texts
from workbench.ui.language import speaking


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``count(2, "thread") == "2 threads"``."""
    with speaking("en"):
        return texts.count(number, noun)
