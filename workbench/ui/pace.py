"""How often the panel draws: often, unless that would slow what it shows.

A browser needs a fifth of a core for figures that move four times a second. Where all cores of the
machine are at work it takes that from a rank, and all others wait for that rank: measured so, two
ranks on two cores seemed to gain 1.2 where they gain 1.7. There, what is timed is drawn between two
runs, and now and then; and what is trained, now and then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.ui.state import State


@dataclass(frozen=True)
class Pace:
    """The least time from one look to the next, in seconds, by what is renewed.

    Attributes
    ----------
    said_s:
        The message and the progress.
    moving_s:
        What moves: speedup and loss, and the picture that a model makes.
    read_s:
        What people read: tables, and the figures of one step. A message that Jupyter drops breaks
        a figure, so they are few.
    """

    said_s: float
    moving_s: float
    read_s: float


FREE = Pace(said_s=0.0, moving_s=0.0, read_s=1.0)
TRAINED = Pace(said_s=1.0, moving_s=2.0, read_s=4.0)
TIMED = Pace(said_s=1.0, moving_s=5.0, read_s=5.0)


def pace_of(state: State) -> Pace:
    """Return how often a state is drawn while it changes."""
    if not state.crowded or rests(state):
        return FREE
    return TRAINED if state.kind == "train" else TIMED


def rests(state: State) -> bool:
    """Return whether nothing new comes until somebody does something."""
    return not state.busy or state.status == "paused"


@dataclass(frozen=True)
class Due:
    """What is renewed now."""

    said: bool
    moving: bool
    read: bool


class Clock:
    """Says what of a state is to be renewed now; each part keeps to its own time."""

    def __init__(self) -> None:
        self._last: State | None = None
        self._at_s = {"said": 0.0, "moving": 0.0, "read": 0.0}

    def look(self, state: State, again: bool = False) -> Due:
        """Return what is due; all ``again``, and when something begins, shows first, or ends."""
        now_s, pace, last = time.monotonic(), pace_of(state), self._last
        self._last = state
        turned = again or last is None or rests(state) or _moment(state) != _moment(last)

        def due(name: str, period_s: float) -> bool:
            if not turned and now_s < self._at_s[name] + period_s:
                return False
            self._at_s[name] = now_s
            return True

        return Due(due("said", pace.said_s), due("moving", pace.moving_s), due("read", pace.read_s))


def _moment(state: State) -> tuple[object, ...]:
    return state.job, state.status, state.turn, len(state.curves), len(state.points)
