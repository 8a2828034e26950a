"""Parameters put together from the shares of ranks that have no memory in common.

Where messages travel by themselves (gloo), the next layer's are fetched while this one computes: a
micro-batch gathers the same layers in the same order as in the longest step before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.comm.comm import Comm
from workbench.comm.exchange import Exchange
from workbench.layers.share import Share

if TYPE_CHECKING:
    from workbench.layers.sharding import Unit

Asked = tuple["Unit", str]
"""What is gathered, and for what."""


class Gathered:
    """Whole parameters of one layer at a time.

    A unit's shares travel as one array: every rank's one behind the other, filled up to the
    longest.
    """

    def __init__(self, comm: Comm, share: Share) -> None:
        self.comm, self.share = comm, share
        self.flats: dict[Unit, Tensor] = {}
        self.copied: dict[Unit, list[tuple[Tensor, int]]] = {}
        self.scratch: dict[torch.dtype, Tensor] = {}  # one for all units of a rank
        # Gradients are added up while parameters travel, so these have a group of their own.
        self._ahead = comm.split(range(comm.size)) if comm.overlaps else None
        self._step: int | None = None
        # What this step has gathered so far, with the micro-batch, and what the longest one before.
        self._now: list[tuple[Asked, int]] = []
        self._order: list[tuple[Asked, int]] = []
        self._coming: tuple[Asked, list[Tensor], Exchange] | None = None

    def room(self, unit: Unit, wholes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return where the rank's shares of a unit's parameters lie, by name."""
        example = wholes[unit.pieces[0].name]
        flat = example.new_zeros(unit.numel, dtype=unit.widest)
        self.flats[unit], place, rooms = flat, 0, {}
        longest = self.scratch.get(unit.kept, flat[:0]).numel()
        if longest < self.comm.size * unit.numel:
            self.scratch[unit.kept] = flat.new_empty(self.comm.size * unit.numel, dtype=unit.kept)
        for piece in unit.pieces:
            shape = piece.share_shape(self.comm.rank, self.comm.size)
            rooms[piece.name] = flat[place : place + prod(shape)].view(shape)
            place += prod(shape)
        return rooms

    def tie(self, unit: Unit, room: Tensor, number: int) -> None:
        """Note that a unit sends a copy of piece ``number``: it lies with another, or is wider."""
        self.copied.setdefault(unit, []).append((room, number))

    def gather(self, unit: Unit, name: str, again: bool) -> list[Tensor]:
        """Return the whole parameters of a unit."""
        size = self.comm.size
        parts = self._parts((unit, name))
        places = [0] * size
        wholes = []
        for piece in unit.pieces:
            found = []
            for index, part in enumerate(parts):
                shape = piece.share_shape(index, size)
                numel = prod(shape)
                found.append(part[places[index] : places[index] + numel].view(shape))
                places[index] += numel
            wholes.append(torch.cat(found, piece.dim).to(piece.dtype))
        return wholes

    def _parts(self, asked: Asked) -> list[Tensor]:
        """Return all ranks' shares of a unit, and ask for those of the next one."""
        if self._step != self.share.step:
            if self._coming is not None:  # of the step before, which was shorter
                self._coming[2].finish()
            self._order = max(self._order, self._now, key=len)
            self._step, self._now, self._coming = self.share.step, [], None
        coming, self._coming = self._coming, None
        if coming is not None:
            coming[2].finish()
        if coming is not None and coming[0] == asked:
            parts = coming[1]
        else:
            parts = self.comm.all_gather(self._flat(asked[0]), name=asked[1])
        self._now.append((asked, self.share.micro))
        place = len(self._now)
        if self._ahead is not None and self._now == self._order[:place] != self._order:
            following, micro = self._order[place]
            if micro == self.share.micro:  # a short batch may have no other
                self._coming = self._ask(self._ahead, following)
        return parts

    def _ask(self, comm: Comm, asked: Asked) -> tuple[Asked, list[Tensor], Exchange]:
        """Begin to exchange the shares of a unit."""
        flat = self._flat(asked[0])
        others = [rank for rank in range(comm.size) if rank != comm.rank]
        incoming = {rank: torch.empty_like(flat) for rank in others}
        parts = [incoming.get(rank, flat) for rank in range(comm.size)]
        outgoing = dict.fromkeys(others, flat)
        return asked, parts, comm.start_exchange(outgoing, incoming, name=asked[1])

    def _flat(self, unit: Unit) -> Tensor:
        for room, number in self.copied.get(unit, ()):
            room.copy_(unit.pieces[number].share.detach())
        return self.flats[unit]

    def add_up(self, unit: Unit, grads: Sequence[Tensor | None], name: str) -> list[Tensor]:
        """Return the sums over ranks of the gradients of the own shares."""
        size, rank = self.comm.size, self.comm.rank
        # What is beyond a shorter share is of no account.
        buffer = self.scratch[unit.kept][: size * unit.numel]
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
