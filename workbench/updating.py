"""From a rank's gradients to new weights: sums over ranks, the limit of their norm, the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workbench.cluster.context import RankContext
from workbench.errors import RunError
from workbench.keeping import RankState
from workbench.layers.averaging import Averages
from workbench.layers.gradients import GradientBuckets
from workbench.layers.groups import Groups
from workbench.layers.precision import Masters
from workbench.layers.share_update import ShareUpdate
from workbench.optimizers import WholeOptimizer
from workbench.plan import Plan
from workbench.recipe import Recipe


@dataclass(frozen=True)
class Agreed:
    """What all ranks have agreed on after a step's backward pass."""

    loss: float
    stop: bool


class Updater:
    """Adds up gradients over ranks and updates what this rank updates of the parameters.

    Attributes
    ----------
    optimizer:
        Over this rank's parameters, or its shares of them.
    gradients:
        Where backward leaves what the optimizer is to get.
    """

    def __init__(
        self,
        work: Recipe,
        plan: Plan,
        context: RankContext,
        groups: Groups,
        masters: Masters,
        buffers: Mapping[str, Tensor],
        state: RankState,
        whole: WholeOptimizer,
    ) -> None:
        self.plan, self.context, self.comm, self.masters = plan, context, context.comm, masters
        self.clip_norm = work.clip_norm
        self.shares = ShareUpdate(masters.parameters, plan, groups)
        own = state.own(self.shares.parameters)
        self.optimizer = whole.over(own, state.cut)
        self.gradients = GradientBuckets(
            state.own(masters.parameters),
            plan.buckets,
            groups,
            plan.summed_in_layers,
            masters.computing,
            plan.compression,
        )
        values = {**masters.parameters, **buffers}
        self.averages = Averages(plan, groups, state.own(values))
        self.in_step = tuple(axis for axis, _ in plan.mesh.axes if axis != "data")
        self.groups = groups
        self.stop_asked = False

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer updates, by name: parameters or shares of them."""
        return self.shares.parameters

    def agree(self, step: int, loss: float) -> Agreed:
        """Add up gradients and losses over the ranks and decide together whether to go on.

        Raises
        ------
        RunError
            If the loss is not a number: on all ranks, at the same step.
        """
        arrived = self.gradients.reduce()
        self.stop_asked = self.stop_asked or "stop" in self.context.commands()
        mine = [loss, float(self.stop_asked), float(not np.isfinite(loss)), *arrived]
        whole = self.comm.all_reduce(self._numbers(mine), name="record of the step").tolist()
        if whole[2]:
            raise RunError(
                f"The loss is not a number any more at step {step} (it is {whole[0]}). "
                "Try a smaller learning rate, or look for extreme values in the data.",
                rank=self.context.rank,
                step=step,
            )
        self.gradients.release([bool(n) for n in whole[3:]])
        return Agreed(float(whole[0]), bool(whole[1]))

    def clip(self) -> None:
        """Scale all gradients down where their norm is limited and more, alike on all ranks."""
        if self.clip_norm is None:
            return
        # A replica that makes steps of its own has a norm of its own.
        alone = self.plan.averaging is not None
        comm = self.groups.over(*self.in_step) if alone else self.comm
        replicas = self.plan.mesh.degree("data") if alone else 1
        squares = torch.zeros((), dtype=torch.float64, device=self.context.device)
        parameters = self.masters.parameters
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                copies = self.plan.copies_of(name) / replicas
                squares += parameter.grad.double().square().sum() / copies
        whole = comm.all_reduce(self._numbers([float(squares)]), name="norm of the gradients")
        # As torch.nn.utils.clip_grad_norm_ does.
        scale = min(1.0, self.clip_norm / (float(whole) ** 0.5 + 1e-6))
        if scale < 1.0:
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)

    def begin(self) -> None:
        """Take the parameters, which may be those of another run, as those to begin with."""
        self.averages.begin()
        self.masters.refresh()

    def apply(self) -> None:
        """Update the parameters by their gradients, and let go of those."""
        self.shares.before()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def share(self, step: int, last: bool) -> None:
        """Put together what ranks have updated, and average what replicas have come to."""
        self.shares.after()
        if self.averages.due(step, last):
            self.averages.average()
        self.masters.refresh()

    def _numbers(self, values: list[float]) -> Tensor:
        """Return ``values`` where the communicator can reach them."""
        return torch.tensor(values, dtype=torch.float64, device=self.comm.device_type)
