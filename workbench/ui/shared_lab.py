"""The cluster that panels start: one for all panels of a process, closed with the last of them."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from workbench.cluster.lab import current_lab
from workbench.cluster.starting import start
from workbench.errors import PlanError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from workbench.cluster.lab import Lab


class SharedLab:
    """Who uses the cluster, and the cluster once there is one."""

    def __init__(self) -> None:
        self._users: set[object] = set()
        self._lab: Lab | None = None
        self._joining = threading.Lock()
        self._lock = threading.RLock()  # held for seconds, while a cluster starts or ends

    def join(self, user: object) -> None:
        """Note that ``user`` may need the cluster, and return at once."""
        with self._joining:
            self._users.add(user)

    def leave(self, user: object) -> None:
        """Note that ``user`` needs it no more; the last one closes it."""
        with self._joining:
            self._users.discard(user)
        with self._lock:
            with self._joining:
                left = bool(self._users)  # one may have joined while we waited
            if not left:
                self.close()

    def close(self) -> None:
        """Close the cluster, if panels have started one."""
        with self._lock:
            lab, self._lab = self._lab, None
            if lab is not None:
                with suppress(RunError):
                    lab.close()

    def lab_for(self, workers: int, starting: Callable[[], None]) -> Lab:
        """Return a cluster of at least ``workers``: the one at hand, or a new one.

        A cluster that the user has opened by hand is taken as it is. ``starting`` is called before
        one is started, which takes some seconds.
        """
        with self._lock:
            own = self._lab
            if own is not None and (gone(own) or len(own.hosts) < workers):
                self.close()
                own = None
            if own is None:
                with suppress(PlanError):
                    found = current_lab()
                    if not gone(found):
                        return found
                starting()
                self._lab = own = start(workers=workers)
            return own


def gone(lab: Lab) -> bool:
    """Return whether nothing can run on a cluster any more: it is closed, or has no workers."""
    if lab.closed:
        return True
    try:
        return not lab.hosts
    except RunError:
        return True


SHARED = SharedLab()
"""That of this process."""
