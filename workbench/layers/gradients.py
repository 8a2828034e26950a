"""Gradients of parameters that several ranks have, added up over those ranks in buckets."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from workbench.comm.comm import Comm
from workbench.layers.groups import Groups
from workbench.plan import Bucket


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
    ) -> None:
        self.parameters: list[nn.Parameter] = []
        self.buckets: list[Tensor] = []
        self.slices: list[Tensor] = []
        self.comms: list[Comm] = []
        for planned in buckets:
            comm = groups.over(*planned.axes)
            self.comms.append(comm)
            members = [parameters[name] for name in planned.names]
            always = [name in summed for name in planned.names]
            bucket = comm.allocate(sum(p.numel() for p in members), members[0].dtype)
            self.buckets.append(bucket)
            offset = 0
            for parameter, counts in zip(members, always, strict=True):
                piece = bucket[offset : offset + parameter.numel()].view(parameter.shape)
                offset += parameter.numel()
                self._watch(len(self.parameters), parameter, counts)
                self.parameters.append(parameter)
                self.slices.append(piece)
        self.arrived = [False] * len(self.parameters)
        self.counting = True

    def _watch(self, number: int, parameter: nn.Parameter, always: bool) -> None:
        def collect(ready: Tensor) -> None:
            grad = ready.grad
            assert grad is not None
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
        for number, (bucket, comm) in enumerate(zip(self.buckets, self.comms, strict=True)):
            comm.all_reduce(bucket, name=f"gradients, bucket {number}")
        return [float(arrived) for arrived in self.arrived]

    def release(self, anywhere: list[bool]) -> None:
        """Hand the sums to the optimizer as ``parameter.grad``, where any rank had a gradient."""
        for parameter, piece, used in zip(self.parameters, self.slices, anywhere, strict=True):
            parameter.grad = piece if used else None
        self.arrived = [False] * len(self.parameters)
