"""The data of the picture of the cut: every part of every array of a layer, and who holds it."""

from __future__ import annotations

from workbench.plan import Plan, in_binary_units
from workbench.ui.chart import Columns
from workbench.ui.language import text
from workbench.ui.layer_arrays import arrays_of
from workbench.ui.layer_panels import extent, heading, named
from workbench.ui.layer_picture import number_of


def cut_columns(plan: Plan | None, layer: str | None = None) -> Columns:
    """Return a row for each part of each array of a layer; none without a plan of several ranks."""
    columns: Columns = {
        name: [] for name in ("array", "part", "ranks", "kept", "of_ranks", "layer")
    }
    if plan is None or plan.ranks == 1:
        return columns
    number = number_of(plan, layer)
    for array in arrays_of(plan, number):
        for part in array.parts:
            where = " × ".join(
                f"{text(f'cut.dim.{name}')} {extent(runs)}"
                for name, runs in zip(array.dims, part.runs, strict=True)
            )
            row = (
                heading(array),
                where,
                named(part.ranks),
                in_binary_units(part.numel * array.itemsize),
                part.ranks,
                plan.layers[number].layer.name,
            )
            for column, cell in zip(columns.values(), row, strict=True):
                column.append(cell)
    return columns
