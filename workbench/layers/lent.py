"""Parameters in memory that all ranks of a host have in common: whole for all, copied by nobody.

Each rank owns its share, and alone writes it. What others need of it they read where it lies, so
gathering a layer is no more than to wait, once in a step, until all have updated their shares. Of
a gradient each rank writes down what others need of it, and adds up its own share from all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.comm.arithmetic import reduce_in_rank_order
from workbench.comm.comm import Comm
from workbench.layers.pieces import Piece
from workbench.layers.share import Share

if TYPE_CHECKING:
    from workbench.layers.sharding import Unit


class Lent:
    """Whole parameters in common memory.

    Attributes
    ----------
    wholes:
        The parameters in common memory, by name; each rank writes its share of them.
    """

    def __init__(self, comm: Comm, share: Share, memory: Mapping[torch.dtype, Tensor]) -> None:
        self.comm, self.share = comm, share
        self.wholes: dict[str, Tensor] = {}
        self._memory = dict(memory)
        self._places = dict.fromkeys(memory, 0)
        # [turn][from rank][for rank]: while some still read one turn, others write the next.
        self._desks: dict[torch.dtype, Tensor] = {}
        self._turn = 0
        self._ready_in: int | None = None

    @classmethod
    def of(
        cls, comm: Comm, share: Share, wholes: Mapping[str, Tensor], units: Sequence[Unit] = ()
    ) -> Lent | None:
        """Return room for ``wholes``, and for what ``units`` add up; None without common memory."""
        numels: dict[torch.dtype, int] = {}
        for whole in wholes.values():
            numels[whole.dtype] = numels.get(whole.dtype, 0) + whole.numel()
        memory = {}
        for dtype, numel in numels.items():
            room = comm.common(numel, dtype)
            if room is None:
                return None
            memory[dtype] = room
        lent = cls(comm, share, memory)
        for unit in units:
            if unit.kept not in lent._desks:
                longest = max(each.numel for each in units if each.kept == unit.kept)
                desks = comm.common(2 * comm.size**2 * longest, unit.kept)
                assert desks is not None  # where there was memory for parameters
                lent._desks[unit.kept] = desks.view(2, comm.size, comm.size, longest)
        for name, whole in wholes.items():
            place = lent._places[whole.dtype]
            lent._places[whole.dtype] += whole.numel()
            room = lent._memory[whole.dtype][place : place + whole.numel()]
            lent.wholes[name] = room.view(whole.shape)
        return lent

    def own(self, piece: Piece) -> Tensor:
        """Return the own share of a parameter, where others read it."""
        return piece.part(self.wholes[piece.name], self.comm.rank, self.comm.size)

    def gather(self, unit: Unit, name: str, again: bool) -> list[Tensor]:
        """Return the whole parameters of a unit, once all ranks have updated them."""
        found = [self.wholes[piece.name] for piece in unit.pieces]
        nbytes = unit.numel * unit.widest.itemsize
        ready = again or self._ready_in == self.share.step
        self.comm.lend(nbytes, wait=not ready, name=name)
        self._ready_in = self.share.step
        return found

    def add_up(self, unit: Unit, grads: Sequence[Tensor | None], name: str) -> list[Tensor]:
        """Return the sums over ranks of the gradients of the own shares."""
        rank, size = self.comm.rank, self.comm.size
        desks = self._desks[unit.kept][self._turn]
        self._turn = 1 - self._turn
        mine: list[Tensor] = []
        for index in range(size):
            place = 0
            for piece, grad in zip(unit.pieces, grads, strict=True):
                shape = piece.share_shape(index, size)
                numel = prod(shape)
                part = None if grad is None else piece.part(grad, index, size)
                if index == rank:
                    mine.append(desks.new_zeros(shape) if part is None else part.to(unit.kept))
                else:
                    room = desks[rank, index, place : place + numel].view(shape)
                    room.zero_() if part is None else room.copy_(part)
                place += numel
        nbytes = unit.numel * desks.element_size()
        self.comm.lend(nbytes, operation="reduce_scatter", name=name)
        sums, place = [], 0
        for piece, own in zip(unit.pieces, mine, strict=True):
            numel = own.numel()
            by_rank = [
                own if index == rank else desks[index, rank, place : place + numel].view(own.shape)
                for index in range(size)
            ]
            total = torch.empty(piece.share_shape(rank, size), dtype=unit.kept)
            reduce_in_rank_order(by_rank, "sum", out=total)
            sums.append(total)
            place += numel
        return sums
