"""One press of Run or Train, and whose turn it is: panels share the workers, one job at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.attached_run import OVER
from workbench.errors import RunError
from workbench.steering import ENDED
from workbench.ui.form import Request
from workbench.ui.language import Say

if TYPE_CHECKING:
    from workbench.attaching import AttachedComparison
    from workbench.comparison import Comparison
    from workbench.ui.training import Training

Kind = Literal["compare", "train", "sweep", "attached"]


@dataclass
class Job:
    """One press of a button, from the checks to the end.

    Attributes
    ----------
    after:
        The job that ends before this one begins; None once it has, for a job holds what was
        measured, and with it what the ranks have left on their workers.
    phase:
        What the driver does before anything runs: a key of the catalogue, and its values.
    problems:
        Sentences by the control that caused them; ``"run"`` for what broke later.
    details:
        What a developer wants beyond the sentence.
    going:
        What goes on, once something does.
    notice:
        What cannot be done with it, in a sentence.
    """

    number: int
    request: Request
    kind: Kind = "compare"
    after: Job | None = None
    phase: tuple[str, dict[str, Any]] = ("phase.checking", {})
    problems: dict[str, Say] = field(default_factory=dict)
    details: str = ""
    going: Comparison | Training | AttachedComparison | None = None
    notice: str = ""
    stop_asked: threading.Event = field(default_factory=threading.Event)
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held while files of what goes on elsewhere are read, which two threads do."""

    @property
    def status(self) -> str:
        """As of a run: "starting", "running", "stopping", "done", "stopped" or "failed"."""
        if self.problems:
            return "failed"
        if self.kind == "attached" and self.going is not None:
            # What is over is shown, however it ended; else it goes on, but nothing of it here.
            return "done" if self.going.status in OVER else "followed"
        if self.going is None:
            # A cluster that is being started is kept for the next run, so there is nothing to
            # wait for.
            return "stopped" if self.stop_asked.is_set() else "starting"
        status = str(self.going.status)
        if self.stop_asked.is_set() and status not in ENDED:
            return "stopping"
        return status

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ENDED

    @property
    def here(self) -> bool:
        """Whether it has the panel's workers, or is to have them."""
        return self.kind != "attached"

    def follow(self) -> None:
        """Read what is new of what goes on elsewhere."""
        followed: Any = self.going
        if not self.here and followed is not None and not self.ended:
            with self._reading:
                followed.refresh()

    def stop(self) -> None:
        """End what goes on within 2 s; of what is followed, say where it can be ended."""
        if not self.here:
            try:
                if self.going is not None:
                    with self._reading:
                        self.going.stop()
            except RunError as error:
                self.notice = str(error)
            return
        self.stop_asked.set()
        if self.going is not None:
            self.going.stop()


class Turns:
    """Which job has the workers; the panels of a process take turns."""

    def __init__(self) -> None:
        self._holder: Job | None = None
        self._lock = threading.Lock()

    def take(self, job: Job) -> bool:
        """Give the workers to ``job`` if nobody has them, and return whether it has them now."""
        with self._lock:
            if self._holder is not None and self._holder is not job and not self._holder.ended:
                return False
            self._holder = job
            return True

    @property
    def busy(self) -> bool:
        """Whether a job has the workers."""
        return self._holder is not None and not self._holder.ended


TURNS = Turns()
"""Those of this process."""
