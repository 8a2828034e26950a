"""Memory of every rank that every rank of one host has mapped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.comm.calls import PLACE_BITS
from workbench.comm.segment import PAGE, Segment
from workbench.mesh import balanced

PIECE_BYTES = 1 << 17
"""What is added and then handed out at a time, so that it is still in the cache."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of allocated memory.

    ``number`` is the same on every rank for the same stretch. ``own_part`` is what this rank owns
    of it, in pieces, each as the tensors of all ranks in order.
    """

    number: int
    own_part: tuple[tuple[Tensor, ...], ...]


class SymmetricMemory:
    """What the ranks have allocated together; it lives as long as the communicator."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._allocations: list[tuple[int, int, tuple[Tensor, ...]]] = []
        self._places: dict[tuple[int, int, torch.dtype], Place] = {}

    def allocate(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Return zeros; all ranks call this with the same arguments."""
        size = self._segment.size
        nbytes = numel * dtype.itemsize
        stride = max(PAGE, -(-nbytes // PAGE) * PAGE)
        mapped = self._segment.grow(size * stride, populate=True)
        memory = torch.frombuffer(mapped, dtype=torch.uint8).view(size, stride)
        by_rank = tuple(row[:nbytes] for row in memory)
        own = by_rank[self._segment.rank]
        self._allocations.append((own.data_ptr(), own.data_ptr() + nbytes, by_rank))
        return own.view(dtype)

    def common(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Return zeros in one memory for all ranks, which call this with the same arguments."""
        mapped = self._segment.grow(max(PAGE, numel * dtype.itemsize), populate=True)
        return torch.frombuffer(mapped, dtype=torch.uint8)[: numel * dtype.itemsize].view(dtype)

    def find(self, flat: Tensor) -> Place | None:
        """Return the place of a contiguous tensor; None if it does not lie in this memory."""
        first = flat.data_ptr()
        place = self._places.get((first, flat.numel(), flat.dtype))
        if place is not None or not self._allocations:
            return place
        stop = first + flat.numel() * flat.element_size()
        for index, (start, end, by_rank) in enumerate(self._allocations):
            if start <= first and stop <= end:
                typed = [row[first - start : stop - start].view(flat.dtype) for row in by_rank]
                number = ((index + 1) << PLACE_BITS) + first - start
                place = Place(number, self._own_part(typed))
                self._places[first, flat.numel(), flat.dtype] = place
                return place
        return None

    def _own_part(self, by_rank: list[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        part = slice(*balanced(by_rank[0].numel(), self._segment.size, self._segment.rank))
        piece = PIECE_BYTES // by_rank[0].element_size()
        return tuple(zip(*(tensor[part].split(piece) for tensor in by_rank), strict=True))
