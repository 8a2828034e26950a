"""A rank's shares of parameters and buffers: what it keeps, and the whole put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from workbench.cluster.context import RankContext
from workbench.layers.channels import own_part
from workbench.layers.groups import Groups
from workbench.layers.precision import exactly
from workbench.plan import Plan, assemble

Value = TypeVar("Value")


class RankState:
    """The parameters and buffers of one rank of a plan.

    ``parameters`` are those that are updated, by name, which may be others than ``model`` has.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        plan: Plan,
        groups: Groups,
        context: RankContext,
    ) -> None:
        self.model, self.parameters = model, parameters
        self.plan, self.groups, self.context = plan, groups, context
        self.where = plan.mesh.coordinates(context.rank)

    def own(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """Return what this rank has of parameters or buffers, by name."""
        return {name: v for name, v in state.items() if self.plan.holds(name, self.context.rank)}

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """Return what this rank keeps of an array like a parameter, of the optimizer's state."""
        for cut in self.plan.kept_cuts(f"optimizer::{name}", whole.dim()):
            whole = own_part(whole, cut, self.plan, self.context.rank)
        return whole

    def keep(
        self, optimizer: Optimizer, updated: Mapping[str, nn.Parameter]
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        """Leave this rank's shares on its worker, if no rank before has the same.

        ``updated`` are the parameters, or shares, of the optimizer. Returns shapes and dtypes by
        ``"parameter:NAME"``, ``"buffer:NAME"`` and ``"optimizer:KEY:NAME"``.
        """
        kept = {}
        for name, value in self._everything(optimizer, updated):
            array = exactly(value.detach()).cpu().numpy()
            if self._is_first(name, array.shape):
                self.context.keep(name, array)
                kept[name] = (array.shape, str(array.dtype))
        return kept

    def take(self, optimizer: Optimizer, updated: Mapping[str, nn.Parameter]) -> None:
        """Go on from the shares of another run, where this rank has been given any."""
        arrays = self.context.arrays
        shares = dict(self.plan.updates)
        with torch.no_grad():
            for kind, state in (
                ("parameter", self.parameters),
                ("buffer", dict(self.model.named_buffers())),
            ):
                for name, value in self.own(state).items():
                    if (given := arrays.get(f"{kind}:{name}")) is not None:
                        value.copy_(torch.from_numpy(given.copy()))
            for name, parameter in self.own(updated).items():
                if name in shares:
                    whole = self.parameters[name]
                    parameter.copy_(own_part(whole, shares[name], self.plan, self.context.rank))
        for name, parameter in self.own(updated).items():
            for key in arrays:
                kind, _, rest = key.partition(":")
                entry, _, owner = rest.partition(":")
                if kind == "optimizer" and owner == name:
                    value = torch.from_numpy(arrays[key].copy())
                    optimizer.state[parameter][entry] = (
                        value.to(parameter.device) if value.dim() else value
                    )

    def _everything(
        self, optimizer: Optimizer, updated: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.own(self.parameters).items():
            yield f"parameter:{name}", parameter
        for name, buffer in self.own(dict(self.model.named_buffers())).items():
            yield f"buffer:{name}", buffer
        for name, parameter in self.own(updated).items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"optimizer:{key}:{name}", value

    def _is_first(self, kept: str, shape: tuple[int, ...]) -> bool:
        """Return whether no rank before has the same share."""
        name = kept.rpartition(":")[2]
        cutting = {cut.axis for cut in self.plan.kept_cuts(kept, len(shape))}
        first = {"pipeline": self.plan.holders(name)[0]}
        others = {axis: place for axis, place in self.where.items() if axis not in cutting}
        return all(place == first.get(axis, 0) for axis, place in others.items())

    def whole(self, model: nn.Module) -> nn.Module:
        """Return ``model``, a new one, with the weights that all ranks have together."""
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        along = self.groups.over("pipeline")
        with torch.no_grad():
            for name, value in (*self.parameters.items(), *self.model.named_buffers()):
                if along.size > 1:
                    if value.is_meta:
                        value = torch.empty_like(value, device=self.context.device)
                    along.broadcast(value.detach(), self.plan.holders(name)[0])
                cuts = self.plan.parameter_cuts(name)
                axes = {cut.axis for cut in cuts}
                parts = self.groups.over(*axes).all_gather(value.detach())
                ranks = self.plan.mesh.group(self.context.rank, *axes)
                by_rank = dict(zip(ranks, parts, strict=True))
                state[name].copy_(assemble(by_rank, cuts, self.plan.mesh, _cat))
        return model


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat(tuple(parts), dim)
