"""Predict first: a guess of the speedup, locked before Run, and scored by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.ui import texts
from workbench.ui.form import Request
from workbench.ui.language import text
from workbench.ui.texts import Row


@dataclass(frozen=True)
class Guess:
    """What somebody expects of a strategy.

    Attributes
    ----------
    request:
        What was asked for when it was locked.
    speedup:
        How many times as fast as one process with one thread.
    cores:
        Ranks times threads, where the figure shows it.
    because:
        Why, in the guesser's words.
    after:
        Number of the panel's last run when it was locked: what that has measured is no secret.
    """

    request: Request
    speedup: float
    cores: int
    because: str = ""
    after: int = 0

    def measured(self, request: Request | None, rows: Sequence[Row]) -> Row | None:
        """Return the row that it was about, once its strategy is measured to the end."""
        if request is None or request.task != self.request.task:
            return None
        later = (row for row in rows if row["run"] > self.after)
        about = [row for row in later if row["strategy"] == self.request.strategy]
        return next((row for row in about if row["speedup"] is not None and row["complete"]), None)


def verdict(guess: Guess, row: Row) -> str:
    """Return the sentence that scores a guess: hit within the spread, or how far off it was."""
    low, high = (
        row[key] if row[key] is not None else row["speedup"]
        for key in ("speedup_min", "speedup_max")
    )
    values = {
        "strategy": texts.row_label(row),
        "guess": f"{guess.speedup:.2f}",
        "measured": f"{row['speedup']:.2f}",
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "off": f"{abs(guess.speedup / row['speedup'] - 1):.0%}",
    }
    if low <= guess.speedup <= high:
        return text("guess.hit", **values)
    return text("guess.high" if guess.speedup > high else "guess.low", **values)
