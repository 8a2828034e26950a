"""What the calls of a communicator cost: bytes and seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

OnSpan = Callable[[str, str, float, float, int], None]


class Account:
    """One rank's count of what it sends and how long it communicates and waits.

    A communicator and all groups that are split from it share one account.

    - ``sent_bytes[op]``: payload bytes that other ranks need from this rank, by name of the
      operation. An all_reduce is counted as a reduce_scatter followed by an all_gather over the
      balanced split: a rank that owns ``s`` of ``n`` elements sends ``n - s`` to be summed and its
      ``s`` sums to ``size - 1`` others. Over all ranks that makes ``2 (size - 1) n``, the volume of
      the bandwidth-optimal ring (Patarasu and Yuan, 2009), whatever the backend really moves.
    - ``calls[op]``: how often each operation was called.
    - ``comm_s`` and ``wait_s``: seconds inside calls. Waiting is the time from being ready until
      the last peer of the call had arrived; everything else is communication.

    ``on_span(kind, name, start_s, stop_s, sent_bytes)``, when set, is told of each piece
    (``kind`` is "comm" or "wait"; times are those of :func:`time.perf_counter`; the bytes of a call
    are told with its last piece).
    """

    def __init__(self) -> None:
        self.sent_bytes: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)
        self.comm_s = 0.0
        self.wait_s = 0.0
        self.on_span: OnSpan | None = None

    def book(
        self, name: str, start: float, wait_start: float, wait_stop: float, stop: float, sent: int
    ) -> None:
        """Count the time from ``start`` to ``stop``, with a wait in it, and tell its pieces."""
        waited = wait_stop - wait_start
        self.wait_s += waited
        self.comm_s += stop - start - waited
        if self.on_span is not None:
            if waited > 0:
                if wait_start > start:
                    self.on_span("comm", name, start, wait_start, 0)
                self.on_span("wait", name, wait_start, wait_stop, 0)
                start = wait_stop
            self.on_span("comm", name, start, stop, sent)


class Booked:
    """What has an account, and shows it."""

    account: Account

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes that this rank sent, by operation, its groups included."""
        return self.account.sent_bytes

    @property
    def calls(self) -> dict[str, int]:
        """How often each operation was called, its groups included."""
        return self.account.calls

    @property
    def comm_s(self) -> float:
        """Seconds of communication, its groups included."""
        return self.account.comm_s

    @property
    def wait_s(self) -> float:
        """Seconds of waiting for peers, its groups included."""
        return self.account.wait_s

    @property
    def on_span(self) -> OnSpan | None:
        """Who is told of each piece of time, its groups included."""
        return self.account.on_span

    @on_span.setter
    def on_span(self, on_span: OnSpan | None) -> None:
        self.account.on_span = on_span
