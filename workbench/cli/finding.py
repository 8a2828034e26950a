"""What a comparison found, in plain sentences that claim nothing that was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.cli.figures import number
from workbench.ui.texts import count

Row = Mapping[str, Any]

FEWEST_REPEATS = 3
"""With fewer there is no spread to judge a difference by."""


def finding(rows: Sequence[Row], cores: int) -> list[str]:
    """Return the sentences for every strategy beyond the two baselines.

    ``cores`` is how many the machine gives. A strategy wins or loses against the faster baseline,
    which is most often one process with as many threads as the strategy has cores; and only where
    the ranges of their repeats do not meet.
    """
    baselines, strategies = rows[:2], rows[2:]
    return [
        sentence
        for row in strategies
        if len(baselines) == 2 and row["step_s"] is not None
        for sentence in _about(row, baselines[0], baselines[1], cores)
    ]


def _about(row: Row, one_thread: Row, all_threads: Row, cores: int) -> list[str]:
    rival = min(one_thread, all_threads, key=lambda baseline: baseline["step_s"])
    name, against = row["strategy"], count(rival["threads"], "thread")
    found = [
        f"{name} takes {_ms(row['step_s'])} ms per step: {number(row['speedup'])} times as fast as "
        f"1 process with 1 thread ({_ms(one_thread['step_s'])} ms) and "
        f"{number(row['speedup_all_threads'])} times as fast as 1 process with "
        f"{count(all_threads['threads'], 'thread')} ({_ms(all_threads['step_s'])} ms), which is "
        "what you would use instead."
    ]
    if row["repeats"] < FEWEST_REPEATS:
        found.append(
            f"That is {count(row['repeats'], 'repeat')}: measure {FEWEST_REPEATS} or more to see "
            "whether it lasts."
        )
    elif row["step_s_max"] < rival["step_s_min"]:
        found.append(f"So {name} wins here, and no repeat says otherwise.")
    elif row["step_s_min"] > rival["step_s_max"]:
        found.append(f"So {name} loses here to 1 process with {against}: {_why(row, rival)}")
    else:
        found.append(
            f"Against {against} that is a draw: the repeats of both reach into each other's range."
        )
    wanted = row["ranks"] * row["threads"]
    if row["device"] == "cpu" and wanted > cores:
        found.append(
            f"It asks for {count(wanted, 'core')} where there {'is' if cores == 1 else 'are'} "
            f"{cores}, so its ranks take turns."
        )
    return [*found, *_sameness(row)]


def _why(row: Row, rival: Row) -> str:
    """Say where the time goes by which ``row`` is slower, as far as it was measured."""
    lost = row["step_s"] - rival["step_s"]
    comm, wait = row["comm_share"] * row["step_s"], row["wait_share"] * row["step_s"]
    apart = (
        f"of each step its ranks spend {_ms(comm)} ms on communication and {_ms(wait)} ms waiting "
        "for each other"
    )
    if comm + wait >= lost:
        return f"{apart}, which is more than the {_ms(lost)} ms that it is slower."
    compute = row["compute_share"] * row["step_s"]
    alone = rival["compute_share"] * rival["step_s"]
    return (
        f"{apart}, and {_ms(compute)} ms computing their share, where 1 process computes all of it "
        f"in {_ms(alone)} ms."
    )


def _sameness(row: Row) -> list[str]:
    if row["same_result"] is None:
        return []
    proof = row.get("proof", "")
    if proof.startswith("not by design"):
        return [
            f"The result of {row['strategy']} is not that of serial, by design "
            f"({proof.partition(': ')[2]}): compare the losses."
        ]
    difference = row["max_difference"]
    by = "" if difference is None else f": the largest difference is {difference:.1e}"
    verdict = "the same as" if row["same_result"] else "NOT the same as"
    how = f" {proof}" if "bf16" in proof else ""
    return [f"The result of {row['strategy']} is {verdict} that of serial{how}{by}."]


def _ms(seconds: float) -> str:
    return number(1000 * seconds)
