"""What a rank computes just now: the place that its samples have in the whole batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Share:
    """The rank's part of the micro-batch in hand; the engine sets it, parallel layers read it.

    Attributes
    ----------
    seed, step, micro:
        Seed of the run, number of the step, number of the micro-batch within it.
    start, rows:
        The rank's samples are the places ``[start, start + rows)`` of the serial micro-batch. With
        ``rows == 0`` the rank computes on one sample that counts for nothing, since many models
        cannot take an empty batch.
    alone:
        Whether this rank computes by itself just now, and layers may not call the others: when it
        scores its own part of the test data.
    """

    seed: int = 0
    step: int = 0
    micro: int = 0
    start: int = 0
    rows: int = 0
    alone: bool = False
