"""One memory that all ranks of a host have in common: what is read where it lies, uncopied."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from workbench.comm.account import Account


class Lending:
    """The calls of :class:`workbench.comm.comm.Comm` about common memory.

    A rank writes its share of it and lends it to the others, who read it where it lies: an
    all_gather or a reduce_scatter that moves nothing.
    """

    size: int
    account: Account

    def common(self, numel: int, dtype: torch.dtype) -> Tensor | None:
        """Return a zeroed 1-d tensor, the same memory on every rank (collective call).

        None where ranks have no memory in common: on several hosts, on GPUs.
        """
        if numel < 0:
            raise ValueError(f"cannot allocate {numel} elements: ask for 0 or more")
        start = self._begin("common", None)
        memory = self._common(numel, dtype)
        self._end(start, 0)
        return memory

    def lend(
        self,
        nbytes: int,
        *,
        operation: Literal["all_gather", "reduce_scatter"] = "all_gather",
        wait: bool = True,
        name: str | None = None,
    ) -> None:
        """Let every other rank read ``nbytes`` that this one has written to common memory.

        Returns when all ranks have called it: then what they wrote before may be read, and what
        this rank wrote before its last call may be written again. Without ``wait`` (nothing was
        written since) it only counts. Bytes are those of ``operation``, that it stands for.
        """
        start = self._begin(operation, name)
        if self.size > 1:
            if wait:
                self._lend(nbytes)
            self._end(start, (self.size - 1) * nbytes)

    def _begin(self, operation: str, name: str | None) -> float:
        raise NotImplementedError

    def _end(self, start: float, sent: int) -> None:
        raise NotImplementedError

    def _common(self, numel: int, dtype: torch.dtype) -> Tensor | None:
        """Return the memory; None, without a word to the others, where there is none."""
        return None

    def _lend(self, nbytes: int) -> None:
        """Wait for everybody; called only where there is common memory."""
        raise NotImplementedError
