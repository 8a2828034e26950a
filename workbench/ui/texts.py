"""The sentences and number formats that the panel, the figures and the report share.

Every function here takes rows as :class:`workbench.comparison.Comparison` gives them (plain dicts)
and returns plain text in the language of the thread; whoever puts it into HTML escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.ui.language import text, translate

Row = Mapping[str, Any]


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``count(2, "thread") == "2 threads"``."""
    one, *many = text(f"count.{noun}", n=f"{number:,}").split("|")
    return one if number == 1 or not many else many[0]


def milliseconds(seconds: float) -> str:
    """Return a time in ms with three digits that count: ``"41.3 ms"``."""
    ms = seconds * 1e3
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def time_left(seconds: float) -> str:
    """Return a rough time that stays: ``"about 12 s left"``, no more exact than it is."""
    if seconds < 90:
        return text("left.seconds", n=max(1, round(seconds)))
    if seconds < 90 * 60:
        return text("left.minutes", n=round(seconds / 60))
    return text("left.hours", n=f"{seconds / 3600:.1f}")


def share(fraction: float | None) -> str:
    """Return a share of the step in per cent, or a dash while it is unknown."""
    return "–" if fraction is None else f"{fraction:.0%}"


def row_label(row: Row) -> str:
    """Return the short name of a row, threads included where they tell two rows apart."""
    threads = count(row["threads"], "thread")
    if row["strategy"] == "serial":
        return text("row.serial", threads=threads)
    if row["threads"] == 1:
        return str(row["strategy"])
    return text("row.threads", strategy=row["strategy"], threads=threads)


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
    return text(
        "placement.many" if ranks > 1 else "placement.one",
        workers=count(ranks, "worker"),
        threads=count(threads, "thread"),
        device=device_name(device),
    )


def badge(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the state and the sentence of the "same result" badge over ``rows``.

    The state is ``"yes"``, ``"no"``, ``"unknown"`` (still to be proved) or ``"none"`` (no strategy
    stands beside the serial run).
    """
    rows = [row for row in rows if not is_baseline(row)]
    if not rows:
        return "none", text("badge.none")
    wrong = [row for row in rows if row["same_result"] is False]
    if wrong and all(row.get("proof", "").startswith("not by design") for row in wrong):
        named = "; ".join(
            dict.fromkeys(f"{row['strategy']} ({translate(row['proof'])})" for row in wrong)
        )
        return "no", text("badge.by_design", named=named)
    if wrong:
        return "no", text("badge.no", differences=_differences(wrong))
    if all(row["same_result"] for row in rows):
        proofs = {row["proof"] for row in rows if row.get("proof", "in float64") != "in float64"}
        how = f" ({'; '.join(map(translate, sorted(proofs)))})" if proofs else ""
        return "yes", text("badge.yes", how=how, differences=_differences(rows))
    return "unknown", text("badge.unknown")


def _differences(rows: Sequence[Row]) -> str:
    # Runs of one strategy are told once, at their worst.
    worst: dict[str, float | None] = {}
    for row in rows:
        known = [d for d in (worst.get(row["strategy"]), row["max_difference"]) if d is not None]
        worst[row["strategy"]] = max(known, default=None)
    return "; ".join(
        text("badge.differs", name=name, difference=f"{difference:.1g}")
        if difference is not None
        else name
        for name, difference in worst.items()
    )
