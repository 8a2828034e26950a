"""Gradients of parameters that several ranks have, added up over those ranks in buckets."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from workbench.comm.comm import Comm
from workbench.layers.compression import Reducer, reducer
from workbench.layers.groups import Groups
from workbench.layers.precision import Masters
from workbench.layers.weight_gradients import Product
from workbench.plan import Bucket
from workbench.plan.replicas import WHOLE, Compression


class GradientBuckets:
    """Collects gradients in buckets of shared memory and adds them up over the ranks.

    The gradient leaves ``parameter.grad`` as soon as backward has made it, while it is still in the
    processor's cache, and lies where every rank can read it: the all_reduce moves nothing twice.
    Of a parameter that no other rank has, the gradient stays where backward has put it.

    Parameters
    ----------
    parameters:
        By name, as in the plan.
    buckets:
        Names of the parameters that travel together, and along which axes, as in the plan.
    summed:
        Names of those whose gradients come added up over samples of several ranks: they count on a
        rank without samples too.
    masters:
        What is computed with for ``parameters``, where that is something else: gradients come of
        it, perhaps in less precision, and are added up in that of ``parameters``.
    compression:
        What replicas along the axis data send of a bucket.

    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        buckets: Iterable[Bucket],
        groups: Groups,
        summed: Collection[str] = (),
        masters: Masters | None = None,
        compression: Compression = WHOLE,
    ) -> None:
        self.parameters: list[nn.Parameter] = []
        self.masters = masters
        self._in_place: list[nn.Parameter] = []  # of these a stand-in's gradient may be in the way
        self.buckets: list[tuple[int, Tensor, Comm, Reducer | None]] = []
        self.slices: list[Tensor | None] = []  # None for those that stay where they are
        # Where in the record of all parameters those are that this rank has.
        self.places: list[int] = []
        self.numbers: dict[int, int] = {}  # by what gradients come of
        self.always: list[bool] = []
        self.total = 0
        for number, planned in enumerate(buckets):
            first, self.total = self.total, self.total + len(planned.names)
            if planned.names[0] not in parameters:
                continue  # other ranks of a pipeline have them
            members = [parameters[name] for name in planned.names]
            sources = members
            if masters is not None:
                sources = [masters.computing[name] for name in planned.names]
            same = all(one is other for one, other in zip(members, sources, strict=True))
            if same and not planned.axes:
                for place, (name, parameter) in enumerate(zip(planned.names, members, strict=True)):
                    self._add(parameter, parameter, None, first + place, name in summed)
                continue
            comm = groups.among(planned.axes, planned.places)
            compress: Reducer | None = None
            if compression.kind != "none" and "data" in planned.axes:
                others = tuple(axis for axis in planned.axes if axis != "data")
                comm = groups.among(others, planned.places)
                shapes = [tuple(p.shape) for p in members]
                like = members[0].new_empty(sum(p.numel() for p in members))
                compress = reducer(compression, shapes, like, groups.over("data"), number)
            bucket = comm.allocate(sum(p.numel() for p in members), members[0].dtype)
            self.buckets.append((number, bucket, comm, compress))
            offset = 0
            for place, (name, parameter) in enumerate(zip(planned.names, members, strict=True)):
                piece = bucket[offset : offset + parameter.numel()].view(parameter.shape)
                offset += parameter.numel()
                self._add(parameter, sources[place], piece, first + place, name in summed)
        self.arrived = [False] * len(self.parameters)
        self._counting = True
        self._aside: dict[nn.Parameter, Tensor] = {}

    def add(self, parameter: nn.Parameter, product: Product) -> bool:
        """Add a gradient of what is computed with where the sum lies; False if that is not here."""
        number = self.numbers.get(id(parameter))
        if number is None:
            return False
        if self.counting or self.always[number]:
            piece, own = self.slices[number], self.parameters[number]
            if piece is not None:
                product.write(piece, self.arrived[number])
            elif own.grad is None:
                own.grad = product.value()
            else:
                product.write(own.grad, True)
            self.arrived[number] = True
        return True

    def _add(
        self,
        parameter: nn.Parameter,
        source: nn.Parameter,
        piece: Tensor | None,
        place: int,
        always: bool,
    ) -> None:
        self._watch(len(self.parameters), source, piece, always)
        self.numbers[id(source)] = len(self.always)
        self.always.append(always)
        if piece is None and not always:
            self._in_place.append(parameter)
        self.parameters.append(parameter)
        self.slices.append(piece)
        self.places.append(place)

    @property
    def counting(self) -> bool:
        """Whether what backward makes counts; not that of a stand-in for samples a rank has not."""
        return self._counting

    @counting.setter
    def counting(self, counts: bool) -> None:
        if counts == self._counting:
            return
        self._counting = counts
        for parameter in self._in_place:
            if counts:  # what a stand-in has made is dropped
                parameter.grad = self._aside.pop(parameter, None)
            elif parameter.grad is not None:
                self._aside[parameter], parameter.grad = parameter.grad, None

    def _watch(
        self, number: int, parameter: nn.Parameter, piece: Tensor | None, always: bool
    ) -> None:
        def collect(ready: Tensor) -> None:
            grad = ready.grad if self.masters is None else self.masters.take_gradient(ready)
            if grad is None:  # it comes later, see workbench.layers.weight_gradients
                return
            if not (self.counting or always):
                ready.grad = None
                return
            if grad.layout != torch.strided:
                grad = grad.to_dense()
            if piece is None:
                ready.grad, self.arrived[number] = grad, True
                return
            if self.arrived[number]:
                piece.add_(grad)
            else:
                piece.copy_(grad)
                self.arrived[number] = True
            ready.grad = None

        parameter.register_post_accumulate_grad_hook(collect)

    def reduce(self) -> list[float]:
        """Add all buckets over the ranks; returns 1.0 for each parameter that had a gradient here.

        A parameter without one contributes zeros, for it may have one on another rank.
        """
        for piece, arrived in zip(self.slices, self.arrived, strict=True):
            if not arrived and piece is not None:
                piece.zero_()
        for number, bucket, comm, compress in self.buckets:
            name = f"gradients, bucket {number}"
            if comm.size > 1:
                comm.all_reduce(bucket, name=name)
            if compress is not None:
                compress(bucket, name)
        record = [0.0] * self.total
        for place, arrived in zip(self.places, self.arrived, strict=True):
            record[place] = float(arrived)
        return record

    def release(self, anywhere: list[bool]) -> None:
        """Hand the sums to the optimizer as ``parameter.grad``, where any rank had a gradient."""
        own = zip(self.parameters, self.slices, self.places, strict=True)
        for parameter, piece, place in own:
            if piece is not None:
                parameter.grad = piece
            elif parameter.grad is None:  # elsewhere there is one
                parameter.grad = torch.zeros_like(parameter)
            if not anywhere[place]:
                parameter.grad = None
        self.arrived = [False] * len(self.parameters)
