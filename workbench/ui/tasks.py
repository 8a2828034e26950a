"""A thread that carries out tasks one after the other, and goes on whatever becomes of one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from workbench.ui import language
from workbench.ui.guard import Guard

IDLE_S = 0.25
"""How long it waits for a task before it does what it does in between."""

Task = Callable[[], object]


class Tasks:
    """A queue of tasks, and the thread that carries them out.

    Parameters
    ----------
    name:
        That of the thread.
    spoken:
        Returns the language of what tasks say.
    idle:
        What is done while no task comes; it keeps its own errors within ``guard``.
    at_end:
        What is done after the last task.

    Attributes
    ----------
    guard:
        What tasks have broken with, by their names.
    """

    def __init__(
        self,
        name: str,
        spoken: Callable[[], str],
        idle: Task = lambda: None,
        at_end: Task = lambda: None,
    ) -> None:
        self.guard = Guard()
        self._spoken, self._idle, self._at_end = spoken, idle, at_end
        self._queue: queue.SimpleQueue[tuple[str, Task] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still takes tasks."""
        return self._thread.is_alive()

    def put(self, name: str, task: Task) -> None:
        """Have a task carried out when those before it are, and return at once."""
        self._queue.put((name, task))

    def close(self) -> None:
        """Take no task that comes from now on, and return at once."""
        self._queue.put(None)

    def join(self, limit_s: float) -> None:
        """Wait for the end of the last task."""
        self._thread.join(limit_s)

    def _loop(self) -> None:
        while True:
            try:
                asked = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                asked = ("idle", self._idle)
            if asked is None:
                break
            language.speak(self._spoken())
            name, task = asked
            with self.guard.task(name):
                task()
            del asked, task  # what a task holds is let go of before the next one comes
        self._at_end()
