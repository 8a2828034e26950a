"""A run as its folder tells it, followed as long as somebody else drives it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from workbench.bubble import Bubble
from workbench.compared import Facts
from workbench.documents import check_run
from workbench.errors import PlanError, RunError
from workbench.measured import Measured, Row, SpanRow, join
from workbench.records import RUN, STEPS, Tail, driven, drives, read, read_spans
from workbench.steering import ENDED

OVER = (*ENDED, "interrupted")
LOOK_EVERY_S = 0.25
"""Between two looks at the files of what is waited for."""


@dataclass(frozen=True)
class AttachedPlan:
    """As much of a plan as its run's folder tells."""

    strategy: str
    ranks: int
    bytes_per_step: int


class AttachedRun(Measured):
    """A run as its folder tells it: what was measured of it, and nothing that lies on workers.

    It is as it was when it was read, until :meth:`refresh` or :meth:`wait` reads what is new.
    Attributes are those of :class:`workbench.run.Run`. ``status`` may also be ``"interrupted"``:
    whoever drove it is gone, and it will not go on.
    """

    preview = None
    kept: Mapping[str, Any] = {}

    def __init__(self, folder: Path, summary: Mapping[str, Any], rows: Sequence[Row]) -> None:
        plan = AttachedPlan(summary["strategy"], summary["ranks"], summary["bytes_per_step"])
        super().__init__(plan, steps=summary.get("steps", len(rows)), threads=summary["threads"])
        self.folder = folder
        self.work = facts_of(summary, summary["workload"])
        self.first_step: int = summary.get("first_step", 0)
        self._rows = list(rows)
        self._tail = Tail(folder / STEPS)
        self._read: list[SpanRow] | None = None
        self._take(summary)

    def refresh(self) -> Self:
        """Read what is new, if it has not ended: status, steps, and at the end the rest."""
        if self.status not in OVER:
            try:
                summary = json.loads((self.folder / RUN).read_text(encoding="utf-8"))
                lines, all_again = self._tail.look()  # after the summary: an end has all its steps
                rows = [json.loads(line) for line in lines]
                check_run(summary, rows, self.folder / RUN)
            except (OSError, ValueError):  # it is being written to, or taken away: nothing is new
                return self
            with self._lock:
                kept = [] if all_again else list(self._rows)
                join(kept, rows)
                self._rows = kept
            self._take(summary)
        return self

    def wait(self, timeout_s: float | None = None) -> Self:
        """Follow it until it has ended, or whoever drives it is gone.

        Raises
        ------
        TimeoutError
            If it still goes on after ``timeout_s`` seconds.
        """
        return wait_for(self, f"The run {self.label}", timeout_s)

    def stop(self) -> None:
        """End it, if this process drives it; as of :meth:`workbench.run.Run.stop`.

        Raises
        ------
        RunError
            If another process drives it; says which.
        """
        driver = self._summary.get("driver", {})
        stop_driven(
            self,
            f"The run {self.label} is driven by process {driver.get('pid')} on "
            f"{driver.get('host')}, and only that can stop it: press Stop or call stop() there, "
            "or end that process.",
        )

    def _take(self, summary: Mapping[str, Any]) -> None:
        """Take what the folder tells besides steps and spans."""
        self._summary = dict(summary)
        self.error: str | None = summary["error"]
        self.device, self.backend = summary["device"], summary["backend"]
        self.accuracy: float | None = summary["accuracy"]
        self.test_loss: float | None = summary.get("test_loss")
        self.peak_memory_bytes = tuple(summary.get("peak_memory_bytes", ()))
        self.predicted_memory_bytes = tuple(summary.get("predicted_memory_bytes", ()))
        self._read = None
        self.status = status_of(summary, bool(self._rows))  # last: an end has all of the rest

    @property
    def spans(self) -> list[SpanRow]:
        """The spans in its folder: the newest 20,000 of each rank, the first of an interrupted."""
        if self._read is None:
            self._read = readable(self.folder, read_spans)
        return list(self._read)

    @property
    def bubble(self) -> Bubble | None:
        """How much the ranks of a pipeline waited, beside theory, if the run has ended."""
        found = self._summary.get("bubble")
        return Bubble(**found) if found else None

    def state(self, kind: str) -> NoReturn:
        """Refuse to give weights.

        Raises
        ------
        RunError
            Always: they are not in the folder.
        """
        raise RunError(
            f"The run {self.label} was read back from {self.folder}, which has its figures and not "
            "its weights; those are kept with wb.save(run, path) and had again by wb.load(path)."
        )

    def summary(self) -> dict[str, Any]:
        """Return the run in numbers, as it wrote them."""
        return {**self._summary, "status": self.status, "steps_done": self.step}

    def __repr__(self) -> str:
        """Say how far it is."""
        done = f"step {self.step} of {self.steps}"
        return f"<AttachedRun {self.work.name} {self.label}: {self.status}, {done}>"


def wait_for(followed: Any, name: str, timeout_s: float | None) -> Any:
    """Refresh a run or a comparison until it is over, and return it."""
    ends_s = None if timeout_s is None else time.monotonic() + timeout_s
    while followed.refresh().status not in OVER:
        if ends_s is not None and time.monotonic() > ends_s:
            raise TimeoutError(
                f"{name} is still {followed.status} after {timeout_s} s, at step {followed.step} "
                f"of {followed.steps}; it goes on where it was started."
            )
        time.sleep(LOOK_EVERY_S)
    return followed


def stop_driven(followed: Any, refusal: str) -> None:
    """Stop what this process drives; refuse in a sentence if another one does."""
    own = driven(followed.folder)
    if own is not None:
        own.stop()
    elif followed.refresh().status not in OVER:
        raise RunError(refusal)


def read_run(folder: Path) -> AttachedRun:
    """Return the run in a folder, refused in a sentence if it cannot be read."""
    summary, rows = readable(folder, read)
    check_run(summary, rows, folder / RUN)
    return AttachedRun(folder, summary, rows)


def readable(folder: Path, reading: Callable[[Path], Any]) -> Any:
    """Read something of a folder, refused in a sentence if that cannot be."""
    try:
        return reading(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"The run in {folder} cannot be read: {error}.") from error


def facts_of(told: Mapping[str, Any], name: str) -> Facts:
    """Return what a summary, or a document, tells of its workload."""
    samples = told.get("samples") or told["batch_size"]
    return Facts(name, told["batch_size"], samples, told.get("seed", 0), told.get("dtype", ""))


def status_of(told: Mapping[str, Any], begun: bool) -> str:
    """Return the status, of what may have lost its driver; ``begun`` if it has made a step."""
    status = str(told["status"])
    if status in ENDED or "driver" not in told:
        return status
    if drives(told["driver"]) is False:
        return "interrupted"
    return "running" if status == "starting" and begun else status
