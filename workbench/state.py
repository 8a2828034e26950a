"""What two runs have come to, compared where it lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workbench.errors import RunError

if TYPE_CHECKING:
    from workbench.run import Run

LIMIT_S = 60.0


def largest_difference(wanted: Run, got: Run) -> float:
    """Return the largest absolute difference of losses, parameters and buffers of two ended runs.

    Computed on the workers that hold the state; only the number comes back. Infinite where
    something is not a number in one of them.

    Raises
    ------
    RunError
        If it takes longer than a minute, or state is lost.
    """
    import dask.array as da

    gaps = [abs(a["loss"] - b["loss"]) for a, b in zip(wanted.history, got.history, strict=True)]
    lazy = []
    for kind in ("parameter", "buffer"):
        found = got.state(kind)
        for name, array in wanted.state(kind).items():
            if array.size:
                lazy.append(abs(array.astype("f8") - found[name].astype("f8")).max())
    if lazy:
        future = wanted.lab.client.compute(da.stack(lazy).max())
        try:
            gaps.append(float(future.result(timeout=LIMIT_S)))
        except TimeoutError as error:
            raise RunError(
                f"The weights of two runs could not be compared within {LIMIT_S:.0f} s."
            ) from error
    return max((math.inf if math.isnan(gap) else gap for gap in gaps), default=0.0)
