"""A rank's shares of parameters and buffers: what it keeps, and the whole put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from workbench import generators
from workbench.cluster.context import RankContext
from workbench.layers.channels import own_part
from workbench.layers.groups import Groups
from workbench.layers.precision import exactly
from workbench.plan import Plan, assemble, is_first

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
        self.options: list[dict[str, NDArray[Any]]] = []

    def own(self, state: Mapping[str, Value]) -> dict[str, Value]:
        """Return what this rank has of parameters or buffers, by name."""
        return {name: v for name, v in state.items() if self.plan.holds(name, self.context.rank)}

    def cut(self, name: str, whole: Tensor) -> Tensor:
        """Return what this rank keeps of an array like a parameter, of the optimizer's state."""
        for cut in self.plan.kept_cuts(f"optimizer::{name}", whole.dim()):
            whole = own_part(whole, cut, self.plan, self.context.rank)
        return whole

    def keep(
        self, optimizer: Optimizer, updated: Mapping[str, nn.Parameter], mark: str = ""
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        """Leave this rank's shares on its worker, if no rank before has the same.

        There, ``mark`` stands before their names. ``updated`` are the parameters, or shares, of the
        optimizer. Returns shapes and dtypes by ``"parameter:NAME"``, ``"buffer:NAME"``, and of the
        optimizer ``"optimizer:KEY:NAME"`` for arrays, ``"number:KEY:NAME"`` for numbers,
        ``"group:KEY:NAME"`` for options that it has changed by itself, and ``"unkept:KEY:NAME"``
        for what is neither. The generators of every rank are ``"random:RANK:NAME"``.
        """
        kept = {}
        for name, array in self._everything(optimizer, updated):
            if is_first(self.plan, name, array.ndim, self.context.rank):
                self.context.keep(mark + name, array)
                kept[name] = (array.shape, str(array.dtype))
        for name, array in generators.states(self.context.device).items():
            name = f"random:{self.context.rank}:{name}"
            self.context.keep(mark + name, array)
            kept[name] = (array.shape, str(array.dtype))
        return kept

    def take(self, optimizer: Optimizer, updated: Mapping[str, nn.Parameter]) -> None:
        """Go on from the shares of another run, where this rank has been given any."""
        self.options = _options(optimizer)
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
        own = self.own(updated)
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for key, array in arrays.items():
            kind, _, rest = key.partition(":")
            entry, _, name = rest.partition(":")
            if name not in own:
                continue
            parameter = own[name]
            if kind == "optimizer":
                value = torch.from_numpy(array.copy())
                value = value.to(parameter.device) if value.dim() else value
                optimizer.state[parameter][entry] = value
            elif kind == "number":
                optimizer.state[parameter][entry] = array.item()
            elif kind == "group" and id(parameter) in groups:
                group = groups[id(parameter)]
                if isinstance(group[entry], Tensor):
                    group[entry].copy_(torch.from_numpy(array.copy()))
                else:
                    group[entry] = tuple(array.tolist()) if array.ndim else array.item()

    def restore_generators(self) -> None:
        """Draw what comes next in the run that this one goes on from, if that is known."""
        prefix = f"random:{self.context.rank}:"
        arrays = self.context.arrays.items()
        given = {k.removeprefix(prefix): a for k, a in arrays if k.startswith(prefix)}
        generators.restore(given, self.context.device)

    def _everything(
        self, optimizer: Optimizer, updated: Mapping[str, nn.Parameter]
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, parameter in self.own(self.parameters).items():
            yield f"parameter:{name}", _numpy(parameter)
        for name, buffer in self.own(dict(self.model.named_buffers())).items():
            yield f"buffer:{name}", _numpy(buffer)
        own = self.own(updated)
        for name, parameter in own.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"optimizer:{key}:{name}", _numpy(value)
                elif isinstance(value, bool | int | float):
                    yield f"number:{key}:{name}", np.asarray(value)
                elif value is not None:
                    yield f"unkept:{key}:{name}", np.zeros(0, dtype=np.uint8)
        names = {id(parameter): name for name, parameter in own.items()}
        now = _options(optimizer)
        for group, before, after in zip(optimizer.param_groups, self.options, now, strict=True):
            for key, option in after.items():
                if not np.array_equal(option, before.get(key, ())):
                    for parameter in group["params"]:
                        yield f"group:{key}:{names[id(parameter)]}", option

    def whole(self, model: nn.Module) -> nn.Module:
        """Return ``model``, a new one, with the weights that all ranks have together."""
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        along = self.groups.over("pipeline")
        with torch.no_grad():
            for name, value in (*self.parameters.items(), *self.model.named_buffers()):
                if along.size > 1:
                    if value.is_meta:
                        like = state[name]  # another rank has it, in the dtype of updates
                        value = torch.empty(value.shape, dtype=like.dtype, device=like.device)
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


def _numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = exactly(value.detach()).cpu().numpy()
    return array


def _options(optimizer: Optimizer) -> list[dict[str, NDArray[Any]]]:
    """Return the options of each group that are numbers: some optimizers change theirs."""
    found = []
    for group in optimizer.param_groups:
        numbers = {
            key: _numpy(value).copy() if isinstance(value, Tensor) else np.asarray(value)
            for key, value in group.items()
            if key != "params" and _is_numeric(value)
        }
        found.append(numbers)
    return found


def _is_numeric(value: object) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(isinstance(each, bool | int | float) for each in value)
    return isinstance(value, bool | int | float | Tensor)
