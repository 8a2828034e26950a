"""Amdahl's law fitted to measured speedups, with the serial fraction that it finds.

Amdahl ("Validity of the single processor approach", AFIPS 1967): if a fraction f of the work cannot
be divided, n cores are S(n) = 1 / (f + (1 - f) / n) times as fast, and never more than 1 / f. Karp
and Flatt ("Measuring parallel processor performance", CACM 33(5), 1990) turn that round: what was
measured at n gives f(n) = (1 / S - 1 / n) / (1 - 1 / n). If f(n) grows with n, it is the overhead
that grows (communication, waiting); if it stays, that part of the work is serial.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.strategies.notation import parse

Row = Mapping[str, Any]

MOST_GUESSED = 3
"""Lines that are drawn through one point each; more only hide the points."""

GROWS = 0.05
"""Serial fractions that differ by more than this between degrees are said to grow or to fall."""


@dataclass(frozen=True)
class Point:
    """A measured speedup on ``cores`` cores, and the serial fraction that it alone gives."""

    cores: int
    speedup: float

    @property
    def karp_flatt(self) -> float:
        """The serial fraction by Karp and Flatt; below 0 where the speedup is beyond ideal."""
        return (1 / self.speedup - 1 / self.cores) / (1 - 1 / self.cores)


@dataclass(frozen=True)
class Fit:
    """Amdahl's law for one strategy, by what was measured at all of its degrees.

    Attributes
    ----------
    strategy:
        The axes without degrees: ``"data"``, ``"data,tensor"``.
    serial_fraction:
        f of the law, by least squares over 1 / S. Of one point it is that of Karp and Flatt. More
        than 1 where the strategy is slower than one core, below 0 where faster than ideal.
    points:
        What it rests on, by rising number of cores.
    """

    strategy: str
    serial_fraction: float
    points: tuple[Point, ...]

    def speedup(self, cores: float) -> float:
        """Return the speedup that the law gives on ``cores`` cores; more than 0 of them."""
        slowness = self.serial_fraction + (1 - self.serial_fraction) / cores
        return 1 / slowness if slowness > 0 else float("inf")

    @property
    def limit(self) -> float | None:
        """The speedup that no number of cores exceeds; None where there is no such limit."""
        return 1 / self.serial_fraction if self.serial_fraction > 0 else None

    @property
    def sentence(self) -> str:
        """What the fit says, and how far it can be trusted."""
        measured = f"at {', '.join(str(point.cores) for point in self.points)} cores"
        if self.serial_fraction >= 1:
            return f"{self.strategy} gains nothing {measured}: it is slower than one core."
        if self.limit is None:
            return f"{self.strategy} is as fast as ideal or faster {measured}."
        said = (
            f"By Amdahl's law {100 * self.serial_fraction:.0f} % of a step of {self.strategy} is "
            f"not divided ({measured}), so that it gets at most {self.limit:.3g} times as fast"
        )
        if len(self.points) == 1:
            return f"{said}; one degree says nothing of how that changes with more cores."
        first, last = self.points[0].karp_flatt, self.points[-1].karp_flatt
        turned = f"{100 * first:.0f} % to {100 * last:.0f} %"
        if last > first + GROWS:
            return f"{said}. By Karp and Flatt it grows from {turned}: the overhead grows."
        if last < first - GROWS:
            return f"{said}. By Karp and Flatt it falls from {turned}."
        return f"{said}. By Karp and Flatt it stays ({turned}): that part is serial."

    def to_json(self) -> dict[str, Any]:
        """Return the fit, ready for JSON."""
        return {
            "strategy": self.strategy,
            "serial_fraction": self.serial_fraction,
            "limit": self.limit,
            "points": [
                {"cores": p.cores, "speedup": p.speedup, "karp_flatt": p.karp_flatt}
                for p in self.points
            ],
        }


def fits(rows: Sequence[Row]) -> tuple[Fit, ...]:
    """Return the fit of every strategy that was measured on more than one core.

    Parameters
    ----------
    rows:
        As of :func:`workbench.speedup.rows`: speedups are over one process with one thread. Rows
        of the same axes are one strategy; where several ran on as many cores, the fastest counts.
    """
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        cores = row["ranks"] if row["device"] == "cuda" else row["ranks"] * row["threads"]
        if row["strategy"] != "serial" and row["speedup"] is not None and cores > 1:
            best = found[axes_of(row["strategy"])]
            best[cores] = max(best.get(cores, 0.0), row["speedup"])
    return tuple(
        fit(name, [Point(cores, speedup) for cores, speedup in sorted(best.items())])
        for name, best in found.items()
    )


def worth_a_line(rows: Sequence[Row]) -> tuple[Fit, ...]:
    """Return the fits that a figure draws: those over several degrees, else up to three others.

    None where the law has nothing to say: slower than one core, or faster than ideal.
    """
    found = tuple(each for each in fits(rows) if 0 <= each.serial_fraction < 1)
    several = tuple(fit for fit in found if len(fit.points) > 1)
    return several or found[: MOST_GUESSED if len(found) <= MOST_GUESSED else 0]


def fit(strategy: str, points: Sequence[Point]) -> Fit:
    """Fit Amdahl's law to ``points``, each on two cores or more.

    With x = 1 - 1 / n and y = 1 / S - 1 / n the law is y = f x, a line through the origin; so
    f = sum(x y) / sum(x x).
    """
    x = [1 - 1 / point.cores for point in points]
    y = [1 / point.speedup - 1 / point.cores for point in points]
    fraction = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    return Fit(strategy, fraction, tuple(points))


def axes_of(strategy: str) -> str:
    """Return the axes of a strategy without their degrees: ``"data,tensor"``."""
    return ",".join(axis for axis, _ in parse(strategy).axes)
