"""How far a rank is and what its time went to, in memory that its host can read at any moment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from workbench.cluster.shared_array import allocate, attach, descriptor_of
from workbench.spans import KINDS

_SHAPE, _DTYPE = (1 + len(KINDS),), "f8"


class Progress:
    """The step that a rank is at, and the seconds that it has spent, by kind of span.

    The rank writes and the host reads, with no message between them: it costs the rank some stores
    to memory. A reader may see a step whose times are not yet all there.
    """

    def __init__(self, cells: NDArray[np.float64]) -> None:
        self._cells = cells

    @classmethod
    def new(cls) -> Progress:
        """Return that of a rank which has not begun."""
        cells = allocate(_SHAPE, _DTYPE)
        cells[0] = -1
        return cls(cells)

    @classmethod
    def mapped(cls, descriptor: int) -> Progress:
        """Return the one that another process has given the descriptor of."""
        return cls(attach(descriptor, _SHAPE, _DTYPE, writable=True))

    @property
    def descriptor(self) -> int:
        """By which another process can map this."""
        found = descriptor_of(self._cells)
        assert found is not None  # allocated so
        return found

    @property
    def step(self) -> int | None:
        """The step, from 0; None before the first."""
        step = int(self._cells[0])
        return None if step < 0 else step

    @property
    def spent_s(self) -> dict[str, float]:
        """Seconds since the first step, by kind."""
        return dict(zip(KINDS, self._cells[1:].tolist(), strict=True))

    def reach(self, step: int) -> None:
        """Note that the rank is at ``step``."""
        self._cells[0] = step

    def spend(self, times_s: Mapping[str, float]) -> None:
        """Add the seconds of a step, by kind."""
        for place, kind in enumerate(KINDS, 1):
            self._cells[place] += times_s[kind]
