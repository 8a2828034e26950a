"""Which workers there are, and which of them host the ranks of a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from workbench.cluster.control import Control
from workbench.cluster.host import Host, lasting_order
from workbench.cluster.rank_host import describe_host
from workbench.errors import PlanError, RunError

if TYPE_CHECKING:
    from workbench.cluster.own_cluster import OwnCluster

WORKER_LIMIT_S = 60.0
"""Longest wait for a worker that died to come back."""

_POLL_S = 0.05


class Roster:
    """The workers of a cluster, as places for ranks; ``cluster`` is None if it is not our own."""

    def __init__(self, control: Control, cluster: OwnCluster | None) -> None:
        self._control = control
        self._cluster = cluster
        self._known: dict[str, Host] = {}
        self._whole = cluster.size if cluster else 0  # workers when none is dead

    def hosts(self) -> tuple[Host, ...]:
        """Return the workers that there are now, in a lasting order."""
        addresses = self._control.workers()
        new = [address for address in addresses if address not in self._known]
        for address, answer in self._control.ask(describe_host, workers=new).items():
            if isinstance(answer, dict):
                self._known[address] = Host(worker=address, **answer)
        there = [self._known[address] for address in addresses if address in self._known]
        self._whole = max(self._whole, len(there))
        return tuple(sorted(there, key=lasting_order))

    def hosts_for(self, size: int) -> tuple[Host, ...]:
        """Return the workers of ``size`` ranks, see :meth:`workbench.cluster.lab.Lab.hosts_for`."""
        deadline = time.monotonic() + WORKER_LIMIT_S
        hosts = self.hosts()
        if size > self._whole:
            raise PlanError(
                f"{size} ranks need {size} workers, one each, and this cluster has {self._whole}; "
                f"use at most {self._whole} ranks, or start a larger cluster: "
                f"wb.start(workers={size})."
            )
        while len(hosts) < size:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{size} ranks need {size} workers, and {self._whole - len(hosts)} of "
                    f"{self._whole} are gone and did not come back within {WORKER_LIMIT_S:.0f} s; "
                    f"use fewer ranks, or close this lab and start another.",
                    details=self._cluster.log if self._cluster else "",
                )
            time.sleep(_POLL_S)
            hosts = self.hosts()
        return hosts[:size]

    def end_of(self, worker: str) -> tuple[str, str]:
        """Return how an own worker that is gone came to its end, and what it printed."""
        host = self._known.get(worker)
        process = self._cluster.process(host.name) if self._cluster and host else None
        if process is None or process.exit_code is None:
            return "", ""
        return f"exit code {process.exit_code}", process.log
