"""The figure of memory: what each rank took at most, beside what its plan predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import ColumnDataSource, DataRange1d, FactorRange
from bokeh.transform import dodge

from workbench.plan import in_binary_units
from workbench.ui import look, texts
from workbench.ui.chart import (
    Chart,
    Columns,
    add_empty_text,
    add_hover,
    add_legend,
    blank_figure,
)
from workbench.ui.language import text

MOST_RANKS = 32
"""Ranks that are drawn, of all strategies together: the first."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank of a run: predicted, and measured once the run has ended."""

    label: str
    rank: int
    predicted_bytes: int
    measured_bytes: int | None


Told = tuple[str, Sequence[int], Sequence[int]]
"""Of a run its label, and bytes by rank: predicted, and measured, 0 where that is not known."""


def memory_of_runs(runs: Iterable[Any]) -> Callable[[], list[RankMemory]]:
    """Return what gives the memory of the ranks of each strategy, see :func:`memory_of`.

    It holds no run, and labels are in the language of the thread that calls it.
    """
    sizes = [
        (
            {"strategy": run.plan.strategy, "threads": run.threads},
            run.predicted_memory_bytes,
            run.peak_memory_bytes,
        )
        for run in runs
    ]
    return lambda: memory_of((texts.row_label(row), *each) for row, *each in sizes)


def memory_of(runs: Iterable[Told]) -> list[RankMemory]:
    """Return the memory of the ranks of each strategy; of several runs the most that was taken."""
    predicted: dict[str, Sequence[int]] = {}
    measured: dict[str, Sequence[int]] = {}
    for label, sizes, peaks in runs:
        predicted[label] = sizes
        if peaks:  # none before a run that was read back has told
            before = measured.get(label, peaks)
            measured[label] = [max(pair) for pair in zip(before, peaks, strict=True)]
    return [
        RankMemory(
            label, rank, each, (measured[label][rank] or None) if label in measured else None
        )
        for label, sizes in predicted.items()
        for rank, each in enumerate(sizes)
    ]


def memory_chart() -> Chart:
    """Return the figure: for each rank a hatched bar, predicted, and a full one, measured."""
    fig = blank_figure(
        "memory",
        x_range=DataRange1d(start=0, range_padding=0.3),
        y_range=FactorRange(factors=[], range_padding=0.1),
        height=230,
    )
    source = ColumnDataSource(data=memory_columns([]), name="wb-memory")
    bars = {}
    for kind, place, hatch in (("measured", 0.19, " "), ("predicted", -0.19, "/")):
        bars[f"memory.{kind}"] = fig.hbar(
            y=dodge("label", place, range=fig.y_range), right=kind, height=0.34, source=source,
            fill_color=look.MEMORY[kind], line_color=look.INK, hatch_pattern=hatch,
            hatch_color="white", hatch_alpha=0.7, hatch_scale=8,
        )  # fmt: skip
    told = {
        "": "@label",
        "memory.measured": "@measured_text",
        "memory.predicted": "@predicted_text",
    }
    add_hover(fig, [*bars.values()], told)
    fig.ygrid.grid_line_color = None
    add_legend(fig, bars)
    return Chart("memory", fig, source, add_empty_text(fig, "memory"))


def memory_columns(ranks: Sequence[RankMemory]) -> Columns:
    """Return the columns of the figure, in MiB; what is not measured yet has no bar."""
    drawn = ranks[:MOST_RANKS]
    return {
        "label": [f"{m.label}, {text('timeline.rank', rank=m.rank)}" for m in drawn],
        "measured": [(m.measured_bytes or 0) / 2**20 for m in drawn],
        "predicted": [m.predicted_bytes / 2**20 for m in drawn],
        "measured_text": [
            "–" if m.measured_bytes is None else in_binary_units(m.measured_bytes) for m in drawn
        ],
        "predicted_text": [in_binary_units(m.predicted_bytes) for m in drawn],
    }
