"""What a backend of collectives implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.comm.arguments import ReduceOp

if TYPE_CHECKING:
    from workbench.comm.comm import Comm


class Backend(ABC):
    """The methods behind those of :class:`workbench.comm.comm.Comm`.

    They get flat contiguous tensors on the right device and are never called with one rank.
    """

    backend: str
    device_type = "cpu"
    overlaps = False
    """Whether messages travel by themselves while this rank computes or uses other groups."""

    @abstractmethod
    def _all_reduce(self, flat: Tensor, op: ReduceOp) -> None:
        """Replace ``flat`` by the reduction, with the same bits on every rank."""

    @abstractmethod
    def _reduce_scatter(self, flat: Tensor, op: ReduceOp) -> Tensor:
        """Return the own balanced share of the reduction; leave ``flat`` as it is."""

    @abstractmethod
    def _all_gather(self, flat: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
        """Return all ranks' tensors in their own shapes; ``shape`` is that of this rank."""

    @abstractmethod
    def _broadcast(self, flat: Tensor, root: int) -> None:
        """Replace ``flat`` by that of ``root``."""

    @abstractmethod
    def _exchange(
        self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]
    ) -> Callable[[], None]:
        """Begin to move every pair's message without waiting; return what ends it.

        Peers are valid and never this rank. Messages with other names are not taken.
        """

    def _post_to(self, to: int, flat: Tensor) -> None:
        """Begin to send; messages with other names are not taken."""
        raise NotImplementedError(f"{self.backend} cannot post messages")

    def _take_from(self, source: int, flat: Tensor) -> None:
        """Receive what was posted."""
        raise NotImplementedError(f"{self.backend} cannot take messages")

    def _settle_posts(self) -> None:  # noqa: B027 - nothing is left where sending never waits
        """Send what is left of posted messages."""

    @abstractmethod
    def _barrier(self) -> None:
        """Wait for everybody."""

    def _allocate(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Return zeros that are reduced fastest; plain ones where nothing is gained."""
        return torch.zeros(numel, dtype=dtype, device=self.device_type)

    @abstractmethod
    def _split(self, members: tuple[int, ...]) -> Comm:
        """Return the group; all ranks name groups that fit together, perhaps of one rank."""

    @abstractmethod
    def _close(self) -> None:
        """Release everything, once."""
