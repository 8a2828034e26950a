"""Progress as lines of text, where no page shows the panel."""

from __future__ import annotations

import sys
import time

from workbench.ui.state import State

PRINT_EVERY_S = 2.0


class Lines:
    """Prints states: now and then while something goes on, and when it ends."""

    def __init__(self) -> None:
        self._when, self._before = 0.0, ""

    @property
    def due(self) -> bool:
        """Whether it is time for a line of something that goes on."""
        return time.monotonic() - self._when >= PRINT_EVERY_S

    def say(self, state: State) -> None:
        """Print a state, unless nothing has happened or it is too soon."""
        if state.text != self._before and (not state.busy or self.due):
            self._when, self._before = time.monotonic(), state.text
            print(state.text, file=sys.stdout, flush=True)
