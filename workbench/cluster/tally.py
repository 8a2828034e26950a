"""What is known of the ranks of a gang: which are up, done or failed, and whether it is over."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.cluster.host import Host
from workbench.cluster.verdict import Failure, failure_from, first_cause, run_error
from workbench.errors import RunError

CAUSE_S = 1.0
"""How long a better explanation than lost contact is waited for."""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """Where and how one rank runs.

    ``worker`` is Dask's address of its worker, ``host`` the machine's name, ``pid`` the rank's own
    process, ``threads`` the number of torch threads.
    """

    rank: int
    worker: str
    host: str
    pid: int
    device: str
    threads: int
    backend: str


class Tally:
    """Gathers reports on the ranks that ``hosts`` have, one each, in any order and any often."""

    def __init__(self, run_id: str, hosts: Sequence[Host]) -> None:
        self.run_id = run_id
        self.hosts = hosts
        self.gone: set[str] = set()
        self._up: dict[int, RankInfo] = {}
        self._done: set[int] = set()
        self._failures: dict[int, Failure] = {}
        self._failed_at = 0.0
        self._step: int | None = None

    @property
    def up(self) -> tuple[RankInfo, ...] | None:
        """All ranks, once all are up."""
        whole = len(self._up) == len(self.hosts)
        return tuple(self._up[rank] for rank in range(len(self.hosts))) if whole else None

    @property
    def not_up(self) -> list[int]:
        """Ranks that are not up yet."""
        return [rank for rank in range(len(self.hosts)) if rank not in self._up]

    @property
    def done(self) -> bool:
        """Whether every rank's target has returned."""
        return len(self._done) == len(self.hosts)

    @property
    def failing(self) -> bool:
        """Whether a rank has failed."""
        return bool(self._failures)

    @property
    def over(self) -> bool:
        """Whether all ranks are done, or one has failed and no better reason is to come."""
        if self.done or not self._failures:
            return self.done
        explained = any(failure.is_cause for failure in self._failures.values())
        settled = len(self._failures) + len(self._done) == len(self.hosts)
        return explained or settled or time.monotonic() - self._failed_at > CAUSE_S

    def report(self, report: Mapping[str, Any]) -> None:
        """Take a host's report of a rank, see :meth:`workbench.cluster.seat.Seat.report`."""
        rank, host = report["rank"], self.hosts[report["rank"]]
        self._note_step(report["step"])
        if report["up"] and rank not in self._up:
            self._up[rank] = RankInfo(
                rank=rank,
                worker=host.worker,
                host=host.host_id.partition("/")[0],
                **report["up"],
            )
        failure = failure_from(report, host.worker)
        if failure is not None:
            self.fail(failure)
        elif report["outcome"] is not None:
            self._done.add(rank)

    def fail(self, failure: Failure) -> None:
        """Note a failure; the first of each rank counts, and a cause counts more than an effect."""
        before = self._failures.get(failure.rank)
        if failure.rank not in self._done and (before is None or not before.is_cause):
            # The order in which causes came to be known is the order of the dict.
            self._failures.pop(failure.rank, None)
            self._failures[failure.rank] = failure
            self._failed_at = self._failed_at or time.monotonic()

    def lose(self, worker: str, how: str, log: str) -> None:
        """Note that a worker is gone; ``how`` it ended and what it printed, where that is known."""
        self.gone.add(worker)
        for rank, host in enumerate(self.hosts):
            if host.worker == worker:
                self.fail(Failure(rank, "worker", worker, text=how, details=log))

    def error(self, last_reports: Sequence[Mapping[str, Any]], stopped: str) -> RunError:
        """Return why the gang did not finish.

        ``last_reports`` are those on ranks that were killed in the end: how far they were.
        ``stopped`` is why it was ended from outside, if it was.
        """
        for report in last_reports:
            self._note_step(report["step"])
        if stopped or not self._failures:
            return RunError(f"{stopped}; run {self.run_id} has ended.", step=self._step)
        return run_error(self.run_id, first_cause(self._failures.values()), self._step)

    def _note_step(self, step: int | None) -> None:
        if step is not None:
            self._step = max(step, self._step or 0)
