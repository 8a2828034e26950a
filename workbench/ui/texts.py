"""The sentences and number formats that the panel, the figures and the report share.

Every function here takes rows as :class:`workbench.compare.Comparison` gives them (plain dicts) and
returns plain text; whoever puts it into HTML escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

HOW_TO_READ = {
    "speedup": "Each point is measured: the median time per step of one process with one thread, "
    "divided by that of the strategy. Whiskers run from the slowest to the fastest repeat. "
    "On the dashed line, n cores are n times faster; the dotted line is one process that has all "
    "the cores as threads, which is what you would use instead.",
    "loss": "Every run takes the same steps on the same batches, so all curves fall to the same "
    "loss (unless the table says: not by design); the faster strategy gets there in less time, "
    "further to the left.",
    "share": "One bar is one step of one rank. Compute is the work itself; comm moves numbers "
    "between ranks; wait is for slower ranks; optimizer updates the weights. A strategy wins when "
    "compute shrinks by more than comm and wait add.",
}
"""How to read each figure, by the figure's name."""

EMPTY = {
    "speedup": "Press Run to see the measured speedup.",
    "loss": "Press Run to see the loss fall.",
    "share": "Press Run to see where each step's time goes.",
}
"""What a figure says before it has data, by the figure's name."""


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``count(2, "thread") == "2 threads"``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three digits that count: ``"41.3 ms"``."""
    ms = seconds * 1e3
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def time_left(seconds: float) -> str:
    """Return a rough time that stays: ``"about 12 s left"``, no more exact than it is."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def share(fraction: float | None) -> str:
    """Return a share of the step in per cent, or a dash while it is unknown."""
    return "–" if fraction is None else f"{fraction:.0%}"


def row_label(row: Row) -> str:
    """Return the short name of a row, threads included where they tell two rows apart."""
    threads = count(row["threads"], "thread")
    if row["strategy"] == "serial":
        return f"serial, {threads}"
    return row["strategy"] if row["threads"] == 1 else f"{row['strategy']}, {threads} each"


def cores(row: Row) -> int:
    """Return how many cores (on a GPU: devices) the row used: ranks times threads per rank."""
    return int(row["ranks"] if row.get("device") == "cuda" else row["ranks"] * row["threads"])


def is_baseline(row: Row) -> bool:
    """Return whether the row is one of the two baselines: one process, with one or all threads."""
    return bool(row["strategy"] == "serial")


def device_name(device: str | None) -> str:
    """Return the device as people write it."""
    return {"cpu": "CPU", "cuda": "GPU"}.get(device or "", device or "")


def placement(ranks: int, threads: int, device: str | None) -> str:
    """Return where a strategy runs: ``"2 workers × 1 thread each, CPU"``."""
    each = " each" if ranks > 1 else ""
    return f"{count(ranks, 'worker')} × {count(threads, 'thread')}{each}, {device_name(device)}"


def badge(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the state and the sentence of the "same result" badge over ``rows``.

    The state is ``"yes"``, ``"no"``, ``"unknown"`` (still to be proved) or ``"none"`` (no strategy
    stands beside the serial run).
    """
    rows = [row for row in rows if not is_baseline(row)]
    if not rows:
        return "none", "Only the serial run: nothing to compare its result with."
    wrong = [row for row in rows if row["same_result"] is False]
    if wrong and all(row.get("proof", "").startswith("not by design") for row in wrong):
        named = "; ".join(dict.fromkeys(f"{row['strategy']} ({row['proof']})" for row in wrong))
        return "no", f"Not the serial result: {named}. Compare loss and accuracy."
    if wrong:
        return "no", f"NOT the same result as serial: {_differences(wrong)}"
    if all(row["same_result"] for row in rows):
        proofs = {row["proof"] for row in rows if row.get("proof", "in float64") != "in float64"}
        how = f" ({'; '.join(sorted(proofs))})" if proofs else ""
        return "yes", f"Same result as serial{how}: {_differences(rows)}"
    return "unknown", "Same result as serial? Not checked yet."


def _differences(rows: Sequence[Row]) -> str:
    # Runs of one strategy are told once, at their worst.
    worst: dict[str, float | None] = {}
    for row in rows:
        known = [d for d in (worst.get(row["strategy"]), row["max_difference"]) if d is not None]
        worst[row["strategy"]] = max(known, default=None)
    return "; ".join(
        f"{name} differs by at most {difference:.1g}" if difference is not None else f"{name}"
        for name, difference in worst.items()
    )
