"""What the command line shows: tables, progress, and the sentences that say what was found."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_fakes import Comparison, rows
from rich.console import Console

from workbench.bubble import Bubble
from workbench.cli import follow
from workbench.cli.compare import comparison_figures
from workbench.cli.figures import column, ranges
from workbench.cli.run import _progress, run_table
from workbench.cli.sweep import refused_table
from workbench.cli.tables import comparison_tables, cost_table
from workbench.cli.terminal import Terminal
from workbench.cli.verify import proof_table
from workbench.errors import PlanError, RunError
from workbench.records import finite
from workbench.strategies.notation import parse
from workbench.ui.language import speaking, translate
from workbench.verify import Proof


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


def ended_run(**changes: Any) -> SimpleNamespace:
    """Stands for a run that has ended, as far as its figures go."""
    facts: dict[str, Any] = {
        "history": [{"loss": 2.0}, {"loss": 1.5}],
        "plan": SimpleNamespace(
            strategy="pipeline=2", ranks=2, bytes_per_step=2048, mesh=parse("pipeline=2"),
            options=(("compression", "bf16"), ("schedule", "gpipe")),
        ),
        "threads": 1, "device": "cpu", "backend": "shared memory", "step_s": 0.04, "eta_s": None,
        "work": SimpleNamespace(name="digits-mlp", batch_size=64), "first_step": 10,
        "accuracy": 0.9, "moved_bytes": 0, "folder": "runs/a", "checkpoints": ("runs/a/step-1",),
        "checkpoint_error": PlanError("There is no language 'fr'; there are: en, zh."),
        "bubble": Bubble(0.124, (0.1, 0.15), 0.156, 0.111), "step": 2, "steps": 4,
    }  # fmt: skip
    return SimpleNamespace(**facts | changes)


PROOFS = [
    Proof(strategy="data=2", ranks=2, outputs=0.0, parameter_gradients=difference)
    for difference in (1e-15, 1.0)
]


def test_every_line_of_the_terminal_is_chinese_where_that_is_chosen():
    screen = io.StringIO()
    out = Console(file=screen, width=120)
    with speaking("zh"):
        out.print(run_table(ended_run(), Path("kept")))
        out.print(_progress(ended_run()).text)
        out.print(refused_table({"tensor=2": "There is no language 'fr'; there are: en, zh."}))
        for proof in PROOFS:
            out.print(proof_table(proof))
            out.print(translate(str(proof)))
    told = screen.getvalue()
    names = {"data", "pipeline", "tensor", "rank", "digits", "mlp", "cpu", "KiB", "runs", "step"}
    assert set(re.findall("[A-Za-z]{3,}", told)) <= names | {"kept", "compression"}
    assert "在 pipeline=2 下不起作用：compression='bf16'（用于 data）" in told
    assert "40.0 毫秒，中位数" in told
    assert "第 11 步 2，第 12 步 1.5" in told
    english = io.StringIO()
    Console(file=english, width=120).print(run_table(ended_run()))
    assert "2 at step 11, 1.5 at step 12" in english.getvalue()
    assert "12 % measured; in theory 16 % with these stages" in english.getvalue()


def test_numbers_of_a_column_have_the_same_decimals():
    assert column([1.234, 56.78, None]) == ["1.2", "56.8", "-"]
    assert ranges([1.0, None], [9.99, 1.0]) == ["1.00–9.99", "-"]


def test_numbers_that_json_lacks_become_null():
    assert finite({"a": [1.5, float("nan")], "b": float("inf")}) == {"a": [1.5, None], "b": None}
