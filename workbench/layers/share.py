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
    """

    seed: int = 0
    step: int = 0
    micro: int = 0
    start: int = 0
    rows: int = 0
