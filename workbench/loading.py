"""A rank's samples as tensors: taken while the step before computes, where taking them costs."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from workbench.cluster.context import RankContext
from workbench.order import Order, Rows
from workbench.plan import Plan
from workbench.sources.source import Rows as RowsOfSource

MicroBatch = tuple[Rows, Tensor, Tensor]
"""Which samples, the samples, and their targets."""


class Loader:
    """Takes the rows of each step from a rank's arrays.

    Arrays in memory are taken when they are wanted: that is faster than asking a thread. Mapped
    files, rows that are read, and all that goes to a GPU (by way of pinned memory) are taken by a
    thread one step ahead, so a step waits only where loading takes longer than computing; its
    ``load`` span is that wait. Samples come in ``dtype``, targets as they are.
    """

    def __init__(
        self,
        context: RankContext,
        plan: Plan,
        order: Order,
        dtype: torch.dtype,
        stop_step: int,
    ) -> None:
        self._arrays, self._device = context.arrays, context.device
        self._order, self._dtype, self._stop_step = order, dtype, stop_step
        self._where = (plan.mesh.replicas, plan.mesh.replica(context.rank))
        self._accumulate = plan.batch.accumulate
        costly = self._device.type == "cuda" or any(
            isinstance(self._arrays.get(name), np.memmap | RowsOfSource) for name in ("x", "y")
        )
        self._thread = ThreadPoolExecutor(1, "workbench-load") if costly else None
        self._ahead: dict[int, Future[list[MicroBatch]]] = {}

    def take(self, step: int) -> list[MicroBatch]:
        """Return rows, samples and targets of each micro-batch of ``step``, on the device."""
        if self._thread is None:
            return self._made(step)
        ready = self._ahead.pop(step, None) or self._thread.submit(self._made, step)
        found = ready.result()
        if step + 1 < self._stop_step:
            self._ahead[step + 1] = self._thread.submit(self._made, step + 1)
        else:
            self._thread.shutdown(wait=False)
        if self._device.type == "cpu":
            return found
        return [
            (rows, x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True))
            for rows, x, y in found
        ]

    def _made(self, step: int) -> list[MicroBatch]:
        rows = self._order.rows(step, *self._where, self._accumulate)
        return [
            (each, self._taken("x", each, self._dtype), self._taken("y", each, None))
            for each in rows
        ]

    def _taken(self, name: str, rows: Rows, dtype: torch.dtype | None) -> Tensor:
        """Return samples or targets of one micro-batch; a stand-in if there are none."""
        index = rows.index if len(rows.index) else np.zeros(1, dtype=np.int64)
        taken = torch.from_numpy(np.asarray(self._arrays[name].take(index, axis=0)))
        taken = taken if dtype is None else taken.to(dtype)
        return taken.pin_memory() if self._device.type == "cuda" else taken
