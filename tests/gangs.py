"""A gang with its messages and ends written down."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
from distributed import Future

from workbench.cluster.gang import Gang, GangEnd
from workbench.cluster.lab import Lab
from workbench.errors import RunError

LIMIT_S = 30.0

_number = itertools.count()


class Watched(Gang):
    """A gang on the CPU whose messages and ends can be read."""

    def __init__(
        self,
        lab: Lab,
        target: Callable[..., Any],
        job: Any = None,
        *,
        size: int = 2,
        threads: int = 1,
        shares: Sequence[Mapping[str, Future]] | None = None,
    ) -> None:
        self.messages: list[tuple[int, str, Any]] = []
        self.ends: list[GangEnd] = []
        self._news: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()
        super().__init__(
            lab,
            run_id=f"test-{next(_number)}",
            size=size,
            threads=threads,
            device="cpu",
            target=target,
            job=cloudpickle.dumps(job),
            shares=shares or [{}] * size,
            on_message=self._note,
            on_end=self.ends.append,
        )

    def _note(self, rank: int, kind: str, data: Any) -> None:
        self.messages.append((rank, kind, data))
        self._news.put((rank, kind, data))

    def until_all(self, kind: str = "ready") -> list[Any]:
        """Start, wait for one message of this kind from every rank, and return their data."""
        self.start()
        found: dict[int, Any] = {}
        while len(found) < self.size:
            rank, named, data = self._news.get(timeout=LIMIT_S)
            if named == kind:
                found[rank] = data
        return [found[rank] for rank in range(self.size)]

    def finish(self) -> GangEnd:
        """Start, wait for the end and return it; a rank may fail before all others are up."""
        try:
            self.start()
        except RunError:
            if not self.ends:
                raise
        return self.join(LIMIT_S)
