"""Parameters of which a rank has a share: whole while their layer computes, shares otherwise.

ZeRO stages 2 and 3 (Rajbhandari et al., SC 2020), layer by layer as in FSDP (Zhao et al., VLDB
2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from workbench.comm.comm import Comm
from workbench.layers.carrier import Forward
from workbench.layers.groups import Groups
from workbench.layers.precision import LOW
from workbench.layers.share import Share
from workbench.mesh import balanced
from workbench.plan import Plan
from workbench.strategies.sharded import AXIS, needs_again, units


def shard(model: nn.Module, plan: Plan, groups: Groups, share: Share) -> None:
    """Leave on ``model`` the rank's shares of its parameters, and gather them for every call."""
    comm, mine = groups.over(AXIS), units(plan)
    dims = {
        name: cut.dim
        for planned in plan.layers
        for name, cut in planned.parameters
        if cut.axis == AXIS
    }
    wholes = {name: p for name, p in model.named_parameters() if name in dims}
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, held in module._parameters.items():
            if held is not None:
                holders.setdefault(id(held), []).append((module, attribute))
    modules = dict(model.named_modules())
    needed_again = {p.layer.name for p in plan.layers if needs_again(p.layer)}
    found = []
    for layer, arrays in mine.items():
        module = modules.get(layer, model)
        inside = set(module.modules())
        pieces = []
        for array in arrays:
            whole = wholes[array.name]
            own = tuple(held for held in holders[id(whole)] if held[0] in inside)
            dtype = LOW if plan.low and array.itemsize == LOW.itemsize else whole.dtype
            shape, dim = tuple(whole.shape), dims[array.name]
            pieces.append(Piece(own, shape, dim, whole.requires_grad, dtype))
        again = layer in needed_again
        keeps = plan.option("stage", "3") == "2"
        found.append(Unit(layer, module, tuple(pieces), comm, share, keeps, again))
    made: set[str] = set()  # a share lies in the memory that the first of its units sends
    for unit, arrays in zip(found, mine.values(), strict=True):
        place = 0
        for piece, array in zip(unit.pieces, arrays, strict=True):
            whole = wholes[array.name]
            start, stop = balanced(whole.shape[piece.dim], comm.size, comm.rank)
            part = whole.detach().narrow(piece.dim, start, stop - start)
            room = unit.flat[place : place + part.numel()].view(part.shape)
            # What travels in less precision is a copy; the share stays as it is updated.
            lies = room.dtype == part.dtype and array.name not in made
            if not lies:
                unit.copied.append((room, piece))
            if array.name not in made:
                made.add(array.name)
                mine_now = room.copy_(part) if lies else part.clone()
                own_part = nn.Parameter(mine_now, requires_grad=whole.requires_grad)
                for module, attribute in holders[id(whole)]:
                    setattr(module, attribute, own_part)
            place += part.numel()
    longest = max((unit.numel for unit in found), default=0)
    scratch = {
        unit.kept: unit.flat.new_empty(comm.size * longest, dtype=unit.kept) for unit in found
    }
    for unit in found:
        unit.scratch = scratch[unit.kept]
        unit.module.forward = unit.around(unit.module.forward)


@dataclass(frozen=True)
class Piece:
    """One parameter of a layer: who holds it under which name, and how it is cut.

    ``dtype`` is that of the whole one, which is computed with.
    """

    holders: tuple[tuple[nn.Module, str], ...]
    shape: tuple[int, ...]
    dim: int
    trainable: bool
    dtype: torch.dtype

    @property
    def share(self) -> nn.Parameter:
        """The rank's share."""
        module, attribute = self.holders[0]
        found = module._parameters[attribute]
        assert found is not None
        return found

    def share_shape(self, index: int, size: int) -> tuple[int, ...]:
        """Return the shape of the share of rank ``index``."""
        start, stop = balanced(self.shape[self.dim], size, index)
        return (*self.shape[: self.dim], stop - start, *self.shape[self.dim + 1 :])


