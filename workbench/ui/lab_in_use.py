"""The cluster that a panel uses: the one it was given, or that of all panels of the process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from workbench.ui import language
from workbench.ui.blame import RefusedError
from workbench.ui.placement_page import workers_of_lab
from workbench.ui.shared_lab import SHARED, gone

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab


class LabInUse:
    """One panel's cluster; methods that ask it are for the driver's thread.

    Parameters
    ----------
    given:
        The cluster to use. Without one it is the one opened last; if there is none, one is started
        that all panels share.

    Attributes
    ----------
    lab:
        The cluster, once there is one.
    opening:
        Workers of a cluster that is being started with nothing to run on it yet; else 0.
    workers:
        Memory of the workers in GiB by their names, as of the last look.
    """

    def __init__(self, given: Lab | None) -> None:
        self.lab = self._given = given
        self.opening = 0
        self.workers: Mapping[str, float] = {}
        self._lost = False
        self._page = ""
        self._told_by: Lab | None = None

    @property
    def gone(self) -> bool:
        """Whether it is closed, or was found without workers; asks nobody."""
        return self._lost or (self.lab is not None and self.lab.closed)

    @property
    def dashboard(self) -> str:
        """Address of the page of all runs on it; "" where none is known; asks nobody."""
        lab = self.lab
        return self._page if lab is not None and not lab.closed and lab.feed.on else ""

    def open(self, workers: int, starting: Callable[[], None] = lambda: None) -> Lab:
        """Return the cluster; start one where there is none, or ours is too small.

        Raises
        ------
        RefusedError
            If the given one is gone.
        """
        if self._given is not None:
            if gone(self._given):
                self._lost = True
                raise RefusedError("workers", partial(language.text, "cluster.gone"))
            return self._given
        self.lab = SHARED.lab_for(workers, starting)
        self.look()
        return self.lab

    def forget(self) -> None:
        """Let go of one that is gone, so that the next is another."""
        self._given = self.lab = None
        self._lost = False

    def look(self) -> None:
        """Ask for its page, and for its workers or those of the lab that is open."""
        lab = self.lab
        if lab is not self._told_by and lab is not None and not lab.closed and lab.feed.on:
            self._told_by = lab  # it stays: it is not asked again, which has no limit of time
            self._page = f"{lab.dashboard_link.removesuffix('/status')}/workbench"
        self.workers = workers_of_lab()
