"""What a pass over all samples costs: seconds of cores and, at a price, money.

A strategy that is twice as fast on four cores takes half the time at twice the cost. Pure: imports
nothing of torch, dask or the UI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workbench.errors import PlanError

HOUR_S = 3600.0

Row = Mapping[str, Any]


def cost(
    row: Row, samples: int, batch_size: int, price_per_worker_hour: float | None
) -> dict[str, float | None]:
    """Return what an epoch of one line of a comparison's table takes.

    Parameters
    ----------
    row:
        As of :func:`workbench.speedup.rows`.
    price_per_worker_hour:
        In any currency: what one worker, on which one rank runs, costs for an hour.

    Returns
    -------
    dict
        ``epoch_s``: seconds of a pass over all samples; ``core_s_per_epoch``: the same times the
        cores that are kept busy (ranks times threads; on GPUs the devices); ``price_per_epoch``:
        in the currency of the price, None without one.
    """
    epoch_s = row["step_s"] * math.ceil(samples / batch_size)
    cores = row["ranks"] * (1 if row["device"] == "cuda" else row["threads"])
    price = price_per_worker_hour
    return {
        "epoch_s": epoch_s,
        "core_s_per_epoch": epoch_s * cores,
        "price_per_epoch": None if price is None else price * row["ranks"] * epoch_s / HOUR_S,
    }


def check_price(price_per_worker_hour: Any) -> float | None:
    """Return a price, or None for none; PlanError for what is no price."""
    price = price_per_worker_hour
    if price is None:
        return None
    fits = isinstance(price, int | float) and not isinstance(price, bool)
    if not fits or not math.isfinite(price) or price < 0:
        raise PlanError(
            f"price_per_worker_hour={price!r} must be a number, 0 or more: what one worker costs "
            "for an hour."
        )
    return float(price)
