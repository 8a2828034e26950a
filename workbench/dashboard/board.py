"""What is shown: news from the client that runs something, kept in the scheduler's process."""

from __future__ import annotations

import logging
import pickle
from typing import Any
from weakref import WeakSet

from distributed import Scheduler, SchedulerPlugin
from distributed.diagnostics.task_stream import TaskStreamPlugin

from workbench.cluster.feed import News
from workbench.cluster.pages import PUBLISH
from workbench.cluster.rank_meter import SEGMENTS

MOST_ROWS = 4000
"""Rows of one series that are kept; of a longer one every second is forgotten."""

MOST_SERIES = 200

logger = logging.getLogger(__name__)


class Board(SchedulerPlugin):
    """Facts and series of the newest show, see :mod:`workbench.telling`.

    Attributes
    ----------
    version:
        Rises with every piece of news, so that pages know whether there is anything to draw.
    pages:
        Those that are open.
    """

    name = "workbench-board"

    def __init__(self) -> None:
        self.version = 0
        self.facts: dict[str, Any] = {}
        self.series: dict[str, list[Any]] = {}
        self.pages: WeakSet[Any] = WeakSet()
        self._scheduler: Scheduler | None = None

    def attach(self, scheduler: Scheduler) -> None:
        """Take news for the pages of ``scheduler`` from now on."""
        self._scheduler = scheduler
        scheduler.add_plugin(self)
        scheduler.handlers[PUBLISH] = self.publish

    def publish(self, news: bytes) -> None:
        """Take a pickled :class:`workbench.cluster.feed.News`, from a client of the cluster."""
        self.take(pickle.loads(news))

    def take(self, news: News) -> None:
        """Take news."""
        if news.new_show:
            self.facts, self.series = {}, {}
        self.facts.update(news.facts)
        for name, rows in news.rows.items():
            if name in self.series or len(self.series) < MOST_SERIES:
                kept = self.series.setdefault(name, [])
                kept += rows
                while len(kept) > MOST_ROWS:
                    del kept[1::2]
        self.version += 1

    def log_event(self, topic: str, msg: Any) -> None:
        """Draw what a rank did for a second into Dask's task stream, if anybody looks at that."""
        if topic != SEGMENTS or self._scheduler is None:
            return
        stream = self._scheduler.plugins.get(TaskStreamPlugin.name)
        if not isinstance(stream, TaskStreamPlugin):
            return
        try:
            _draw_segment(stream, msg)
        except Exception:  # an event that anybody may have sent; Dask's own work goes on
            logger.warning("A segment of a run cannot be drawn: %r", msg, exc_info=True)


def _draw_segment(stream: TaskStreamPlugin, segment: dict[str, Any]) -> None:
    """Add a bar that is no task: of the strategy's name, in a row of the rank's own."""
    stream.transition(
        # Dask calls a bar by what stands before the first number of its key.
        f"{segment['what']}-{segment['step']}-{segment['run']}",
        "processing",
        "memory",
        worker=segment["worker"],
        thread=f"rank {segment['rank']}",
        startstops=[{"action": "compute", "start": segment["start_s"], "stop": segment["stop_s"]}],
        status="OK",
        type=None,
        typename="",
        nbytes=0,
    )
