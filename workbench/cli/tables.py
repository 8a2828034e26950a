"""The figures of a comparison as tables that fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from workbench.cli.figures import NOTHING, byte_unit, column, ranges
from workbench.spans import KINDS
from workbench.ui.language import text
from workbench.why import why

Row = Mapping[str, Any]


def comparison_tables(rows: Sequence[Row]) -> RenderableType:
    """Return the tables of a comparison: how fast, where the time goes, and what comes out."""
    tables = (speed_table(rows), account_table(rows), result_table(rows))
    return Group(tables[0], Text(), tables[1], Text(), tables[2])


def speed_table(rows: Sequence[Row]) -> Table:
    """Return time per step and speedups, measured; the first two rows are the baselines."""
    cores = rows[1]["threads"] if len(rows) > 1 else None
    table = _table("speed")
    table.add_column(text("term.strategy"), overflow="fold")
    _number(table, text("term.ranks"))
    table.add_column(text("term.device"), no_wrap=True)
    _number(table, text("term.step_ms"))
    _number(table, text("term.range_ms"))
    _number(table, text("term.speedup"))
    _number(table, text("term.range"))
    whole = text("term.all_threads") if cores is None else f"1 × {cores}"
    _number(table, text("term.over", base=whole))
    columns = zip(
        column(_milliseconds(rows, "step_s")),
        ranges(_milliseconds(rows, "step_s_min"), _milliseconds(rows, "step_s_max")),
        column([row["speedup"] for row in rows], places=2),
        ranges(
            [row["speedup_min"] for row in rows], [row["speedup_max"] for row in rows], places=2
        ),
        column([row["speedup_all_threads"] for row in rows], places=2),
        strict=True,
    )
    for row, (step, step_range, speedup, speedup_range, over_all) in zip(
        rows, columns, strict=True
    ):
        table.add_row(
            row["strategy"],
            f"{row['ranks']} × {row['threads']}",
            row["device"],
            Text(step, "bold"),
            Text(step_range, "dim"),
            Text(speedup, "bold"),
            Text(speedup_range, "dim"),
            Text(over_all, "bold"),
        )
    return table


def account_table(rows: Sequence[Row]) -> Table:
    """Return where a rank's step goes."""
    table = _table("account")
    table.add_column(text("term.strategy"), overflow="fold")
    _number(table, text("term.ranks"))
    for kind in KINDS:
        _number(table, text(f"term.{kind}"))
    for row in rows:
        cells = (_share(row.get(f"{kind}_share")) for kind in KINDS)
        table.add_row(row["strategy"], f"{row['ranks']} × {row['threads']}", *cells)
    return table


def result_table(rows: Sequence[Row]) -> Table:
    """Return time, bytes and what comes out side by side, and whether that is as of serial."""
    unit, size = byte_unit([row["bytes_per_step"] for row in rows])
    table = _table("result")
    table.add_column(text("term.strategy"), overflow="fold")
    _number(table, text("term.ranks"))
    _number(table, text("term.step_ms"))
    _number(table, text("term.sent", unit=unit))
    _number(table, text("term.loss"))
    _number(table, text("term.accuracy"))
    _number(table, text("term.same"))
    sent = [None if row["bytes_per_step"] is None else row["bytes_per_step"] / size for row in rows]
    columns = zip(
        column(_milliseconds(rows, "step_s")),
        [f"{value:.0f}" if value is not None else NOTHING for value in sent]
        if unit == "B"
        else column(sent),
        [NOTHING if row.get("loss") is None else f"{row['loss']:.4g}" for row in rows],
        [_share(row["test_accuracy"], ".1f") for row in rows],
        strict=True,
    )
    for row, cells in zip(rows, columns, strict=True):
        table.add_row(
            row["strategy"], f"{row['ranks']} × {row['threads']}", *cells, same_result(row)
        )
    return table


def cost_table(rows: Sequence[Row]) -> Table:
    """Return what an epoch takes of the cores, and what it costs where there is a price."""
    priced = any(row["price_per_epoch"] is not None for row in rows)
    table = _table("cost")
    table.add_column(text("term.strategy"), overflow="fold")
    _number(table, text("term.ranks"))
    names = {"epoch_s": text("term.epoch_s"), "core_s_per_epoch": text("term.epoch_core_s")}
    names |= {"price_per_epoch": text("term.price")} if priced else {}
    names |= {"speedup": text("term.speedup")}
    for name in names.values():
        _number(table, name)
    cells = {name: column([row[name] for row in rows]) for name in names}
    if priced:
        cells["price_per_epoch"] = [_price(row["price_per_epoch"]) for row in rows]
    for row, *told in zip(rows, *cells.values(), strict=True):
        table.add_row(row["strategy"], f"{row['ranks']} × {row['threads']}", *told)
    return table


def _price(value: float | None) -> str:
    """Return a price in no currency; of an epoch of seconds it may be far below a cent."""
    return NOTHING if value is None else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def why_table(rows: Sequence[Row], cores: int) -> Table:
    """Return what each strategy's step takes beyond the ideal, which is serial divided by cores.

    ``rows`` begin with that of one process with one thread; ``cores`` are those of the machine.
    """
    table = _table("why")
    table.add_column(text("term.strategy"), overflow="fold")
    _number(table, text("term.ideal"))
    for kind in KINDS:
        _number(table, f"+ {text(f'term.{kind}')}")
    _number(table, text("term.is_step"))
    found = [why(row, rows[0], cores) for row in rows if row["strategy"] != "serial"]
    for each in found:
        parts_s = [each.ideal_s, *(each.beyond_s[kind] for kind in KINDS), each.step_s]
        table.add_row(each.strategy, *column([1e3 * part_s for part_s in parts_s]))
    return table


def same_result(row: Row) -> Text:
    """Return whether the row's result is that of serial, and by how much it differs at most."""
    same, difference = row["same_result"], row["max_difference"]
    if same is None:
        return Text(NOTHING, "dim")
    proof = row.get("proof", "")
    if proof.startswith("not by design"):
        return Text(text("term.by_design"), "yellow")
    by = "" if difference is None else f" ({difference:.0e})" if difference else " (0)"
    if same and "bf16" in proof:
        return Text(
            f"{text('term.float64')}{by}", "green"
        )  # what the rounding of bf16 does is not in it
    if same:
        return Text(f"{text('term.yes')}{by}", "green")
    return Text(f"{text('term.no')}{by}", "bold red")


def _number(table: Table, title: str) -> None:
    """Add a column of numbers."""
    table.add_column(title, justify="right", no_wrap=True)


def _table(name: str) -> Table:
    return Table(
        title=text(f"term.title.{name}"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="dim",
    )


def _milliseconds(rows: Sequence[Row], key: str) -> list[float | None]:
    return [None if row[key] is None else 1000 * row[key] for row in rows]


def _share(value: float | None, style: str = ".0f") -> str:
    return NOTHING if value is None else format(100 * value, style)
