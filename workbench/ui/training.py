"""One model trained by run after run, each under a strategy of its own, the weights kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.comparison import Progress
from workbench.run import run
from workbench.steering import ENDED

if TYPE_CHECKING:
    from workbench.cluster.lab import Lab
    from workbench.errors import PlanError, RunError
    from workbench.preview import Preview
    from workbench.run import Run
    from workbench.workload import Workload


class Training:
    """The runs that have trained one model, in turn; read as a comparison is.

    Parameters
    ----------
    before:
        The training that this one goes on from; None begins with fresh weights.

    Attributes
    ----------
    segments:
        The runs, of which each has gone on from the one before.
    work:
        What is trained.
    """

    rows: Sequence[dict[str, Any]] = ()

    def __init__(
        self,
        work: Workload,
        strategy: str,
        *,
        steps: int,
        threads: int | None,
        lab: Lab,
        options: dict[str, Any],
        before: Training | None = None,
    ) -> None:
        self.work = work
        earlier = before.segments if before else ()
        now = run(
            work,
            strategy,
            steps=steps,
            threads=threads,
            preview=True,
            lab=lab,
            start=earlier[-1] if earlier else None,
            **options,
        )
        self.segments: tuple[Run, ...] = (*earlier, now)

    @property
    def run(self) -> Run:
        """The newest run."""
        return self.segments[-1]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return self.segments

    @property
    def status(self) -> str:
        """That of the newest run."""
        return self.run.status

    @property
    def error(self) -> RunError | PlanError | None:
        """What made the newest run fail."""
        return self.run.error

    @property
    def crowded(self) -> bool:
        """Whether the newest run takes all cores of this machine."""
        return self.run.lab.crowded_by(self.run.plan.ranks * self.run.threads)

    @property
    def preview(self) -> Preview | None:
        """The newest picture that the model has made."""
        return self.run.preview

    @property
    def timelines(self) -> dict[str, list[dict[str, Any]]]:
        """Spans of the newest run, by its label."""
        return {self.run.label: self.run.spans}

    @property
    def progress(self) -> Progress:
        """How far the newest run is."""
        now = self.run
        text = f"Training with {now.plan.strategy}, from step {now.first_step + 1}"
        return Progress(now.step, now.steps, now.eta_s, text)

    @property
    def can_go_on(self) -> bool:
        """Whether the newest run has ended with weights that another can take over."""
        return self.run.status in ENDED and bool(self.run.kept) and not self.run.lab.closed

    def pause(self, *, wait: bool = True) -> None:
        """Have the newest run wait after its step."""
        self.run.pause(wait=wait)

    def resume(self, *, wait: bool = True) -> None:
        """Let the newest run go on."""
        self.run.resume(wait=wait)

    def advance(self, steps: int = 1, *, wait: bool = True) -> None:
        """Let the newest run, which waits, make ``steps`` steps."""
        self.run.advance(steps, wait=wait)

    def stop(self) -> None:
        """End the newest run within 2 s; its weights are kept."""
        self.run.stop()
