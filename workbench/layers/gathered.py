"""Parameters put together from the shares of ranks that have no memory in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.comm.comm import Comm

if TYPE_CHECKING:
    from workbench.layers.sharding import Unit


class Gathered:
    """Whole parameters of one layer at a time.

    A unit's shares travel as one array: every rank's one behind the other, filled up to the
    longest.
    """

    def __init__(self, comm: Comm) -> None:
        self.comm = comm
        self.flats: dict[Unit, Tensor] = {}
        self.copied: dict[Unit, list[tuple[Tensor, int]]] = {}
        self.scratch: dict[torch.dtype, Tensor] = {}  # one for all units of a rank

    def room(self, unit: Unit, wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return where the rank's shares of a unit's parameters lie, by name."""
        example = wholes[unit.pieces[0].name]
        flat = example.new_zeros(unit.numel)
        self.flats[unit], place, rooms = flat, 0, {}
        longest = self.scratch.get(flat.dtype, flat[:0]).numel()
        if longest < self.comm.size * unit.numel:
            self.scratch[flat.dtype] = flat.new_empty(self.comm.size * unit.numel)
        for piece in unit.pieces:
            shape = piece.share_shape(self.comm.rank, self.comm.size)
            rooms[piece.name] = flat[place : place + prod(shape)].view(shape)
            place += prod(shape)
        return rooms

    def tie(self, unit: Unit, room: Tensor, number: int) -> None:
        """Note that piece ``number`` of a unit lies with another unit."""
        self.copied.setdefault(unit, []).append((room, number))

    def gather(self, unit: Unit, name: str, again: bool) -> list[Tensor]:
        """Return the whole parameters of a unit."""
        size = self.comm.size
        for room, number in self.copied.get(unit, ()):
            room.copy_(unit.pieces[number].share.detach())
        parts = self.comm.all_gather(self.flats[unit], name=name)
        places = [0] * size
        wholes = []
        for piece in unit.pieces:
            found = []
            for index, part in enumerate(parts):
                shape = piece.share_shape(index, size)
                numel = prod(shape)
                found.append(part[places[index] : places[index] + numel].view(shape))
                places[index] += numel
            wholes.append(torch.cat(found, piece.dim))
        return wholes

    def add_up(self, unit: Unit, grads: Sequence[Tensor | None], name: str) -> list[Tensor]:
        """Return the sums over ranks of the gradients of the own shares."""
        size, rank = self.comm.size, self.comm.rank
        # What is beyond a shorter share is of no account.
        buffer = self.scratch[self.flats[unit].dtype][: size * unit.numel]
        for index, row in enumerate(buffer.view(size, unit.numel)):
            place = 0
            for piece, grad in zip(unit.pieces, grads, strict=True):
                shape = piece.share_shape(index, size)
                room = row[place : place + prod(shape)].view(shape)
                if grad is None:
                    room.zero_()
                else:
                    room.copy_(piece.part(grad, index, size))
                place += prod(shape)
        own = self.comm.reduce_scatter(buffer, name=name)
        sums, place = [], 0
        for piece in unit.pieces:
            shape = piece.share_shape(rank, size)
            sums.append(own[place : place + prod(shape)].view(shape))
            place += prod(shape)
        return sums
