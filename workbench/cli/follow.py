"""Wait for a run or a comparison, and show how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from workbench.cli.terminal import Terminal
from workbench.errors import PlanError, RunError
from workbench.ui import texts
from workbench.ui.language import text

LOOK_EVERY_S = 0.1
DRAWINGS_PER_S = 4
LINE_EVERY_S = 5.0
"""Shortest time between two lines of progress where there is no terminal to draw a bar on."""

STARTING, ENDED = ("starting", "running", "paused", "stopping"), ("done", "stopped", "failed")


class Job(Protocol):
    """What a Run and a Comparison have in common."""

    @property
    def status(self) -> str:
        """One of ``STARTING`` or ``ENDED``."""

    @property
    def error(self) -> RunError | PlanError | None:
        """Why it failed."""

    def stop(self) -> object:
        """End it now, with everything it started."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far a job is: steps, seconds left (None while not known), and what it is doing."""

    done_steps: int
    total_steps: int
    eta_s: float | None
    text: str

    @property
    def time_left(self) -> str:
        """The time left, as a reader wants it."""
        return "" if self.eta_s is None else texts.time_left(self.eta_s)


def follow(
    job: Job,
    terminal: Terminal,
    progress: Callable[[], Progressed],
    figures: Callable[[], RenderableType] | None = None,
) -> None:
    """Show the progress of ``job``, and its ``figures`` so far, until it has ended.

    An interruption (Ctrl-C, SIGTERM) stops the job before it goes on its way.

    Raises
    ------
    RunError, PlanError
        Why the job failed, or that somebody else stopped it.
    """
    try:
        with _display(terminal, figures) as show:
            while job.status not in ENDED:
                show(progress())
                time.sleep(LOOK_EVERY_S)
    except BaseException:
        job.stop()
        raise
    if job.status == "failed":
        raise job.error or RunError("It failed, and left no reason.")
    if job.status == "stopped":
        raise RunError("It was stopped before it had ended.")


def _display(
    terminal: Terminal, figures: Callable[[], RenderableType] | None
) -> AbstractContextManager[Callable[[Progressed], None]]:
    if terminal.quiet:
        return _silence()
    return _drawing(terminal, figures) if terminal.err.is_terminal else _lines(terminal)


@contextmanager
def _silence() -> Iterator[Callable[[Progressed], None]]:
    yield lambda progressed: None


@contextmanager
def _lines(terminal: Terminal) -> Iterator[Callable[[Progressed], None]]:
    """Print a line now and then, for logs."""
    last_at, last_line = float("-inf"), ""

    def show(progressed: Progressed) -> None:
        nonlocal last_at, last_line
        parts = (
            text("term.progress", done=progressed.done_steps, total=progressed.total_steps),
            progressed.text,
            progressed.time_left,
        )
        line = ", ".join(part for part in parts if part)
        if time.monotonic() - last_at >= LINE_EVERY_S and line != last_line:
            last_at, last_line = time.monotonic(), line
            terminal.err.print(line, soft_wrap=True)

    yield show


@contextmanager
def _drawing(
    terminal: Terminal, figures: Callable[[], RenderableType] | None
) -> Iterator[Callable[[Progressed], None]]:
    """Draw the figures so far and a bar below them; both are wiped away at the end."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(text("term.steps")),
        TextColumn("{task.fields[left]}", style="dim"),
        console=terminal.err,
    )
    task = bar.add_task("", left="")

    def show(progressed: Progressed) -> None:
        bar.update(
            task,
            description=progressed.text,
            completed=progressed.done_steps,
            total=progressed.total_steps,
            left=progressed.time_left,
        )

    def draw() -> RenderableType:
        return Group(figures(), bar) if figures else bar

    with Live(
        get_renderable=draw,
        console=terminal.err,
        refresh_per_second=DRAWINGS_PER_S,
        transient=True,
    ):
        yield show
