"""A rank's shares of parameters and buffers: what it keeps, and the whole put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from workbench.cluster.context import RankContext
from workbench.layers.groups import Groups
from workbench.plan import Plan, assemble

Value = TypeVar("Value")


class RankState:
    """The parameters and buffers of one rank of a plan."""

    def __init__(self, model: nn.Module, plan: Plan, groups: Groups, context: RankContext) -> None:
        self.model, self.plan, self.groups, self.context = model, plan, groups, context

    def own(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """Return what this rank has of parameters or buffers, by name."""
        return {name: v for name, v in state.items() if self.plan.holds(name, self.context.rank)}

    def keep(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Leave this rank's shares on its worker, if no rank before has the same.

        Returns their shapes and dtypes by ``"parameter:NAME"`` and ``"buffer:NAME"``.
        """
        kept = {}
        where = self.plan.mesh.coordinates(self.context.rank)
        for kind, state in (
            ("parameter", dict(self.model.named_parameters())),
            ("buffer", dict(self.model.named_buffers())),
        ):
            for name, value in self.own(state).items():
                cutting = {cut.axis for cut in self.plan.parameter_cuts(name)}
                first = {"pipeline": self.plan.holders(name)[0]}
                others = {axis: place for axis, place in where.items() if axis not in cutting}
                if all(place == first.get(axis, 0) for axis, place in others.items()):
                    array = value.detach().cpu().numpy()
                    self.context.keep(f"{kind}:{name}", array)
                    kept[f"{kind}:{name}"] = (array.shape, str(array.dtype))
        return kept

    def whole(self, model: nn.Module) -> nn.Module:
        """Return ``model``, a new one, with the weights that all ranks have together."""
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        along = self.groups.over("pipeline")
        with torch.no_grad():
            for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
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
