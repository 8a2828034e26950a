"""What the scheduler does for a lab: tell it of lost workers, and clean up after a lost client."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from workbench.cluster.rank_host import TOPIC, plugin_name


class SchedulerWatch(SchedulerPlugin):
    """Tells the lab at once when a worker is gone, and ends the lab's ranks when its client is.

    ``client_id`` is Dask's name for that client; None if there is nothing to clean up after it.
    """

    def __init__(self, lab_id: str, client_id: str | None) -> None:
        self.lab_id = lab_id
        self.client_id = client_id
        self.name = plugin_name(lab_id)

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Tell the lab that ``worker`` is gone."""
        event = {"lab": self.lab_id, "run": "", "rank": -1, "kind": "worker gone", "data": worker}
        scheduler.log_event(TOPIC, event)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Take the lab's rank hosts away when its client has gone without closing the lab."""
        if client == self.client_id:
            self._cleaning = asyncio.ensure_future(self._clean(scheduler))

    async def _clean(self, scheduler: Scheduler) -> None:
        with suppress(ValueError, OSError):
            await scheduler.unregister_worker_plugin(comm=None, name=plugin_name(self.lab_id))
        if self.name in scheduler.plugins:
            scheduler.remove_plugin(self.name)
