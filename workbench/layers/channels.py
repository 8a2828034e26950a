"""Layers of which a rank has some filters or columns, input channels or rows, or groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workbench.comm.comm import Comm
from workbench.layers.carrier import Forward, Seat
from workbench.layers.gather import Whole, all_reduce_sum, split_flat
from workbench.mesh import balanced, balanced_units, cuts_features
from workbench.plan import Cut, LayerPlan, Plan
from workbench.windows import Run


def is_split(planned: LayerPlan) -> bool:
    """Return whether the plan gives ranks parts of what this layer itself multiplies by."""
    splits = planned.layer.role in ("conv", "linear", "embedding")
    return splits and bool(planned.feature_axis)


def narrow(model: nn.Module, plan: Plan, rank: int) -> None:
    """Leave on the modules of ``model`` the rank's parts of their parameters and buffers.

    Names stay, and what several modules hold stays one.
    """
    cuts = {
        name: cut
        for planned in plan.layers
        for name, cut in planned.parameters
        if cuts_features(cut.axis)
    }
    if not cuts:
        return
    own: dict[int, Tensor] = {}
    for name, whole in (*model.named_parameters(), *model.named_buffers()):
        if name in cuts:
            part = own_part(whole.detach(), cuts[name], plan, rank).clone()
            if isinstance(whole, nn.Parameter):
                part = nn.Parameter(part, requires_grad=whole.requires_grad)
            own[id(whole)] = part
    for module in model.modules():
        for attribute, held in [*module._parameters.items(), *module._buffers.items()]:
            if id(held) in own:
                setattr(module, attribute, own[id(held)])


def own_part(whole: Tensor, cut: Cut, plan: Plan, rank: int) -> Tensor:
    """Return the rank's part of a whole parameter that is cut so."""
    if cut.flat is not None:
        return split_flat(whole, cut.dim, cut.flat, plan, rank)
    start, stop = plan.share(whole.shape, [cut], rank)[cut.dim]
    return whole.narrow(cut.dim, start, stop - start)


def adapt(model: nn.Module, plan: Plan, rank: int) -> None:
    """Let modules keep the numbers of the rank's share of heads and the like."""
    cut = {label.label for label in plan.cut_labels}
    for adapted in plan.adapted:
        if adapted.label in cut:
            start, stop = plan.share_of_label(adapted.label, adapted.size, rank)
            setattr(model.get_submodule(adapted.module), adapted.attribute, stop - start)


def around(forward: Forward, module: nn.Module, seat: Seat) -> Forward:
    """Return ``forward`` with what has to be done before and after it on the features."""
    planned, mesh = seat.calls[0], seat.plan.mesh
    layer, axis = planned.layer, planned.feature_axis
    comm, choice = seat.comm(axis), planned.choice
    place, degree = mesh.place(seat.rank, axis), mesh.degree(axis)
    made = layer.results[0]
    features = [c for c in planned.output if c.axis == axis and c.dim == layer.feature_dim(made)]
    stays = bool(features)
    units = features[0].units if features else 0
    # Positions that the rank gets the sums of, by the number of the array's dims.
    positions = {
        len(call.layer.results[0].shape): cut.dim
        for call in seat.calls
        for cut in call.output
        if cut.axis == axis and cut.dim != layer.feature_dim(call.layer.results[0])
    }
    size = made.shape[layer.feature_dim(made)]
    pieces = [balanced_units(size, degree, index, units) for index in range(degree)]
    if choice == "groups":
        start, stop = balanced(layer.groups, degree, place)
        module.groups = stop - start  # type: ignore[assignment]
    # A layer may be called with arrays of several numbers of dims.
    dims = {len(x.shape): layer.feature_dim(x) for call in seat.calls for x in call.layer.results}
    wholes = {
        number: Whole(
            (*(1,) * dim, size, *(1,) * (number - dim - 1)),
            (Cut(dim, axis),),
            seat.plan,
            seat.groups,
            f"{seat.name}: whole output",
            f"{seat.name}: gradient of the whole output",
        )
        for number, dim in dims.items()
    }

    def run(input: Tensor, *more: Any, **named: Any) -> Tensor:
        if choice == "groups" and input.shape[1] == layer.input_shape[1]:  # whole in this call
            first, last = balanced(layer.input_shape[1], degree, place)
            input = input.narrow(1, first, last - first)
        if choice != "channels":
            output: Tensor = forward(input, *more, **named)
            return output if stays else wholes[output.dim()](output)
        partial = _with_bias_once(forward, module, place == 0, input, *more, **named)
        there, back = f"{seat.name}: sum of outputs", f"{seat.name}: gradients of outputs"
        if partial.dim() in positions:
            return reduce_scatter_sum(partial, positions[partial.dim()], comm, there, back)
        if not stays:
            return all_reduce_sum(partial, comm, there, back)
        result: Tensor = _ReduceScatter.apply(
            partial, dims[partial.dim()], pieces, comm, there, back
        )
        return result

    return run


def _with_bias_once(
    forward: Forward, module: nn.Module, first: bool, *given: Any, **named: Any
) -> Tensor:
    """Call ``forward`` with a bias on the first rank only, since results are added up."""
    bias = getattr(module, "bias", None)
    if first or bias is None:
        result: Tensor = forward(*given, **named)
        return result
    # What stands in the instance is found before what is registered as a parameter.
    before = module.__dict__.get("bias")
    module.__dict__["bias"] = bias * 0
    try:
        result = forward(*given, **named)
    finally:
        if before is None:
            del module.__dict__["bias"]
        else:
            module.__dict__["bias"] = before
    return result


def reduce_scatter_sum(x: Tensor, dim: int, comm: Comm, name: str, backward_name: str) -> Tensor:
    """Return the sum of ``x`` over the ranks of ``comm``, of which each gets its part of ``dim``.

    Backward gathers the gradients of all parts.
    """
    pieces = [balanced(x.shape[dim], comm.size, index) for index in range(comm.size)]
    result: Tensor = _ReduceScatter.apply(x, dim, pieces, comm, name, backward_name)
    return result


class _ReduceScatter(torch.autograd.Function):
    """The sum over ranks, of which each keeps its features; backward gathers their gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, pieces: list[Run], comm: Comm, name: str, backward_name: str
    ) -> Tensor:
        ctx.comm, ctx.name, ctx.dim = comm, backward_name, dim
        parts = [x.narrow(dim, start, stop - start).contiguous() for start, stop in pieces]
        own = parts[comm.rank].clone()
        others = [index for index in range(comm.size) if index != comm.rank]
        coming = {index: torch.empty_like(own) for index in others}
        comm.exchange({index: parts[index] for index in others}, coming, name=name)
        for index in others:
            own += coming[index]
        return own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        every = ctx.comm.all_gather(grads[0].contiguous(), name=ctx.name)
        return torch.cat(every, ctx.dim), None, None, None, None, None
