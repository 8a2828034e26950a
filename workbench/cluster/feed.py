"""What the dashboard is told of runs as they go on: for looking at, and never waited for.

A feed gathers news and sends them together, four times a second at most. Facts replace each other;
rows are added to a series, thinned where they come too fast. Where sending fails time after time,
the feed is off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BETWEEN_SENDS_S = 0.25
BETWEEN_LOOKS_S = 1.0
MOST_ROWS = 500
"""Rows of one series in one message."""

MOST_FAILURES = 3
"""Messages in a row that may fail; a busy scheduler may miss one."""

Facts = Mapping[str, Any]


@dataclass
class News:
    """One message: with ``new_show`` all that was told before is over."""

    new_show: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.new_show or self.facts or self.rows)


class Feed:
    """The line to the dashboard; every method may be called on any thread and returns at once.

    Parameters
    ----------
    send:
        Delivers a message, on the feed's own thread; None if there is nobody to tell.

    Attributes
    ----------
    on:
        Whether anybody is told.
    subject:
        What the show that goes on is about.
    """

    def __init__(self, send: Callable[[News], None] | None) -> None:
        self.on = send is not None
        self.subject: Any = None
        self._send = send
        self._news = News()
        self._told: dict[str, Any] = {}
        self._look: Callable[[], tuple[Facts, bool]] | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def showing(self) -> bool:
        """Whether a show goes on."""
        look = self._look
        return look is not None and not look()[1]

    def begin(self, look: Callable[[], tuple[Facts, bool]], subject: Any) -> None:
        """Begin to show something new.

        ``look()`` returns its facts and whether it is over. It is called about once a second, on
        the feed's thread, until it says so.
        """
        if not self.on:
            return
        with self._lock:
            self._news, self._told = News(new_show=True), {}
            self._look, self.subject = look, subject
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
                self._thread.start()
        self._wake.set()

    def tell(self, name: str, fact: Any) -> None:
        """Tell a fact, if it is another than the last of this name."""
        with self._lock:
            if self.on and (name not in self._told or self._told[name] != fact):
                self._news.facts[name] = self._told[name] = fact
                self._wake.set()

    def add(self, series: str, rows: Sequence[Any]) -> None:
        """Add rows to a series."""
        with self._lock:
            if self.on and rows:
                self._news.rows.setdefault(series, []).extend(rows)
                self._wake.set()

    def close(self) -> None:
        """Stop telling."""
        self.on = False
        self._closed.set()
        self._wake.set()

    # The feed's thread.

    def _work(self) -> None:
        waited_s, failures = BETWEEN_LOOKS_S, 0
        while self.on:
            # While a show goes on it is looked at in time; else only news wake us.
            woken = self._wake.wait(BETWEEN_LOOKS_S if self._look else None)
            self._wake.clear()
            waited_s += BETWEEN_SENDS_S if woken else BETWEEN_LOOKS_S
            try:
                if waited_s >= BETWEEN_LOOKS_S:
                    waited_s = 0.0
                    self._take_a_look()
                news = self._take_news()
                if news and self.on and self._send is not None:
                    self._send(news)
                failures = 0
            except Exception:  # nobody depends on it: what cannot be shown is not
                failures += 1
                self.on = self.on and failures < MOST_FAILURES
            self._closed.wait(BETWEEN_SENDS_S)

    def _take_a_look(self) -> None:
        look = self._look
        if look is None:
            return
        facts, over = look()
        with self._lock:
            if self._look is not look:
                return  # another show has begun meanwhile
            if over:
                self._look = self.subject = None
        for name, fact in facts.items():
            self.tell(name, fact)

    def _take_news(self) -> News:
        with self._lock:
            news, self._news = self._news, News()
        for name, rows in news.rows.items():
            news.rows[name] = rows[:: 1 + len(rows) // MOST_ROWS]
        return news
