"""Gradients of parameters that several ranks have, added up over those ranks in buckets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from workbench.comm.comm import Comm
from workbench.layers.compression import Reducer, reducer
from workbench.layers.groups import Groups
from workbench.layers.weight_gradients import Product
from workbench.plan import Bucket
from workbench.plan.replicas import WHOLE, Compression


class GradientBuckets:
    """Collects gradients in buckets of shared memory and adds them up over the ranks.

    The gradient leaves ``parameter.grad`` as soon as backward has made it, while it is still in the
    processor's cache, and lies where every rank can read it: the all_reduce moves nothing twice.

    Parameters
    ----------
    parameters:
        By name, as in the plan.
    buckets:
        Names of the parameters that travel together, and along which axes, as in the plan.
    summed:
        Names of those whose gradients come added up over samples of several ranks: they count on a
        rank without samples too.
    computing:
        By name, what gradients come of; ``parameters`` if left out. Those may be in less precision,
        and are added up in that of ``parameters``.
    compression:
        What replicas along the axis data send of a bucket.

    Attributes
    ----------
    counting:
        Whether what backward makes counts; not that of a stand-in for samples a rank has not.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        buckets: Iterable[Bucket],
        groups: Groups,
        summed: Collection[str] = (),
        computing: Mapping[str, nn.Parameter] | None = None,
        compression: Compression = WHOLE,
    ) -> None:
        self.parameters: list[nn.Parameter] = []
        self.buckets: list[tuple[int, Tensor, Comm, Reducer | None]] = []
        self.slices: list[Tensor] = []
        # Where in the record of all parameters those are that this rank has.
        self.places: list[int] = []
        self.numbers: dict[int, int] = {}  # by what gradients come of
        self.always: list[bool] = []
        self.total = 0
        for number, planned in enumerate(buckets):
            first, self.total = self.total, self.total + len(planned.names)
            if planned.names[0] not in parameters:
                continue  # other ranks of a pipeline have them
            comm = groups.over(*planned.axes)
            members = [parameters[name] for name in planned.names]
            compress: Reducer | None = None
            if compression.kind != "none" and "data" in planned.axes:
                comm = groups.over(*(axis for axis in planned.axes if axis != "data"))
                shapes = [tuple(p.shape) for p in members]
                like = members[0].new_empty(sum(p.numel() for p in members))
                compress = reducer(compression, shapes, like, groups.over("data"), number)
            bucket = comm.allocate(sum(p.numel() for p in members), members[0].dtype)
            self.buckets.append((number, bucket, comm, compress))
            offset = 0
            for place, (name, parameter) in enumerate(zip(planned.names, members, strict=True)):
                piece = bucket[offset : offset + parameter.numel()].view(parameter.shape)
                offset += parameter.numel()
                source = parameter if computing is None else computing[name]
                self._watch(len(self.parameters), source, name in summed)
                self.parameters.append(parameter)
                self.numbers[id(source)] = len(self.always)
                self.always.append(name in summed)
                self.slices.append(piece)
                self.places.append(first + place)
        self.arrived = [False] * len(self.parameters)
        self.counting = True

    def add(self, parameter: nn.Parameter, product: Product) -> bool:
        """Add a gradient of what is computed with where the sum lies; False if that is not here."""
        number = self.numbers.get(id(parameter))
        if number is None:
            return False
        if self.counting or self.always[number]:
            product.write(self.slices[number], self.arrived[number])
            self.arrived[number] = True
        return True

    def _watch(self, number: int, parameter: nn.Parameter, always: bool) -> None:
        def collect(ready: Tensor) -> None:
            grad = ready.grad
            if grad is None:  # it comes later, see workbench.layers.weight_gradients
                return
            if not (self.counting or always):
                ready.grad = None
                return
            if grad.layout != torch.strided:
                grad = grad.to_dense()
            if self.arrived[number]:
                self.slices[number].add_(grad)
            else:
                self.slices[number].copy_(grad)
                self.arrived[number] = True
            ready.grad = None

        parameter.register_post_accumulate_grad_hook(collect)

    def reduce(self) -> list[float]:
        """Add all buckets over the ranks; returns 1.0 for each parameter that had a gradient here.

        A parameter without one contributes zeros, for it may have one on another rank.
        """
        for number, arrived in enumerate(self.arrived):
            if not arrived:
                self.slices[number].zero_()
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
            parameter.grad = piece if anywhere[place] else None
        self.arrived = [False] * len(self.parameters)
