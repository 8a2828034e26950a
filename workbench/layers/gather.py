"""Arrays from shares to whole and back, and sums over ranks, as operations with a gradient.

The backward pass of each is its true adjoint. So the gradient of a share is that of the share, and
the gradients that ranks have of a whole array add up to the true one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workbench.comm.comm import Comm
from workbench.errors import RunError
from workbench.layers.carrier import Forward, Seat
from workbench.layers.groups import Groups
from workbench.mesh import BATCH_AXES
from workbench.plan import Cut, LayerPlan, Plan, runs_of
from workbench.traced import Flat
from workbench.windows import Run


def all_reduce_sum(x: Tensor, comm: Comm, name: str, backward_name: str) -> Tensor:
    """Return the sum of ``x`` over the ranks of ``comm``: a new array, or ``x`` on one rank.

    Every rank adds to the result of every rank, so backward is the same sum of the gradients.
    """
    if comm.size == 1:
        return x
    result: Tensor = _AllReduceSum.apply(x, comm, name, backward_name)
    return result


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Comm, name: str, backward_name: str) -> Tensor:
        ctx.comm, ctx.backward_name = comm, backward_name
        return comm.all_reduce(_copy(x), name=name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.comm.all_reduce(_copy(grads[0]), name=ctx.backward_name), None, None, None


class Whole:
    """Gathers the shares of an array on every rank, along one or several dims at once.

    Forward is one all_gather. Backward is one exchange: every rank gets from each other what that
    says of its own share, and adds it up. Shares may have any sizes, 0 included. Dims that are not
    cut may have another size than planned (fewer samples in the last batch).

    Parameters
    ----------
    shape, cuts:
        The whole array as planned. Dims that were flattened out of several cannot be gathered.
    """

    def __init__(
        self,
        shape: Sequence[int],
        cuts: Sequence[Cut],
        plan: Plan,
        groups: Groups,
        name: str,
        backward_name: str,
    ) -> None:
        cuts = [cut for cut in cuts if cut.axis not in BATCH_AXES]
        if any(cut.flat is not None for cut in cuts):
            raise ValueError(f"{name}: the shares of a flattened dim are no ranges of it")
        axes = {cut.axis for cut in cuts}
        self.comm = groups.over(*axes)
        self.shape, self.name, self.backward_name = tuple(shape), name, backward_name
        self.dims = tuple(sorted({cut.dim for cut in cuts}))
        self.boxes: list[tuple[Run, ...]] = []
        for peer in plan.mesh.group(groups.rank, *axes):
            ranges = plan.share(shape, cuts, peer)
            self.boxes.append(tuple(ranges[dim] for dim in self.dims))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the whole array, given this rank's share.

        Raises
        ------
        RunError
            If the share has not the planned size along a dim that is cut.
        """
        if self.comm.size == 1:
            return x
        for dim, (start, stop) in zip(self.dims, self.boxes[self.comm.rank], strict=True):
            if x.shape[dim] != stop - start:
                raise RunError(
                    f"{self.name}: given {tuple(x.shape)}, where the plan has {stop - start} of "
                    f"{self.shape[dim]} along dim {dim} on this rank. The model's code takes "
                    "another way than when the plan was made.",
                    rank=self.comm.rank,
                )
        result: Tensor = _Gather.apply(x, self)
        return result

    def box(self, whole: Tensor, index: int) -> Tensor:
        """Return what rank ``index`` of the communicator owns of a whole array, as a view."""
        for dim, (start, stop) in zip(self.dims, self.boxes[index], strict=True):
            whole = whole.narrow(dim, start, stop - start)
        return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Whole) -> Tensor:
        ctx.whole = whole
        parts = whole.comm.all_gather(x, name=whole.name)
        if len(whole.dims) == 1:
            return torch.cat(parts, whole.dims[0])
        shape = [
            whole.shape[dim] if dim in whole.dims else size for dim, size in enumerate(x.shape)
        ]
        result = x.new_empty(shape)
        for index, part in enumerate(parts):
            whole.box(result, index).copy_(part)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        whole: Whole = ctx.whole
        comm, grad = whole.comm, grads[0]
        own = _copy(whole.box(grad, comm.rank))
        others = [index for index in range(comm.size) if index != comm.rank]
        pieces = {index: whole.box(grad, index) for index in others}
        outgoing = {index: piece.contiguous() for index, piece in pieces.items() if piece.numel()}
        incoming = {index: torch.empty_like(own) for index in others} if own.numel() else {}
        comm.exchange(outgoing, incoming, name=whole.backward_name)
        for index in incoming:
            own += incoming[index]
        return own, None


def split(x: Tensor, ranges: Sequence[Run], dims: Sequence[int]) -> Tensor:
    """Return the ``ranges`` of a whole array along ``dims``: a view; backward pads with zeros."""
    for dim, (start, stop) in zip(dims, ranges, strict=True):
        if (start, stop) != (0, x.shape[dim]):
            x = x.narrow(dim, start, stop - start)
    return x


def split_flat(x: Tensor, dim: int, flat: Flat, plan: Plan, rank: int) -> Tensor:
    """Return what ``rank`` owns of a whole array along a dim that was flattened out of several.

    It is copied: the share is no single range of the dim.
    """
    sizes = [size for _, size in flat.parts]
    owned = [plan.share_of_label(label, size, rank) for label, size in flat.parts]
    if flat.beside:
        runs = runs_of(flat, owned)
        return torch.cat([x.narrow(dim, start, stop - start) for start, stop in runs], dim)
    x = split(x.unflatten(dim, sizes), owned, range(dim, dim + len(sizes)))
    shape = (*x.shape[:dim], prod(b - a for a, b in owned), *x.shape[dim + len(sizes) :])
    return x.reshape(shape)


