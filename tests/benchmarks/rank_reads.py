"""What the ranks of ``placing.py`` do; a module of its own, which they can import."""

from __future__ import annotations

import time

import numpy as np

from workbench.cluster.context import RankContext


def touch(context: RankContext, job: object) -> float:
    """Read every byte of the rank's rows, as training would; return the time when it is done."""
    for name in ("x", "y"):
        array = context.arrays[name]
        for start in range(0, len(array), 4096):
            np.asarray(array[start : start + 4096]).sum()
    return time.time()
