"""What a comparison found, in plain sentences that claim nothing that was not measured.

The terminal, the panel and the report all say these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.why import why

Row = Mapping[str, Any]

FEWEST_REPEATS = 3
"""With fewer there is no spread to judge a difference by."""


def findings(rows: Sequence[Row], cores: int) -> list[str]:
    """Return the sentences for every strategy beyond the baselines.

    A strategy wins or loses against the faster baseline, which is most often one process with as
    many threads as the strategy has cores; and only where the ranges of their repeats do not meet.

    Parameters
    ----------
    rows:
        As of :func:`workbench.speedup.rows`; those of serial runs are the baselines.
    cores:
        How many the machine gives.
    """
    baselines = [row for row in rows if row["strategy"] == "serial"]
    strategies = [row for row in rows if row["strategy"] != "serial" and row["speedup"] is not None]
    return [sentence for row in strategies for sentence in _about(row, baselines, cores)]


def sameness(rows: Sequence[Row]) -> list[str]:
    """Return for every strategy that was proved whether its result is that of serial."""
    found = []
    for row in rows:
        if row["strategy"] == "serial" or row["same_result"] is None:
            continue
        proof = row.get("proof", "")
        if proof.startswith("not by design"):
            found.append(
                f"The result of {row['strategy']} is not that of serial, by design "
                f"({proof.partition(': ')[2]}): compare the losses."
            )
            continue
        difference = row["max_difference"]
        by = "" if difference is None else f": the largest difference is {difference:.1e}"
        verdict = "the same as" if row["same_result"] else "NOT the same as"
        how = f" {proof}" if "bf16" in proof else ""
        found.append(f"The result of {row['strategy']} is {verdict} that of serial{how}{by}.")
    return found


def _about(row: Row, baselines: Sequence[Row], cores: int) -> list[str]:
    found = [_speed(row, baselines)]
    rival = min(baselines, key=lambda baseline: baseline["step_s"])
    against = f"1 process with {_count(rival['threads'], 'thread')}"
    if row["repeats"] < FEWEST_REPEATS:
        found.append(
            f"That is {_count(row['repeats'], 'repeat')}: measure {FEWEST_REPEATS} or more to see "
            "whether it lasts."
        )
    elif row["step_s_max"] < rival["step_s_min"]:
        found.append(f"So {row['strategy']} wins here, and no repeat says otherwise.")
    elif row["step_s_min"] > rival["step_s_max"]:
        found.append(f"So {row['strategy']} loses here to {against}.")
    else:
        found.append(
            f"Against {against} that is a draw: the repeats of both reach into each other's range."
        )
    return [*found, why(row, baselines[0], cores).sentence]


def _speed(row: Row, baselines: Sequence[Row]) -> str:
    one, *others = baselines
    threads = "" if row["threads"] == 1 else f" with {row['threads']} threads each"
    sentence = (
        f"{row['strategy']}{threads} takes {_ms(row['step_s'])} a step, measured: it is "
        f"{_times(row['speedup'])} 1 process with 1 thread ({_ms(one['step_s'])})"
    )
    if others and row["speedup_all_threads"] is not None:
        sentence += (
            f", and {_times(row['speedup_all_threads'])} 1 process with "
            f"{_count(others[0]['threads'], 'thread')} ({_ms(others[0]['step_s'])}), which is what "
            "you would use instead"
        )
    return sentence + "."


def _times(speedup: float) -> str:
    if speedup >= 1.005:
        return f"{speedup:.2f} times as fast as"
    if speedup > 0.995:
        return "as fast as"
    return f"slower ({speedup:.2f} times) than"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ms(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:,.0f} ms" if ms >= 1000 else f"{ms:.3g} ms"
