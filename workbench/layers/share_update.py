"""ZeRO stage 1: whole parameters, of which each rank updates a share and gets the others'."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import nn

from workbench.layers.groups import Groups
from workbench.layers.lent import Lent
from workbench.layers.pieces import Piece
from workbench.layers.share import Share
from workbench.plan import Plan
from workbench.strategies.sharded import AXIS


class ShareUpdate:
    """What the optimizer gets: shares where ranks share an update, else the model's own parameters.

    Attributes
    ----------
    parameters:
        By name, for the optimizer.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], plan: Plan, groups: Groups) -> None:
        self.comm = comm = groups.over(AXIS)
        dims = {name: cut.dim for name, cut in plan.updates}
        self.parameters: dict[str, nn.Parameter] = dict(parameters)
        self.shared: list[tuple[nn.Parameter, nn.Parameter, Piece]] = []
        wholes = {
            name: whole
            for name, whole in self.parameters.items()
            if name in dims and plan.holds(name, groups.rank)
        }
        if not wholes:
            return
        self.lent: Lent | None = None
        if plan.averaging is None:  # else every rank writes averages of whole parameters
            self.lent = Lent.of(comm, Share(), {n: w.detach() for n, w in wholes.items()})
        for name, whole in wholes.items():
            piece = Piece(
                name, (), tuple(whole.shape), dims[name], whole.requires_grad, whole.dtype
            )
            own = piece.part(whole.detach(), comm.rank, comm.size).clone()
            if self.lent is not None:  # each rank updates its share where all read it
                room = self.lent.wholes[name]
                own = piece.part(room, comm.rank, comm.size).copy_(own)
                whole.data = room
            parameter = nn.Parameter(own, whole.requires_grad)
            self.parameters[name] = parameter
            self.shared.append((whole, parameter, piece))
        self.numel = sum(prod(p.share_shape(0, comm.size)) for _, _, p in self.shared)
        comm.barrier()  # nobody reads what others have not written yet

    def before(self) -> None:
        """Give the optimizer the gradients of the shares."""
        for whole, own, piece in self.shared:
            grad = whole.grad
            own.grad = None if grad is None else piece.part(grad, self.comm.rank, self.comm.size)

    def after(self) -> None:
        """Put together what the ranks have updated."""
        if not self.shared:
            return
        for whole, own, _ in self.shared:
            whole.grad = own.grad = None
        name = "updated parameters"
        if self.lent is not None:
            self.comm.lend(self.numel * self.shared[0][0].element_size(), name=name)
            return
        flat = self.shared[0][1].new_zeros(self.numel)
        place = 0
        for _, own, _ in self.shared:
            flat[place : place + own.numel()].view(own.shape).copy_(own.detach())
            place += own.numel()
        parts = self.comm.all_gather(flat, name=name)
        places = [0] * self.comm.size
        for whole, _, piece in self.shared:
            for index, part in enumerate(parts):
                target = piece.part(whole.detach(), index, self.comm.size)
                numel = target.numel()
                target.copy_(part[places[index] : places[index] + numel].view(target.shape))
                places[index] += numel
