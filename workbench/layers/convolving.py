"""The arithmetic of a convolution on one rank: forward and backward, with fetched rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.layers.fetch import extend
from workbench.windows import Rows

if TYPE_CHECKING:
    from workbench.layers.convolution import ConvolutionShare, Edge

_convolution = torch.ops.aten.convolution
_convolution_backward = torch.ops.aten.convolution_backward


def composed(
    share: ConvolutionShare, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """Return the rank's outputs by differentiable pieces; for any dtype, and autocast."""
    return outputs(share, padded(share, share.fetch(x)), weight, bias, groups)


def padded(share: ConvolutionShare, needed: Tensor) -> Tensor:
    """Return the rows that are convolved, given the needed ones of the cut dims; differentiable."""
    for number, rows in enumerate(share.padded):
        if rows is not None:
            dim = number + 2
            x = needed if dim in share.fetch.dims else _taken(needed, dim, rows)
            needed = extend(x, dim, rows)
    return needed


def _taken(x: Tensor, dim: int, rows: Rows) -> Tensor:
    if rows.runs == ((0, x.shape[dim]),):
        return x
    return torch.cat([x.narrow(dim, start, stop - start) for start, stop in rows.runs], dim)


def _zero_padding(share: ConvolutionShare) -> list[int]:
    return [
        0 if rows is not None else padding
        for rows, padding in zip(share.padded, share.padding, strict=True)
    ]


