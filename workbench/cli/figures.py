"""How numbers are written: with the same decimals down a column, units in the header."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"
"""What stands for a number that is not known, or does not apply."""


def column(values: Sequence[float | None], places: int | None = None) -> list[str]:
    """Return the numbers of one column with ``places`` decimals, or as many as suit the largest."""
    if places is None:
        places = decimals([value for value in values if value is not None])
    return [NOTHING if value is None else f"{value:.{places}f}" for value in values]


def ranges(
    lows: Sequence[float | None], highs: Sequence[float | None], places: int | None = None
) -> list[str]:
    """Return one column of ranges, ``"20.1–22.4"``, with decimals as in :func:`column`."""
    if places is None:
        places = decimals([value for value in (*lows, *highs) if value is not None])
    return [
        NOTHING if low is None or high is None else f"{low:.{places}f}–{high:.{places}f}"
        for low, high in zip(lows, highs, strict=True)
    ]


def decimals(values: Sequence[float]) -> int:
    """Return how many decimals show the largest of ``values`` with three digits or more."""
    largest = max((abs(value) for value in values), default=0.0)
    return 2 if largest < 10 else 1 if largest < 1000 else 0


def number(value: float) -> str:
    """Return one number by itself, as in a sentence."""
    return f"{value:.{decimals([value])}f}"


def byte_unit(values: Sequence[int | None]) -> tuple[str, int]:
    """Return the unit that suits a column of byte counts, and its size in bytes."""
    largest = max((value for value in values if value is not None), default=0)
    if largest < 4 * 2**10:
        return "B", 1
    return ("KiB", 2**10) if largest < 4 * 2**20 else ("MiB", 2**20)
