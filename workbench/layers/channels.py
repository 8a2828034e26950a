"""Convolutions of which a rank has some filters, input channels or groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workbench.comm.comm import Comm
from workbench.layers.carrier import Forward, Seat
from workbench.layers.gather import Whole, all_reduce_sum
from workbench.mesh import balanced
from workbench.plan import Cut, LayerPlan
from workbench.windows import Run

AXIS = "channel"


def is_split(planned: LayerPlan) -> bool:
    """Return whether the plan gives ranks parts of this layer's own parameters or buffers."""
    return any(cut.axis == AXIS for _, cut in planned.parameters)


def narrow(module: nn.Module, seat: Seat) -> None:
    """Leave on ``module`` this rank's part of its parameters and buffers, under their names."""
    planned, mesh = seat.calls[0], seat.plan.mesh
    degree, place = mesh.degree(AXIS), mesh.place(seat.rank, AXIS)
    for name, cut in planned.parameters:
        attribute = name.rpartition(".")[2]
        whole = getattr(module, attribute)
        start, stop = balanced(whole.shape[cut.dim], degree, place)
        own = whole.detach().narrow(cut.dim, start, stop - start).clone()
        if isinstance(whole, nn.Parameter):
            own = nn.Parameter(own, requires_grad=whole.requires_grad)
        setattr(module, attribute, own)
    if planned.choice == "groups":
        start, stop = balanced(planned.layer.groups, degree, place)
        module.groups = stop - start  # type: ignore[assignment]


def around(forward: Forward, module: nn.Module, seat: Seat) -> Forward:
    """Return ``forward`` with what has to be done before and after it on the channels."""
    planned = seat.calls[0]
    comm, choice = seat.comm(AXIS), planned.choice
    place, degree = seat.plan.mesh.place(seat.rank, AXIS), seat.plan.mesh.degree(AXIS)
    source_cut = any(c.axis == AXIS for c in planned.input)
    stays = any(c.axis == AXIS for c in planned.output)
    channels = balanced(planned.layer.input_shape[1], degree, place)
    pieces = [balanced(planned.layer.output_shape[1], degree, index) for index in range(degree)]
    whole = Whole(
        planned.layer.output_shape,
        (Cut(1, AXIS),),
        seat.plan,
        seat.groups,
        f"{seat.name}: whole output",
        f"{seat.name}: gradient of the whole output",
    )

    def run(input: Tensor, *more: Any, **named: Any) -> Tensor:
        if choice == "groups" and not source_cut:
            input = input.narrow(1, channels[0], channels[1] - channels[0])
        if choice != "channels":
            output: Tensor = forward(input, *more, **named)
            return output if stays else whole(output)
        partial = _with_bias_once(forward, module, place == 0, input, *more, **named)
        there, back = f"{seat.name}: sum of outputs", f"{seat.name}: gradients of outputs"
        if not stays:
            return all_reduce_sum(partial, comm, there, back)
        result: Tensor = _ReduceScatter.apply(partial, pieces, comm, there, back)
        return result

    return run


def _with_bias_once(
    forward: Forward, module: nn.Module, first: bool, *given: Any, **named: Any
) -> Tensor:
    """Call ``forward`` with a bias on the first rank only, since results are added up."""
    bias = module._parameters.get("bias")
    if first or bias is None:
        result: Tensor = forward(*given, **named)
        return result
    # What stands in the instance is found before what is registered as a parameter.
    module.__dict__["bias"] = bias * 0
    try:
        result = forward(*given, **named)
    finally:
        del module.__dict__["bias"]
    return result


class _ReduceScatter(torch.autograd.Function):
    """The sum over ranks, of which each keeps its channels; backward gathers their gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pieces: list[Run], comm: Comm, name: str, backward_name: str
    ) -> Tensor:
        ctx.comm, ctx.name = comm, backward_name
        parts = [x.narrow(1, start, stop - start).contiguous() for start, stop in pieces]
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
        return torch.cat(every, 1), None, None, None, None
