"""Why this speed: each millisecond between the ideal step and the measured one, and what to change.

The ideal step is that of one process with one thread, divided by the number of cores used. What a
measured step takes beyond it went somewhere: to computing that was not divided, to communication,
to waiting, to the optimizer, to loading, to what the workbench does around all that. The parts
add up to the measured step exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.spans import KINDS
from workbench.strategies import STRATEGIES
from workbench.strategies.notation import parse

Row = Mapping[str, Any]

NEARLY_ALL = 0.9
"""From this share of the ideal on, there is nothing worth changing."""

DOES = {
    "compute": "computing more than its share",
    "comm": "moving numbers between ranks",
    "wait": "waiting for other ranks",
    "optimizer": "updating weights beyond its share",
    "load": "taking samples from memory beyond its share",
    "overhead": "agreeing on a step and telling of it",
}
"""What a rank does with the time that it takes beyond the ideal, by kind."""

OF_OVERHEAD = "a larger batch: a step costs this whatever its size"
"""What to try, under any strategy."""


@dataclass(frozen=True)
class Why:
    """Where the time of one strategy's step went; all measured.

    Attributes
    ----------
    cores:
        Those that it used: ranks times threads, and no more than the machine has.
    step_s:
        Median seconds of a step.
    ideal_s:
        Seconds of a step of one process with one thread, divided by ``cores``.
    beyond_s:
        What each kind of span takes beyond its part of the ideal, in seconds of one rank's step;
        less than nothing where a share computes faster than its part of the whole. Together with
        ``ideal_s`` they are ``step_s``.
    crowded:
        Whether there are fewer cores than it asks for.
    device:
        ``"cpu"`` or ``"cuda"``, where cores are GPUs.
    """

    strategy: str
    ranks: int
    threads: int
    cores: int
    step_s: float
    ideal_s: float
    beyond_s: Mapping[str, float]
    crowded: bool
    device: str = "cpu"

    @property
    def efficiency(self) -> float:
        """Part of the ideal speedup that is reached, 1 for all of it."""
        return self.ideal_s / self.step_s

    @property
    def worst(self) -> str:
        """The kind that takes most beyond its part."""
        return max(self.beyond_s, key=lambda kind: self.beyond_s[kind])

    @property
    def sentence(self) -> str:
        """What holds it back most, in numbers, and what to try."""
        reached = f"{self.strategy} reaches {self.efficiency:.0%} of what {self._cores} can"
        if self.efficiency >= NEARLY_ALL:
            return f"{reached}: there is little left to gain."
        lost_s = self.beyond_s[self.worst]
        return (
            f"{reached}. Most is lost by {DOES[self.worst]}: {_ms(lost_s)} of "
            f"{_ms(self.step_s)} ms a step ({lost_s / self.step_s:.0%}). {self._remedy()}"
        )

    @property
    def _cores(self) -> str:
        noun = "GPU" if self.device == "cuda" else "core"
        return f"{self.cores} {noun}{'' if self.cores == 1 else 's'}"

    def _remedy(self) -> str:
        if self.crowded and self.worst in ("compute", "wait"):
            return f"Use fewer ranks or threads: there are {self._cores}."
        # Of several axes the one that has most ranks is most likely the cause.
        axis = max(parse(self.strategy).axes, key=lambda each: each[1])[0]
        remedies = {**STRATEGIES[axis].remedies, "overhead": OF_OVERHEAD}
        remedy = remedies.get(self.worst)
        return f"Try {remedy}." if remedy else "Its strategy has no advice for that."


def why(row: Row, alone: Row, machine_cores: int) -> Why:
    """Account for a strategy's step.

    Parameters
    ----------
    row, alone:
        Lines of a comparison's table (:func:`workbench.speedup.rows`): that of the strategy, and
        that of one process with one thread.
    machine_cores:
        Those that there are; on GPUs every rank has one of its own.
    """
    wanted = row["ranks"] * row["threads"]
    on_cpu = row["device"] == "cpu"
    cores = min(wanted, machine_cores) if on_cpu else row["ranks"]
    beyond_s = {kind: _part_s(row, kind) - _part_s(alone, kind) / cores for kind in KINDS}
    # A record of before overhead was measured lacks it.
    beyond_s["overhead"] += row["step_s"] - alone["step_s"] / cores - sum(beyond_s.values())
    return Why(
        strategy=row["strategy"],
        ranks=row["ranks"],
        threads=row["threads"],
        cores=cores,
        step_s=row["step_s"],
        ideal_s=alone["step_s"] / cores,
        beyond_s=beyond_s,
        crowded=on_cpu and wanted > machine_cores,
        device=row["device"],
    )


def _part_s(row: Row, kind: str) -> float:
    return float((row.get(f"{kind}_share") or 0.0) * row["step_s"])


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.3g}"
