"""Why a strategy is as fast as it is, and the sentences that say what a comparison found."""

from __future__ import annotations

import io

import pytest
from cli_fakes import rows
from fake_comparison import row
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from workbench.cli.tables import why_table
from workbench.findings import findings, sameness
from workbench.strategies import STRATEGIES
from workbench.why import DOES, KINDS, OF_OVERHEAD, why

SHARES = st.lists(st.floats(0.0, 0.2), min_size=len(KINDS), max_size=len(KINDS))


def a_row(strategy: str, ranks: int, step_s: float, **shares: float):
    return row(strategy, ranks, 1, step_s, **{f"{k}_share": shares.get(k, 0.0) for k in KINDS})


@given(SHARES, SHARES, st.floats(1e-4, 10), st.floats(1e-4, 10), st.integers(1, 8))
def test_ideal_and_parts_add_up_to_the_measured_step(mine, alone, step_s, alone_s, cores):
    one = a_row("serial", 1, alone_s, **dict(zip(KINDS, alone, strict=True)))
    cut = a_row("data=4", 4, step_s, **dict(zip(KINDS, mine, strict=True)))
    found = why(cut, one, cores)
    assert found.cores == min(4, cores)
    assert found.ideal_s + sum(found.beyond_s.values()) == pytest.approx(step_s, rel=1e-9)


@pytest.mark.parametrize("axis", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_axis_says_what_to_try_against_every_loss(axis, kind):
    one = a_row("serial", 1, 0.1, compute=1.0)
    lost = {"compute": 0.5, kind: 0.5} if kind != "compute" else {"compute": 1.0}
    found = why(a_row(f"{axis}=2", 2, 0.1, **lost), one, 2)
    assert found.worst == kind
    assert f"lost by {DOES[kind]}: 50 of 100 ms a step (50%)" in found.sentence
    remedies = {**STRATEGIES[axis].remedies, "overhead": OF_OVERHEAD}
    assert f"Try {remedies[kind]}." in found.sentence


def test_what_a_strategy_reaches_is_measured_by_the_cores_that_there_are():
    one = a_row("serial", 1, 0.1, compute=1.0)
    found = why(a_row("data=4", 4, 0.06, compute=0.4, wait=0.6), one, 2)
    assert found.efficiency == pytest.approx(0.05 / 0.06)
    assert "Use fewer ranks or threads: there are 2 cores." in found.sentence
    on_gpu = a_row("data=4", 4, 0.026, compute=1.0) | {"device": "cuda"}
    assert "little left to gain" in why(on_gpu, one | {"device": "cuda"}, 2).sentence


def test_of_a_hybrid_the_axis_with_most_ranks_is_advised():
    one = a_row("serial", 1, 0.1, compute=1.0)
    found = why(a_row("data=2,tensor=4", 8, 0.05, compute=0.5, comm=0.5), one, 8)
    assert STRATEGIES["tensor"].remedies["comm"] in found.sentence


@pytest.mark.parametrize(
    ("changes", "cores", "sentence"),
    [
        ({}, 2, "2.00 times as fast as 1 process with 1 thread (80 ms)"),
        ({}, 2, "1.25 times as fast as 1 process with 2 threads (50 ms), which is what you"),
        ({}, 2, "So data=2 wins here"),
        ({"step_s_max": 0.05}, 2, "that is a draw"),
        ({"step_s": 0.1}, 2, "slower (0.80 times) than 1 process with 1 thread"),
        (
            {"step_s": 0.06, "compute_share": 0.6, "comm_share": 0.3},
            2,
            "moving numbers between ranks: 15.6 of 60 ms",
        ),
        ({"step_s": 0.09}, 2, "So data=2 loses here to 1 process with 2 threads."),
        ({"repeats": 1}, 2, "measure 3 or more"),
        ({"step_s": 0.079}, 1, "data=2 reaches 101% of what 1 core can"),
    ],
)  # fmt: skip
def test_the_findings_say_what_was_measured(changes, cores, sentence):
    found = findings(rows(**changes), cores)
    assert any(sentence in each for each in found), found


def test_threads_that_do_harm_are_no_rival():
    one, two, strategy = rows(step_s=0.1)
    found = findings([one, two | {"step_s": 0.2, "step_s_max": 0.3}, strategy], 2)
    assert any("loses here to 1 process with 1 thread." in sentence for sentence in found)


def test_one_core_has_one_baseline():
    one, _, strategy = rows()
    found = findings([one, strategy | {"speedup_all_threads": None}], 1)
    assert "2.00 times as fast as 1 process with 1 thread (80 ms)." in found[0]


def test_there_is_no_finding_without_a_strategy():
    assert findings(rows()[:2], 2) == []
    assert sameness(rows()[:2]) == []


def test_sameness_is_told_with_its_difference():
    assert sameness(rows()) == [
        "The result of data=2 is the same as that of serial: the largest difference is 3.0e-15."
    ]
    assert "is NOT the same as" in sameness(rows(same_result=False))[0]


def test_the_table_goes_from_the_ideal_to_the_measured_step():
    screen = io.StringIO()
    Console(file=screen, width=80).print(why_table(rows(), 2))
    (line,) = [line for line in screen.getvalue().splitlines() if "data=2" in line]
    assert line.split()[1] == "40.0"
    assert line.split()[-1] == "40.0"