def outputs(
    share: ConvolutionShare, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """Return the outputs of padded rows; differentiable."""
    if share.empty or share.unreached:
        filters = weight.shape[1] * groups if share.transposed else weight.shape[0]
        sizes = [stop - start for start, stop in share.outputs]
        nothing = (x.sum() + weight.sum()) * 0
        # An array of its own, since code that follows may change it in place.
        out = nothing.expand((x.shape[0], filters, *sizes)).clone()
        return out if bias is None else out + bias.view(-1, *(1,) * len(sizes))
    none = [0] * len(share.windows)
    if not share.transposed:
        result: Tensor = _convolution(
            x, weight, bias, share.stride, _zero_padding(share), share.dilation, False, none, groups
        )
        return result
    surplus = share.surplus
    made = _convolution(
        x,
        weight,
        None,
        share.stride,
        [padding for padding, *_ in surplus],
        share.dilation,
        True,
        [more for _, more, *_ in surplus],
        groups,
    )
    for number, (_, _, first, last) in enumerate(surplus):
        if first or last:
            sides = [0] * (2 * (len(surplus) - number - 1)) + [-first, -last]
            made = torch.nn.functional.pad(made, sides)
    return made if bias is None else made + bias.view(-1, *(1,) * len(surplus))


class Convolve(torch.autograd.Function):
    """Convolution of a share; keeps the own input and the fetched rows, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        share: ConvolutionShare,
        groups: int,
    ) -> Tensor:
        """Send the rows that others need, then convolve."""
        finish = share.fetch.start(x)
        edges = share.edges
        if edges is not None:
            out = _by_own_rows(share, x, weight, bias, groups)
            received = finish()
            for edge in edges:
                _add_edge(share, edge, out, received, weight, groups)
        else:
            received = finish()
            rows = padded(share, share.fetch.assemble(x, received))
            out = outputs(share, rows, weight, bias, groups)
        ctx.share, ctx.groups, ctx.owners = share, groups, tuple(received)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight, *received.values())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Send the gradients of fetched rows back, and add up those of the own ones."""
        x, weight, *messages = ctx.saved_tensors
        received = dict(zip(ctx.owners, messages, strict=True))
        share: ConvolutionShare = ctx.share
        wanted = ctx.needs_input_grad
        wanted = (*wanted[:2], ctx.has_bias and wanted[2])
        way = _backward_by_own_rows if share.edges is not None else _backward_by_padded_rows
        return *way(share, grads[0], x, weight, received, ctx.groups, wanted), None, None


def _backward_by_padded_rows(
    share: ConvolutionShare,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    received: Mapping[int, Tensor],
    groups: int,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    bias = grad.sum([0, *range(2, grad.dim())]) if wanted[2] else None
    needed = share.fetch.assemble(x, received).detach().requires_grad_(wanted[0])
    own_weight = weight.detach().requires_grad_(wanted[1])
    asked = [tensor for tensor in (needed, own_weight) if tensor.requires_grad]
    if not asked:
        return None, None, bias
    with torch.enable_grad():
        out = outputs(share, padded(share, needed), own_weight, None, groups)
    found = iter(torch.autograd.grad(out, asked, grad, allow_unused=True))
    of_needed = next(found) if wanted[0] else None
    of_weight = next(found) if wanted[1] else None
    if not wanted[0]:
        return None, of_weight, bias
    if of_needed is None:
        of_needed = torch.zeros_like(needed)
    finish = share.fetch.start_back(share.fetch.pieces(of_needed), of_needed, x.shape)
    of_x = share.fetch.own_gradient(of_needed, x.shape)
    share.fetch.add(of_x, finish())
    return of_x, of_weight, bias


# The fast way: own rows as they lie, and small convolutions at the edges.


def _own_padding(share: ConvolutionShare) -> tuple[list[int], int, int]:
    """Return the paddings for the own rows, the cut dim, and the first output row to take there."""
    dim = share.fetch.dims[0]
    number = dim - 2
    window, (low, high) = share.windows[number], share.fetch.own[0]
    start, stop = share.outputs[number]
    before = window.padding + low - start
    after = stop - window.padding - high + window.span - 1
    padding = [*share.padding]
    padding[number] = max(0, before, after)
    return padding, dim, padding[number] - before


def _by_own_rows(
    share: ConvolutionShare, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    padding, dim, first = _own_padding(share)
    none = [0] * len(padding)
    out: Tensor = _convolution(
        x, weight, bias, share.stride, padding, share.dilation, False, none, groups
    )
    start, stop = share.outputs[dim - 2]
    if out.shape[dim] != stop - start:
        out = out.narrow(dim, first, stop - start).contiguous()
    return out


def _edge_rows(
    share: ConvolutionShare, edge: Edge, received: Mapping[int, Tensor]
) -> tuple[Tensor, list[tuple[int, int, int, int]]]:
    """Return the input rows of an edge, zero where they are the own ones, and where they lie.

    Places are (owner, first row in the edge, first row in the message, number of rows).
    """
    dim = share.fetch.dims[0]
    base = share.fetch.own[0][0]
    low, high = base + edge.low, base + edge.high
    places = []
    for owner in received:
        ((start, stop),) = share.fetch.received[owner][0]
        first, last = max(start, low), min(stop, high)
        if first < last:
            places.append((owner, first - low, first - start, last - first))
    example = next(iter(received.values()))
    shape = list(example.shape)
    shape[dim] = high - low
    rows = example.new_zeros(shape)
    for owner, to, source, count in places:
        rows.narrow(dim, to, count).copy_(received[owner].narrow(dim, source, count))
    return rows, places


def _edge_padding(share: ConvolutionShare) -> list[int]:
    padding = [*share.padding]
    padding[share.fetch.dims[0] - 2] = 0
    return padding


def _add_edge(
    share: ConvolutionShare,
    edge: Edge,
    out: Tensor,
    received: Mapping[int, Tensor],
    weight: Tensor,
    groups: int,
) -> None:
    rows, _ = _edge_rows(share, edge, received)
    padding, dim = _edge_padding(share), share.fetch.dims[0]
    none = [0] * len(padding)
    more = _convolution(
        rows, weight, None, share.stride, padding, share.dilation, False, none, groups
    )
    out.narrow(dim, edge.start, edge.count).add_(more)


def _backward_by_own_rows(
    share: ConvolutionShare,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    received: Mapping[int, Tensor],
    groups: int,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    assert share.edges is not None
    fetch, none = share.fetch, [0] * len(share.padding)
    dim = fetch.dims[0]
    pieces = {owner: torch.zeros_like(message) for owner, message in received.items()}
    of_edges: list[Tensor] = []
    for edge in share.edges:
        rows, places = _edge_rows(share, edge, received)
        of_rows, of_weight, _ = _convolution_backward(
            grad.narrow(dim, edge.start, edge.count).contiguous(),
            rows,
            weight,
            None,
            share.stride,
            _edge_padding(share),
            share.dilation,
            False,
            none,
            groups,
            [wanted[0], wanted[1], False],
        )
        if wanted[1]:
            of_edges.append(of_weight)
        if wanted[0]:
            for owner, to, source, count in places:
                pieces[owner].narrow(dim, source, count).add_(of_rows.narrow(dim, to, count))
    finish = fetch.start_back(pieces, grad, x.shape) if wanted[0] else None
    padding, _, first = _own_padding(share)
    rows_out = x.shape[dim] + 2 * padding[dim - 2] - share.windows[dim - 2].span + 1
    if grad.shape[dim] != rows_out:
        wide = grad.new_zeros([rows_out if d == dim else n for d, n in enumerate(grad.shape)])
        wide.narrow(dim, first, grad.shape[dim]).copy_(grad)
        grad = wide
    of_x, of_weight, of_bias = _convolution_backward(
        grad,
        x,
        weight,
        [weight.shape[0]],
        share.stride,
        padding,
        share.dilation,
        False,
        none,
        groups,
        list(wanted[:3]),
    )
    for more in of_edges:
        of_weight += more
    if finish is not None:
        fetch.add(of_x, finish())
    return (
        of_x if wanted[0] else None,
        of_weight if wanted[1] else None,
        of_bias if wanted[2] else None,
    )
