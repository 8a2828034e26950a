"""What a rank's program is given: its number, its peers, its arrays and a line to the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from workbench.comm.comm import Comm


class Outlet(Protocol):
    """Where a rank's messages, kept arrays and progress go, and its commands come from."""

    def send(self, kind: str, data: object) -> None:
        """Deliver a live message."""

    def keep(self, name: str, array: NDArray) -> None:
        """Store an array that outlives the rank."""

    def progress(self, step: int) -> None:
        """Note the step the rank is at."""

    def spend(self, times_s: Mapping[str, float]) -> None:
        """Note what a step's time went to."""

    def commands(self) -> list[str]:
        """Return the commands that came since the last call."""


@dataclass
class Recorder:
    """An outlet in memory, for ranks that are threads: everything can be read back."""

    messages: list[tuple[str, object]] = field(default_factory=list)
    kept: dict[str, NDArray] = field(default_factory=dict)
    step: int | None = None
    told: list[str] = field(default_factory=list)

    def send(self, kind: str, data: object) -> None:
        """Append ``(kind, data)`` to ``messages``."""
        self.messages.append((kind, data))

    def keep(self, name: str, array: NDArray) -> None:
        """Store a copy in ``kept``."""
        self.kept[name] = np.array(array)

    def progress(self, step: int) -> None:
        """Set ``step``."""
        self.step = step

    def spend(self, times_s: Mapping[str, float]) -> None:
        """Forget it: nobody watches ranks that are threads."""

    def commands(self) -> list[str]:
        """Return and forget ``told``."""
        taken, self.told = self.told, []
        return taken


@dataclass(frozen=True)
class RankContext:
    """One rank as its program sees it.

    Attributes
    ----------
    rank, size:
        This rank's number, and how many there are.
    comm:
        Collectives between the ranks.
    device:
        Where this rank computes.
    threads:
        Torch threads of this rank.
    arrays:
        Read-only views of the shares that the client put on this rank's worker, by name. They lie
        in shared memory, or are maps of files; a tensor made of one must not be written to. What
        is too large for memory is a :class:`workbench.sources.source.Rows`, which has ``take``.
    """

    rank: int
    size: int
    comm: Comm
    device: torch.device
    threads: int = 1
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    outlet: Outlet = field(default_factory=Recorder)

    def send(self, kind: str, data: object) -> None:
        """Send a message to the client's ``on_message``, live.

        The scheduler keeps the last thousand messages, so they should be small and few: a few a
        second, kilobytes each. They are for looking at. What must not be lost is returned by the
        target or kept.
        """
        self.outlet.send(kind, data)

    def keep(self, name: str, array: NDArray[Any]) -> None:
        """Leave a copy of ``array`` on this rank's worker, where it outlives the rank."""
        self.outlet.keep(name, array)

    def progress(self, step: int) -> None:
        """Note that the rank is at ``step``, for errors to tell; costs a store to memory."""
        self.outlet.progress(step)

    def spend(self, times_s: Mapping[str, float]) -> None:
        """Add the seconds of a step, by kind of span, to those that Dask's own pages show.

        Costs some stores to memory.
        """
        self.outlet.spend(times_s)

    def commands(self) -> list[str]:
        """Return what the driver has told this rank since the last call; never blocks."""
        return self.outlet.commands()
