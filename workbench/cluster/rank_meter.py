"""What the ranks on a worker use, told to Dask, whose own pages see only the worker's process.

- The table of workers has two columns more: the CPU and the memory of the worker's ranks.
- The task stream has a bar for every second or so of each rank; the scheduler's plugin
  (:mod:`workbench.dashboard.board`) draws it when it hears of it.
- *Fine performance metrics* have the seconds that ranks compute, communicate, wait...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING

import psutil
from distributed import Worker
from tornado.ioloop import PeriodicCallback

from workbench.spans import KINDS

if TYPE_CHECKING:
    from workbench.cluster.seat import Seat

SEGMENTS = "workbench-segments"
"""Topic of Dask events: what a rank did for a second or so."""

EVERY_MS = 1000
"""Between two looks. One costs the rank nothing, and the worker about 0.1 ms."""

CPU, MEMORY = "ranks CPU %", "ranks memory MiB"
"""Names of the columns in Dask's table of workers."""


@dataclass
class Watched:
    """A rank as it was at the last look."""

    seat: Seat
    label: str
    span_id: str | None
    since_s: float = field(default_factory=time)
    process: psutil.Process | None = None
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    spent_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    def measure(self) -> None:
        """Take what the operating system says of the rank's process."""
        try:
            self.process = self.process or psutil.Process(self.seat.pid)
            self.cpu_percent = self.process.cpu_percent()  # since the last call
            self.memory_bytes = self.process.memory_info().rss
        except psutil.Error:  # it has ended
            self.cpu_percent, self.memory_bytes = 0.0, 0


class RankMeter:
    """Looks once a second at the ranks of one rank host, while it has any."""

    def __init__(self, worker: Worker) -> None:
        self.watched: list[Watched] = []
        self._worker = worker
        worker.metrics[CPU] = _cpu_percent
        worker.metrics[MEMORY] = _memory_mib
        self._clock = PeriodicCallback(self.look, EVERY_MS)
        self._clock.start()

    def watch(self, seat: Seat, label: str, span_id: str | None) -> None:
        """Watch a rank that has a process until it has ended; may be called on any thread.

        ``label`` is what its work is called, ``span_id`` Dask's name for what its time counts to.
        """
        self.watched.append(Watched(seat, label, span_id))

    def look(self) -> None:
        """Tell Dask what the ranks have done since the last look."""
        for watched in list(self.watched):
            ended_s = watched.seat.ended_s  # before its numbers: these are the last then
            watched.measure()
            self._count(watched)
            self._tell(watched, ended_s or time())
            if ended_s is not None:
                self.watched.remove(watched)

    def close(self) -> None:
        """Stop looking."""
        self._clock.stop()

    def _count(self, watched: Watched) -> None:
        spent_s = watched.seat.progress.spent_s
        for kind, total_s in spent_s.items():
            new_s = total_s - watched.spent_s[kind]
            if new_s > 0 and watched.span_id is not None:
                key = ("execute", watched.span_id, watched.label, f"rank {kind}", "seconds")
                self._worker.digest_metric(key, new_s)
        watched.spent_s = spent_s

    def _tell(self, watched: Watched, until_s: float) -> None:
        step, delay_s = watched.seat.progress.step, self._worker.scheduler_delay
        segment = {
            "worker": self._worker.address,
            "run": watched.seat.run_id,
            "rank": watched.seat.rank,
            "what": watched.label if step is not None else f"start of {watched.label}",
            "step": -1 if step is None else step,
            "start_s": watched.since_s + delay_s,  # the scheduler's clock is that of the page
            "stop_s": until_s + delay_s,
        }
        self._worker.log_event(SEGMENTS, segment)
        watched.since_s = until_s


def _all_watched(worker: Worker) -> Iterator[Watched]:
    """Yield the ranks of all labs that have ranks on this worker."""
    for plugin in list(worker.plugins.values()):
        meter = getattr(plugin, "meter", None)
        if isinstance(meter, RankMeter):
            yield from list(meter.watched)


def _cpu_percent(worker: Worker) -> int:
    """Return the CPU that the ranks take, 100 for one core."""
    return round(sum(watched.cpu_percent for watched in _all_watched(worker)))


def _memory_mib(worker: Worker) -> int:
    """Return the resident memory of the ranks; what they share is counted for each."""
    return round(sum(watched.memory_bytes for watched in _all_watched(worker)) / 2**20)