class Together:
    """Adds up over ranks what each has found along some dims of an array that is cut there.

    Where other dims are cut over the same ranks, as on a grid, the ranks' results along those are
    put in their places of a whole array of zeros first, so that one sum over all ranks does.

    Parameters
    ----------
    dims:
        Those summed over, not negative.

    Attributes
    ----------
    comm:
        The ranks along the axes that cut ``dims``; one rank where none is cut.
    count:
        The numbers in the whole array along ``dims``; a dim 0 among them counts as planned.
    """

    def __init__(self, seat: Seat, planned: LayerPlan, dims: Sequence[int]) -> None:
        shape = planned.layer.input_shape
        cuts = [cut for cut in planned.input if cut.axis not in BATCH_AXES]
        axes = {cut.axis for cut in cuts if cut.dim in dims}
        self.comm = seat.comm(*axes)
        self.count = prod(shape[dim] for dim in dims)
        ranges = seat.ranges(shape, tuple(cuts))
        self._beside = {
            cut.dim: (*ranges[cut.dim], shape[cut.dim])
            for cut in cuts
            if cut.axis in axes and cut.dim not in dims and cut.dim > 0
        }

    def sum(self, x: Tensor, name: str, backward_name: str) -> Tensor:
        """Return the sum over ranks of ``x``, which has the array's dims, those summed of size 1.

        Differentiable.
        """
        return self._own(all_reduce_sum(self._whole(x), self.comm, name, backward_name))

    def largest(self, x: Tensor, name: str) -> Tensor:
        """Return the maximum over ranks, in the same way; no gradient."""
        x = x.detach()
        if self.comm.size == 1:
            return x
        whole = self._whole(x, -torch.inf).contiguous().clone()
        return self._own(self.comm.all_reduce(whole, "max", name=name))

    def _whole(self, x: Tensor, fill: float = 0.0) -> Tensor:
        if not self._beside or self.comm.size == 1:
            return x
        padding = [0] * (2 * x.dim())
        for dim, (start, stop, size) in self._beside.items():
            place = 2 * (x.dim() - 1 - dim)
            padding[place : place + 2] = [start, size - stop]
        return nn.functional.pad(x, padding, value=fill)

    def _own(self, x: Tensor) -> Tensor:
        if self.comm.size == 1:
            return x
        return split(x, [(a, b) for a, b, _ in self._beside.values()], list(self._beside))


def build_opaque(module: nn.Module, seat: Seat) -> Forward:
    """Return the forward of a layer that takes whole arrays only, given and giving shares.

    Every tensor among its arguments that is cut is gathered on every rank, the module's own forward
    runs on whole arrays, and of every result that is cut the rank takes its share. Tensors are
    numbered as they stand in the arguments, those in tuples, lists and dicts included.
    """
    own: Forward = module.forward
    made = {id(planned): _gathers(planned, seat) for planned in seat.calls}

    def forward(*args: Any, **kwargs: Any) -> Any:
        given: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            given.append(x)
            return x

        over_tensors((args, kwargs), note)
        if not given:
            return own(*args, **kwargs)
        planned = seat.call(given[0])
        wholes = iter(made[id(planned)])

        def gathered(x: Tensor) -> Tensor:
            whole = next(wholes, None)
            return x if whole is None else whole(x)

        args, kwargs = over_tensors((args, kwargs), gathered)
        results = iter(planned.layer.results)

        def own_share(x: Tensor) -> Tensor:
            result = next(results, None)
            cuts = seat.plan.cuts_of(result) if result is not None else ()
            if result is None or not cuts:
                return x
            for flat, dim in {(cut.flat, cut.dim): None for cut in cuts if cut.flat is not None}:
                assert flat is not None
                x = split_flat(x, dim, flat, seat.plan, seat.rank)
            plain = tuple(cut for cut in cuts if cut.flat is None)
            ranges = seat.ranges(result.shape, plain)
            dims = sorted({cut.dim for cut in plain})
            return split(x, [ranges[dim] for dim in dims], dims)

        return over_tensors(own(*args, **kwargs), own_share)

    return forward


def _gathers(planned: LayerPlan, seat: Seat) -> list[Whole | None]:
    """Return what gathers each argument of a call; None for one that is whole."""
    found: list[Whole | None] = []
    for number, array in enumerate(planned.layer.arguments):
        cuts = seat.plan.cuts_of(array) if planned.choice == "gather" else ()
        what = f"input {number}"
        names = (f"{seat.name}: {what}", f"{seat.name}: gradient of {what}")
        found.append(Whole(array.shape, cuts, seat.plan, seat.groups, *names) if cuts else None)
    return found


def over_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``value`` with every tensor in it changed, those in tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        changed = {key: over_tensors(item, change) for key, item in value.items()}
        if type(value) is dict:
            return changed
        result = type(value).__new__(type(value))
        for key, item in changed.items():  # the outputs of transformers have no update
            result[key] = item
        return result
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(over_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(over_tensors(item, change) for item in value)
    return value


def _copy(x: Tensor) -> Tensor:
    """Return a contiguous copy."""
    return x.clone(memory_format=torch.contiguous_format)