class Unit:
    """The parameters that one layer needs whole, gathered and let go together.

    They travel as one array: every rank's shares one behind the other, filled up to the longest.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        pieces: tuple[Piece, ...],
        comm: Comm,
        share: Share,
        keeps: bool,
        again: bool,
    ) -> None:
        self.name, self.module, self.pieces = name, module, pieces
        self.comm, self.share, self.keeps, self.again = comm, share, keeps, again
        self.numel = sum(prod(piece.share_shape(0, comm.size)) for piece in pieces)
        example = pieces[0].share
        self.kept = example.dtype  # of shares and of the sums of gradients
        widest = max((piece.dtype for piece in pieces), key=lambda dtype: dtype.itemsize)
        self.flat = torch.zeros(self.numel, dtype=widest, device=example.device)
        self.copied: list[tuple[Tensor, Piece]] = []
        self.scratch = torch.empty(0)  # one for all units of a rank, of one dtype
        self.wholes: list[Tensor] | None = None
        self.gathered_in = -1

    def around(self, own: Forward) -> Forward:
        """Return ``own`` with the parameters whole while it computes."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            wholes = _Whole.apply(self, *(piece.share for piece in self.pieces))
            held = [holder for piece in self.pieces for holder in piece.holders]
            before = [module.__dict__.get(attribute) for module, attribute in held]
            for piece, whole in zip(self.pieces, wholes, strict=True):
                for module, attribute in piece.holders:
                    # What stands in the instance is found before a registered parameter.
                    module.__dict__[attribute] = whole
            try:
                if self.keeps:
                    return own(*args, **kwargs)
                with saved_tensors_hooks(self._leave_out(wholes), self._take_again):
                    result = own(*args, **kwargs)
            finally:
                for (module, attribute), other in zip(held, before, strict=True):
                    if other is None:
                        del module.__dict__[attribute]
                    else:  # that of a call around this one
                        module.__dict__[attribute] = other
            if self.again:
                _before_backward(result, self._gather_again)
            return result

        return forward

    def gathered(self) -> list[Tensor]:
        """Return the whole parameters; under stage 2 those of this step, gathered once."""
        if self.keeps and self.wholes is not None and self.gathered_in == self.share.step:
            return self.wholes
        wholes = self._gather(f"{self.name}: parameters")
        self.wholes = wholes if self.keeps else None
        self.gathered_in = self.share.step
        return wholes

    def _gather(self, name: str) -> list[Tensor]:
        size = self.comm.size
        for room, piece in self.copied:  # of a parameter that is tied to another layer's
            room.copy_(piece.share.detach())
        parts = self.comm.all_gather(self.flat, name=name)
        places = [0] * size
        wholes = []
        for piece in self.pieces:
            found = []
            for index, part in enumerate(parts):
                shape = piece.share_shape(index, size)
                numel = prod(shape)
                found.append(part[places[index] : places[index] + numel].view(shape))
                places[index] += numel
            wholes.append(torch.cat(found, piece.dim).to(piece.dtype))
        return wholes

    def scatter(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Add up the gradients of whole parameters over ranks; returns those of own shares."""
        self.wholes = self.wholes if self.keeps else None
        if all(grad is None for grad in grads):
            return [None] * len(grads)
        grads = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        size, counts = self.comm.size, self.share.rows > 0
        buffer = self.scratch[
            : size * self.numel
        ]  # what is beyond a shorter share is of no account
        if not counts:
            buffer.zero_()
        for index, row in enumerate(buffer.view(size, self.numel)):
            place = 0
            for piece, grad in zip(self.pieces, grads, strict=True):
                shape = piece.share_shape(index, size)
                if counts:  # that of a stand-in does not
                    room = row[place : place + prod(shape)].view(shape)
                    if grad is None:
                        room.zero_()
                    else:
                        start, _ = balanced(piece.shape[piece.dim], size, index)
                        room.copy_(grad.narrow(piece.dim, start, shape[piece.dim]))
                place += prod(shape)
        own = self.comm.reduce_scatter(buffer, name=f"{self.name}: gradients")
        found: list[Tensor | None] = []
        place = 0
        for piece, grad in zip(self.pieces, grads, strict=True):
            shape = piece.share_shape(self.comm.rank, size)
            numel = prod(shape)
            wanted = grad is not None and piece.trainable
            found.append(own[place : place + numel].view(shape) if wanted else None)
            place += numel
        return found

    def _leave_out(self, wholes: Sequence[Tensor]) -> Any:
        storages = {w.untyped_storage().data_ptr(): n for n, w in enumerate(wholes) if w.numel()}

        def pack(saved: Tensor) -> Any:
            number = storages.get(saved.untyped_storage().data_ptr())
            if number is None or isinstance(saved, nn.Parameter):
                return saved
            return number, saved.shape, saved.stride(), saved.storage_offset()

        return pack

    def _take_again(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        number, shape, stride, offset = packed
        self._gather_again()
        assert self.wholes is not None
        return self.wholes[number].as_strided(shape, stride, offset)

    def _gather_again(self) -> None:
        if self.wholes is None:
            self.wholes = self._gather(f"{self.name}: parameters again")


class _Whole(torch.autograd.Function):
    """Shares of parameters to whole ones; backward adds up over ranks what each has found."""

    @staticmethod
    def forward(ctx: Any, unit: Unit, *shares: Tensor) -> tuple[Tensor, ...]:
        ctx.unit = unit
        ctx.set_materialize_grads(False)
        wholes = tuple(whole.detach() for whole in unit.gathered())
        pairs = zip(wholes, unit.pieces, strict=True)
        ctx.mark_non_differentiable(*(whole for whole, piece in pairs if not piece.trainable))
        return wholes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.unit.scatter(grads))


def _before_backward(result: Any, call: Any) -> None:
    """Have ``call`` made before backward goes through what has given ``result``."""
    if isinstance(result, Tensor):
        if result.requires_grad:
            result.register_hook(lambda _: call())
        return
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        for item in result:
            _before_backward(item, call)


class ShareUpdate:
    """ZeRO stage 1: whole parameters, of which each rank updates a share and gets the others'.

    ``parameters`` are the shares by name, for the optimizer; what is not shared is the model's own.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], plan: Plan, groups: Groups) -> None:
        self.comm = groups.over(AXIS)
        dims = {name: cut.dim for name, cut in plan.updates}
        self.parameters: dict[str, nn.Parameter] = {}
        self.shared: list[tuple[nn.Parameter, nn.Parameter, Piece]] = []
        for name, whole in parameters.items():
            if name not in dims:
                self.parameters[name] = whole
                continue
            piece = Piece((), tuple(whole.shape), dims[name], whole.requires_grad, whole.dtype)
            own = nn.Parameter(self._own(whole.detach(), piece).clone(), whole.requires_grad)
            self.parameters[name] = own
            self.shared.append((whole, own, piece))
        self.numel = sum(prod(p.share_shape(0, self.comm.size)) for _, _, p in self.shared)

    def before(self) -> None:
        """Give the optimizer the gradients of the shares."""
        for whole, own, piece in self.shared:
            own.grad = None if whole.grad is None else self._own(whole.grad, piece)

    def after(self) -> None:
        """Put together what the ranks have updated."""
        if not self.shared:
            return
        flat = self.shared[0][1].new_zeros(self.numel)
        place = 0
        for _, own, _ in self.shared:
            flat[place : place + own.numel()].view(own.shape).copy_(own.detach())
            place += own.numel()
            own.grad = None
        parts = self.comm.all_gather(flat, name="updated parameters")
        places = [0] * self.comm.size
        for whole, _, piece in self.shared:
            whole.grad = None
            for index, part in enumerate(parts):
                shape = piece.share_shape(index, self.comm.size)
                numel = prod(shape)
                start, _ = balanced(piece.shape[piece.dim], self.comm.size, index)
                target = whole.detach().narrow(piece.dim, start, shape[piece.dim])
                target.copy_(part[places[index] : places[index] + numel].view(shape))
                places[index] += numel

    def _own(self, whole: Tensor, piece: Piece) -> Tensor:
        start, stop = balanced(piece.shape[piece.dim], self.comm.size, self.comm.rank)
        return whole.narrow(piece.dim, start, stop - start)
