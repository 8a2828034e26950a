"""Replicas that make steps of their own, and average their parameters now and then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.comm.comm import Comm
from workbench.layers.groups import Groups
from workbench.plan import Plan


class Averages:
    """The parameters and running statistics that replicas of the axis data average.

    The mean is weighted by the samples that each replica has seen since the last one, as in
    federated averaging (McMahan et al., 2017): so the mean of one step of SGD is the step of the
    whole batch, whatever the shares. With an outer optimizer, what the mean has moved is a gradient
    to SGD with Nesterov's momentum (Douillard et al., "DiLoCo", 2023); running statistics are
    averaged alone.

    Parameters
    ----------
    values:
        This rank's parameters and buffers, or shares of them, by name.
    """

    def __init__(self, plan: Plan, groups: Groups, values: Mapping[str, Tensor]) -> None:
        self.plan, self.samples, self.own = plan, 0, 0
        self.buckets: list[tuple[int, Tensor, Comm, list[tuple[Tensor, Tensor]]]] = []
        self.outer: dict[int, tuple[Tensor, Tensor]] = {}
        trainable = {array.name for array in plan.arrays}
        for number, planned in enumerate(plan.averaged):
            if planned.names[0] not in values:
                continue  # other ranks of a pipeline have them
            members = [values[name].detach() for name in planned.names]
            comm = groups.over(*planned.axes)
            sent = comm.allocate(sum(m.numel() for m in members), members[0].dtype)
            pieces = sent.split([m.numel() for m in members])
            pairs = [(m, piece.view(m.shape)) for m, piece in zip(members, pieces, strict=True)]
            self.buckets.append((number, sent, comm, pairs))
            averaging = plan.averaging
            if averaging is not None and averaging.nesterov and planned.names[0] in trainable:
                self.outer[number] = torch.zeros_like(sent), torch.zeros_like(sent)

    def begin(self) -> None:
        """Note the parameters that the first period begins with."""
        for number, _, _, pairs in self.buckets:
            if number in self.outer:
                start, _ = self.outer[number]
                torch.cat([value.flatten() for value, _ in pairs], out=start)

    def count(self, own: int, samples: int) -> None:
        """Note how many samples this rank's replica and all together had in a step."""
        self.own, self.samples = self.own + own, self.samples + samples

    def due(self, step: int, last: bool) -> bool:
        """Return whether replicas average after ``step``: at the end of a period and of the run."""
        return bool(self.buckets) and (last or (step + 1) % self.plan.period == 0)

    @property
    def outstanding(self) -> bool:
        """Whether replicas have made steps since they last averaged."""
        return bool(self.buckets) and self.samples > 0

    @torch.no_grad()
    def average(self) -> None:
        """Replace parameters by their mean over replicas, or by what the outer optimizer makes."""
        weight = self.own / self.samples
        for number, sent, comm, pairs in self.buckets:
            for value, room in pairs:
                torch.mul(value, weight, out=room)
            comm.all_reduce(sent, name=f"average, bucket {number}")
            if number in self.outer:
                self._propose(sent, *self.outer[number])
            for value, room in pairs:
                value.copy_(room)
        self.own = self.samples = 0

    def _propose(self, mean: Tensor, start: Tensor, velocity: Tensor) -> None:
        """Make of ``mean`` what SGD with Nesterov's momentum makes of ``start - mean``."""
        averaging = self.plan.averaging
        assert averaging is not None
        moved = start - mean
        velocity.mul_(averaging.momentum).add_(moved)
        start.sub_(moved.add_(velocity, alpha=averaging.momentum), alpha=averaging.lr)
        mean.copy_(start)
