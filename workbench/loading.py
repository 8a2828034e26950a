"""A rank's samples as tensors: taken while the step before computes, where taking them costs."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.cluster.context import RankContext
from workbench.given import inputs_among
from workbench.order import Order, Rows
from workbench.plan import Plan
from workbench.sources.source import Rows as RowsOfSource

MicroBatch = tuple[Rows, tuple[Tensor, ...], Tensor]
"""Which samples, what the model is given of them, and their targets."""


class Loader:
    """Takes the rows of each step from a rank's arrays.

    Arrays in memory are taken when they are wanted: that is faster than asking a thread. Mapped
    files, rows that are read, and all that goes to a GPU (by way of pinned memory) are taken by a
    thread one step ahead, so a step waits only where loading takes longer than computing; its
    ``load`` span is that wait. Each input comes in its one of ``dtypes``, targets as they are.
    """

    def __init__(
        self,
        context: RankContext,
        plan: Plan,
        order: Order,
        dtypes: Sequence[torch.dtype],
        stop_step: int,
    ) -> None:
        self._inputs = list(zip(inputs_among(context.arrays), dtypes, strict=True))
        self._targets, self._device = context.arrays["y"], context.device
        self._order, self._stop_step = order, stop_step
        self._where = (plan.mesh.replicas, plan.mesh.replica(context.rank))
        self._accumulate = plan.batch.accumulate
        costly = self._device.type == "cuda" or any(
            isinstance(array, np.memmap | RowsOfSource)
            for array in (*(array for array, _ in self._inputs), self._targets)
        )
        self._thread = ThreadPoolExecutor(1, "workbench-load") if costly else None
        self._ahead: dict[int, Future[list[MicroBatch]]] = {}

    def take(self, step: int) -> list[MicroBatch]:
        """Return rows, inputs and targets of each micro-batch of ``step``, on the device."""
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
            (rows, tuple(map(self._there, inputs)), self._there(y)) for rows, inputs, y in found
        ]

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self._device, non_blocking=True)

    def _made(self, step: int) -> list[MicroBatch]:
        rows = self._order.rows(step, *self._where, self._accumulate)
        return [
            (
                each,
                tuple(self._taken(array, each, dtype) for array, dtype in self._inputs),
                self._taken(self._targets, each, None),
            )
            for each in rows
        ]

    def _taken(self, array: Any, rows: Rows, dtype: torch.dtype | None) -> Tensor:
        """Return samples or targets of one micro-batch; a stand-in if there are none."""
        index = rows.index if len(rows.index) else np.zeros(1, dtype=np.int64)
        taken = torch.from_numpy(np.asarray(array.take(index, axis=0)))
        taken = taken if dtype is None else taken.to(dtype)
        return taken.pin_memory() if self._device.type == "cuda" else taken
