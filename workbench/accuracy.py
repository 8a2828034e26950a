"""How many of a training batch's targets were right: from what single ranks count to one figure.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from workbench.measured import Row

Counts = Mapping[int, tuple[int, int]]
"""By step: how many targets a rank got right, and of how many."""


class BatchAccuracy:
    """Adds up what ranks have counted, in any order.

    Samples that several ranks have whole are counted by all of them, and all samples are by as
    many: the share of right ones is the same.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._counted: dict[int, dict[int, tuple[int, int]]] = {}

    def add(self, rank: int, counts: Counts) -> list[Row]:
        """Take what a rank has counted; return ``step, accuracy`` of steps that are known now."""
        known: list[Row] = []
        for step, count in counts.items():
            told = self._counted.setdefault(step, {})
            told[rank] = count
            if len(told) == self._ranks:
                del self._counted[step]
                right, of = (sum(column) for column in zip(*told.values(), strict=True))
                if of:
                    known.append({"step": step, "accuracy": right / of})
        return known


def accuracies(per_rank: Iterable[Counts]) -> dict[int, float]:
    """Return the accuracy by step, of those steps that every rank has counted."""
    counts = list(per_rank)
    found = BatchAccuracy(len(counts))
    rows = [row for rank, each in enumerate(counts) for row in found.add(rank, each)]
    return {int(row["step"]): row["accuracy"] for row in rows}
