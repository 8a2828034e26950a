"""What a rank leaves on its worker every so many steps, to be written while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from time import monotonic, sleep

import numpy as np

from workbench.cluster.context import RankContext
from workbench.pacing import LOOK_EVERY_S, Pace

WRITE_LIMIT_S = 60.0
SLOWEST_BYTES_PER_S = 2e6
"""Of a disk that others use too; after this the training goes on without the checkpoint."""

Kept = Mapping[str, tuple[tuple[int, ...], str]]
"""Shapes and dtypes by name."""


def mark(step: int) -> str:
    """Return what stands before the names of arrays that are kept after ``step`` steps."""
    return f"{step}@"


class Snapshots:
    """Keeps a copy of a rank's state after every ``every`` steps; never if that is 0.

    The rank goes on as soon as the copy is made. It waits only where the one before has not been
    written yet, so there are never two of them.
    """

    def __init__(self, context: RankContext, pace: Pace, every: int) -> None:
        self.context, self.pace, self.every = context, pace, every
        self._outstanding, self._limit_s = 0, WRITE_LIMIT_S

    def due(self, step: int) -> bool:
        """Return whether one is to be made when ``step`` steps have been made."""
        return self.every > 0 and step % self.every == 0

    def make(self, step: int, keep: Callable[[str], Kept]) -> None:
        """Have ``keep``, which is given what to put before names, copy all; tell the client."""
        if not self._written():
            return
        kept = dict(keep(mark(step)))
        self._outstanding = step
        size_bytes = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in kept.values())
        self._limit_s = WRITE_LIMIT_S + size_bytes / SLOWEST_BYTES_PER_S
        self.context.send("snapshot", {"step": step, "kept": kept})

    def _written(self) -> bool:
        """Wait until the client has written the last one; False if it does not, or all is to end.

        A message may get lost: after a while the training goes on.
        """
        ends_s = monotonic() + self._limit_s
        while self.pace.written < self._outstanding:
            self.pace.listen()
            if self.pace.stop_asked or monotonic() > ends_s:
                return False
            sleep(LOOK_EVERY_S)
        return True
