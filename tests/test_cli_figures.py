"""What the command line shows: tables, progress, and the sentences that say what was found."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from cli_fakes import Comparison, rows
from rich.console import Console

from workbench.cli import follow
from workbench.cli.compare import comparison_figures
from workbench.cli.figures import column, ranges
from workbench.cli.tables import comparison_tables, cost_table
from workbench.cli.terminal import Terminal
from workbench.errors import RunError
from workbench.records import finite
from workbench.ui.language import speaking


def terminal(width: int = 100, **options: Any) -> tuple[Terminal, io.StringIO]:
    """Return a terminal whose progress goes to the returned stream, as to a screen."""
    screen = io.StringIO()
    err = Console(file=screen, force_terminal=True, width=width)
    return Terminal(Console(file=io.StringIO()), err, **options), screen


def test_a_terminal_sees_the_figures_so_far_and_a_bar_that_goes_away():
    shown, screen = terminal()
    comparison = Comparison()
    follow.follow(
        comparison,
        shown,
        lambda: follow.Progressed(45, 90, 12.4, "data=2, repeat 1 of 3"),
        lambda: comparison_tables(rows()),
    )
    for part in ("data=2, repeat 1 of 3", "45/90", "about 12 s left", "vs 1 × 2"):
        assert part in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K")


def test_what_somebody_else_stopped_has_failed():
    shown, _ = terminal(quiet=True)
    with pytest.raises(RunError, match="stopped before it had ended"):
        follow.follow(
            Comparison("stopped"), shown, lambda: follow.Progressed(0, 1, None, "starting")
        )


@pytest.mark.parametrize("width", [100, 90])
def test_tables_fit_and_nothing_is_cut_off(width):
    screen = io.StringIO()
    Console(file=screen, width=width).print(comparison_tables(rows()))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in screen.getvalue()
    assert sum("data=2" in line for line in lines) == 3


def test_costs_and_what_amdahl_says():
    screen = io.StringIO()
    Console(file=screen, width=80).print(cost_table(rows(price_per_epoch=0.00021)))
    assert "0.00021" in screen.getvalue()
    assert "0.80" in screen.getvalue()  # core-seconds of data=2: ten steps of 40 ms on two cores
    without = io.StringIO()
    Console(file=without, width=80).print(cost_table(rows()))
    assert "price" not in without.getvalue()


def test_the_terminal_speaks_chinese_too():
    screen = io.StringIO()
    found = Comparison("done")
    found.rows = rows()
    with speaking("zh"):
        for shown in comparison_figures(found):
            Console(file=screen, width=120).print(shown)
    told = screen.getvalue()
    for part in ("每步用时和加速比", "每轮", "为什么是这个速度", "理论速度的"):
        assert part in told
    assert not re.search("reaches|Most is lost|epoch|speedup", told)


def test_numbers_of_a_column_have_the_same_decimals():
    assert column([1.234, 56.78, None]) == ["1.2", "56.8", "-"]
    assert ranges([1.0, None], [9.99, 1.0]) == ["1.00–9.99", "-"]


def test_numbers_that_json_lacks_become_null():
    assert finite({"a": [1.5, float("nan")], "b": float("inf")}) == {"a": [1.5, None], "b": None}
