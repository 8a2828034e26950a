"""What the command line shows: tables, progress, and the sentences that say what was found."""

from __future__ import annotations

import io
from typing import Any

import pytest
from cli_fakes import Comparison, rows
from rich.console import Console

from workbench.cli import follow
from workbench.cli.figures import column, ranges
from workbench.cli.finding import finding
from workbench.cli.tables import comparison_tables
from workbench.cli.terminal import Terminal, finite
from workbench.errors import RunError


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
    assert sum("data=2" in line for line in lines) == 2


def test_numbers_of_a_column_have_the_same_decimals():
    assert column([1.234, 56.78, None]) == ["1.2", "56.8", "-"]
    assert ranges([1.0, None], [9.99, 1.0]) == ["1.00–9.99", "-"]


def test_numbers_that_json_lacks_become_null():
    assert finite({"a": [1.5, float("nan")], "b": float("inf")}) == {"a": [1.5, None], "b": None}


@pytest.mark.parametrize(
    ("changes", "cores", "sentence"),
    [
        ({}, 2, "So data=2 wins here"),
        ({"step_s_max": 0.05}, 2, "that is a draw"),
        ({"step_s": 0.06, "comm_share": 0.1, "wait_share": 0.2}, 2,
         "6.00 ms on communication and 12.0 ms waiting for each other, which is more"),
        ({"step_s": 0.06, "comm_share": 0.01, "wait_share": 0.01}, 2,
         "48.0 ms computing their share, where 1 process computes all of it in 40.0 ms"),
        ({"step_s": 0.09}, 2, "So data=2 loses here to 1 process with 2 threads: of each step"),
        ({"repeats": 1}, 2, "measure 3 or more"),
        ({}, 1, "asks for 2 cores where there is 1, so its ranks take turns"),
        ({}, 2, "is the same as that of serial: the largest difference is 3.0e-15"),
        ({"same_result": False}, 2, "is NOT the same as that of serial"),
    ],
)  # fmt: skip
def test_the_finding_says_what_was_measured(changes, cores, sentence):
    assert any(sentence in found for found in finding(rows(**changes), cores))


def test_threads_that_do_harm_are_no_rival():
    one, two, strategy = rows(step_s=0.1)
    found = finding([one, two | {"step_s": 0.2, "step_s_max": 0.3}, strategy], 2)
    assert any("loses here to 1 process with 1 thread:" in sentence for sentence in found)


def test_there_is_no_finding_without_a_strategy():
    assert finding(rows()[:2], 2) == []
