"""What has been measured of a comparison: its table, while it goes on and when it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from workbench.amdahl import Fit, fits
from workbench.bubble import Bubble
from workbench.cost import cost
from workbench.measured import SpanRow
from workbench.speedup import Entry, rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Progress:
    """How far a comparison is; ``eta_s`` is None before that can be told."""

    done_steps: int
    total_steps: int
    eta_s: float | None
    text: str


@dataclass(frozen=True)
class Facts:
    """What is told of a workload wherever its figures are shown."""

    name: str
    batch_size: int
    samples: int
    seed: int
    dtype: str

    @classmethod
    def of(cls, work: Any) -> Facts:
        """Return those of a :class:`workbench.workload.Workload`."""
        return cls(work.name, work.batch_size, work.samples, work.seed, work.dtype)


class Compared:
    """The record of a comparison.

    Attributes
    ----------
    entries:
        The lines of the table with their runs; the first is one process with one thread.
    refused:
        Strategies that were asked for and cannot be done, each with the reason.
    unproved:
        Why ``same_result`` stays open where it was to be proved: what broke in float64.
    timelines:
        Spans of each strategy by its label, as of a run, if they were asked for.
    bubbles:
        How much the ranks of each pipeline waited in these steps, by strategy.
    machine:
        What it was measured on.
    price_per_worker_hour:
        In any currency, None without one; may be set at any time.
    """

    error: Exception | str | None = None

    def __init__(
        self,
        facts: Facts,
        entries: Sequence[Entry],
        *,
        steps: int,
        repeats: int,
        machine: Mapping[str, Any],
        refused: Mapping[str, str],
        price_per_worker_hour: float | None,
        unproved: str | None = None,
    ) -> None:
        self.facts, self.entries = facts, list(entries)
        self.steps, self.repeats, self.machine = steps, repeats, dict(machine)
        self.refused, self.unproved = dict(refused), unproved
        self.price_per_worker_hour = price_per_worker_hour
        self.timelines: dict[str, list[SpanRow]] = {}
        self.bubbles: dict[str, Bubble] = {}

    @property
    def status(self) -> str:
        """As of a run."""
        raise NotImplementedError

    @property
    def progress(self) -> Progress:
        """Steps done and to do, seconds left, and what goes on, in words."""
        raise NotImplementedError

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per baseline and strategy; keys are those of ``docs/design.md``."""
        if not self.entries:
            return []
        threaded = (e for e in self.entries if e.strategy == "serial" and e.threads > 1)
        found = rows(self.entries, next(threaded, self.entries[0]))
        size = (self.facts.samples, self.facts.batch_size, self.price_per_worker_hour)
        return [{**row, **cost(row, *size)} for row in found]

    @property
    def amdahl(self) -> dict[str, Fit]:
        """Amdahl's law fitted to the speedups of each strategy, by its axes: ``"data"``."""
        return {fit.strategy: fit for fit in fits(self.rows)}

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame (needs pandas)."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return machine, workload, rows and state, ready for JSON."""
        progress = self.progress
        return {
            "machine": self.machine,
            "workload": asdict(self.facts),
            "status": self.status,
            "error": None if self.error is None else str(self.error),
            "unproved": self.unproved,
            "refused": self.refused,
            "steps": self.steps,
            "repeats": self.repeats,
            "progress": {"done_steps": progress.done_steps, "total_steps": progress.total_steps},
            "price_per_worker_hour": self.price_per_worker_hour,
            "rows": self.rows,
            "amdahl": [fit.to_json() for fit in self.amdahl.values()],
            "bubbles": {strategy: asdict(bubble) for strategy, bubble in self.bubbles.items()},
        }

    def __repr__(self) -> str:
        """Say how far it is, and the speedups so far."""
        found = ", ".join(
            f"{row['strategy']} {row['threads']}t {row['speedup']:.2f}x"
            for row in self.rows
            if row["speedup"] is not None
        )
        name = f"{type(self).__name__} {self.facts.name}"
        return f"<{name}: {self.status}{': ' if found else ''}{found}>"
