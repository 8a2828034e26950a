"""How others steer a run while it goes on: wait for it, pause it, make single steps, stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Self

from workbench.arguments import check_steps
from workbench.errors import PlanError, RunError
from workbench.execution import STOP_GRACE_S, Execution
from workbench.measured import Measured

if TYPE_CHECKING:
    from workbench.plan import Plan

Status = Literal["starting", "running", "paused", "stopping", "done", "stopped", "failed"]
ENDED = ("done", "stopped", "failed")
PAUSE_LIMIT_S = 60.0
"""Longest wait for the end of one step."""


class Steered(Measured):
    """A run in its course; every method may be called from any thread.

    Attributes
    ----------
    status:
        ``"starting"``, ``"running"``, ``"paused"``, ``"stopping"``, then ``"done"``, ``"stopped"``
        or ``"failed"``.
    error:
        The :class:`RunError` or :class:`PlanError` of a failed run.
    pauses:
        How often it has come to wait.
    """

    _execution: Execution

    def __init__(self, plan: Plan, *, steps: int, threads: int) -> None:
        super().__init__(plan, steps=steps, threads=threads)
        self.status: Status = "starting"
        self.error: RunError | PlanError | None = None
        self.pauses = 0
        self._ended = threading.Event()

    def wait(self, timeout_s: float | None = None) -> Self:
        """Wait for the end; returns this run.

        Raises
        ------
        RunError, PlanError
            What made the run fail.
        TimeoutError
            If it still goes on after ``timeout_s`` seconds.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError(
                f"The run {self.label} is still {self.status} after {timeout_s} s, at step "
                f"{self.step} of {self.steps}; run.stop() ends it."
            )
        if self.error is not None:
            raise self.error
        return self

    def stop(self) -> None:
        """End the run within 2 s, in every phase; the steps made so far are kept."""
        with self._lock:
            if self.status in ENDED:
                return
            self.status = "stopping"
        with suppress(RunError):  # a cluster that does not answer: the run ends by itself
            self._execution.stop()
        self._ended.wait(STOP_GRACE_S)

    def pause(self, *, wait: bool = True) -> Self:
        """Have all ranks wait after the step in hand; returns when they do, or at once.

        What the ranks hold stays where it is. The time of a pause is part of no figure.

        Raises
        ------
        RunError
            If the run has ended, or the cluster does not answer.
        TimeoutError
            If the step in hand has not ended after a minute; the pause comes when it does.
        """
        return self._tell("pause", wait, lambda: self.status == "paused")

    def resume(self, *, wait: bool = True) -> Self:
        """Go on after a pause, or take back one that has not come yet; errors as of :meth:`pause`.

        Does nothing to a run that goes on.
        """
        return self._tell("resume", wait, lambda: self.status != "paused")

    def advance(self, steps: int = 1, *, wait: bool = True) -> Self:
        """Make exactly ``steps`` steps of a paused run, which then is paused again.

        Returns when it is, or at once; the last step of the run ends it.

        Raises
        ------
        RunError
            If the run is not paused, or the cluster does not answer.
        PlanError
            If ``steps`` is no number of steps.
        TimeoutError
            If the steps take more than a minute each; they are made none the less.
        """
        steps = check_steps(steps)
        with self._lock:
            if self.status != "paused":
                raise RunError(
                    f"The run {self.label} is {self.status}, and single steps are made of a paused "
                    f"one: run.pause() comes before."
                )
            before = self.pauses
        return self._tell(f"step {steps}", wait, lambda: self.pauses > before, steps)

    def _tell(self, command: str, wait: bool, obeyed: Callable[[], bool], steps: int = 1) -> Self:
        if self.status in (*ENDED, "stopping"):
            raise RunError(f"The run {self.label} takes no more commands: it is {self.status}.")
        self._execution.tell(command)
        deadline = time.monotonic() + PAUSE_LIMIT_S * steps
        while wait and not obeyed() and not self._ended.wait(0.01):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"The run {self.label} is still {self.status} {PAUSE_LIMIT_S * steps:.0f} s "
                    f"after it was told to {command}; a step takes long, or its cluster is gone."
                )
        return self

    def _paced(self, paused: bool) -> None:
        with self._lock:
            if self.status in ("starting", "running", "paused"):
                self.status = "paused" if paused else "running"
            self.pauses += paused
