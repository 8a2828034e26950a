"""Parameters of which a rank has a share: whole while their layer computes, shares otherwise.

ZeRO stages 2 and 3 (Rajbhandari et al., SC 2020), layer by layer as in FSDP (Zhao et al., VLDB
2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from workbench.layers.carrier import Forward
from workbench.layers.gathered import Gathered
from workbench.layers.groups import Groups
from workbench.layers.lent import Lent
from workbench.layers.pieces import Piece
from workbench.layers.precision import Masters
from workbench.layers.share import Share
from workbench.mesh import balanced
from workbench.plan import Plan
from workbench.strategies.sharded import AXIS, needs_again
from workbench.strategies.sharded import units as units_of


def shard(model: nn.Module, plan: Plan, groups: Groups, share: Share, masters: Masters) -> None:
    """Leave on ``model`` the rank's shares of its parameters, and gather them for every call."""
    comm = groups.over(AXIS)
    dims = {
        name: cut.dim
        for planned in plan.layers
        for name, cut in planned.parameters
        if cut.axis == AXIS
    }
    wholes = {name: p for name, p in model.named_parameters() if name in dims}
    if not wholes:
        return
    holders = _holders(model)
    units = _units(model, plan, groups, share, masters, dims, wholes, holders)
    held = {p.name: wholes[p.name].detach() for unit in units for p in unit.pieces}
    lent = Lent.of(comm, share, held, units)
    gathered = None if lent else Gathered(comm, share)
    rooms: dict[str, Tensor] = {}  # where the rank's shares lie, if not in memory of their own
    for unit in units:
        if lent is not None:
            unit.source = lent
            rooms |= {piece.name: lent.own(piece) for piece in unit.pieces}
        elif gathered is not None:
            unit.source = gathered
            for number, (name, room) in enumerate(gathered.room(unit, held).items()):
                if name in rooms or room.dtype != held[name].dtype:
                    gathered.tie(unit, room, number)
                else:
                    rooms[name] = room
    for name, whole in wholes.items():
        start, stop = balanced(whole.shape[dims[name]], comm.size, comm.rank)
        part = whole.detach().narrow(dims[name], start, stop - start)
        room = rooms[name].copy_(part) if name in rooms else part.clone()
        own_part = nn.Parameter(room, requires_grad=whole.requires_grad)
        masters.narrow(whole, own_part, dims[name], start)
        for module, attribute in holders[id(whole)]:
            setattr(module, attribute, own_part)
    for unit in units:
        unit.module.forward = unit.around(unit.module.forward)


def _holders(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Return the modules and attributes that hold each parameter."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, held in module._parameters.items():
            if held is not None:
                found.setdefault(id(held), []).append((module, attribute))
    return found


def _units(
    model: nn.Module,
    plan: Plan,
    groups: Groups,
    share: Share,
    masters: Masters,
    dims: dict[str, int],
    wholes: dict[str, nn.Parameter],
    holders: dict[int, list[tuple[nn.Module, str]]],
) -> list[Unit]:
    """Return what this rank gathers: of a pipeline, for the layers of its own stages."""
    comm = groups.over(AXIS)
    modules = dict(model.named_modules())
    needed_again = {p.layer.name for p in plan.layers if needs_again(p.layer)}
    keeps = plan.option("stage", "3") == "2"
    found = []
    for layer, arrays in units_of(plan).items():
        if not all(plan.holds(array.name, groups.rank) for array in arrays):
            continue
        module = modules.get(layer, model)
        inside = set(module.modules())
        pieces = []
        for array in arrays:
            whole = wholes[array.name]
            own = tuple(held for held in holders[id(whole)] if held[0] in inside)
            shape, dim = tuple(whole.shape), dims[array.name]
            pieces.append(Piece(array.name, own, shape, dim, whole.requires_grad, whole.dtype))
        again = layer in needed_again
        kept = _widest(masters.of(wholes[array.name]).dtype for array in arrays)
        found.append(
            Unit(layer, module, tuple(pieces), comm.size, share, keeps, again, masters, kept)
        )
    return found


def _widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    return max(dtypes, key=lambda dtype: dtype.itemsize)


class Unit:
    """The parameters that one layer needs whole, gathered and let go together."""

    source: Lent | Gathered

    def __init__(
        self,
        name: str,
        module: nn.Module,
        pieces: tuple[Piece, ...],
        size: int,
        share: Share,
        keeps: bool,
        again: bool,
        masters: Masters,
        kept: torch.dtype,
    ) -> None:
        self.name, self.module, self.pieces = name, module, pieces
        self.share, self.keeps, self.again = share, keeps, again
        self.numel = sum(prod(piece.share_shape(0, size)) for piece in pieces)
        self.masters, self.kept = masters, kept  # the dtype of the sums of gradients
        self.widest = _widest(piece.dtype for piece in pieces)
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
                if isinstance(self.source, Lent):  # there is no copy to let go of
                    result = own(*args, **kwargs)
                else:
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
        wholes = self.source.gather(self, f"{self.name}: parameters", again=False)
        self.wholes = wholes if self.keeps else None
        self.gathered_in = self.share.step
        return wholes

    def scatter(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Add up the gradients of whole parameters over ranks; returns those of own shares."""
        if self.again:  # a result that was changed in place has not said that backward comes
            self._gather_again()
        self.wholes = self.wholes if self.keeps else None
        if all(grad is None for grad in grads):
            return [None] * len(grads)
        given = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        if not self.share.rows:  # that of a stand-in does not count
            given = [None] * len(given)
        sums = self.source.add_up(self, given, f"{self.name}: gradients")
        found: list[Tensor | None] = []
        for piece, grad, own in zip(self.pieces, grads, sums, strict=True):
            wanted = grad is not None and piece.trainable
            if wanted and piece.dtype != self.kept:
                self.masters.add_gradient(piece.share, own)
            found.append(own.to(piece.dtype) if wanted else None)
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
            self.wholes = self.source.gather(self, f"{self.name}: parameters again", again=True)


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
