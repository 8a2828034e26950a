"""From a rank's gradients to new weights: sums over ranks, the limit of their norm, the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

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
from workbench.pacing import Pace, Verdict
from workbench.plan import Plan
from workbench.recipe import Recipe


@dataclass(frozen=True)
class Agreed:
    """What all ranks have agreed on after a step's backward pass.

    The loss of the only rank there is may still be on its way, see :meth:`Updater.known`.
    """

    loss: Tensor | float
    verdict: Verdict


class Updater:
    """Adds up gradients over ranks and updates what this rank updates of the parameters.

    Attributes
    ----------
    optimizer:
        Over this rank's parameters, or its shares of them.
    gradients:
        Where backward leaves what the optimizer is to get.
    pace:
        Whether the ranks go on.
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
            masters,
            plan.compression,
        )
        values = {**masters.parameters, **buffers}
        self.averages = Averages(plan, groups, state.own(values))
        self.in_step = tuple(axis for axis, _ in plan.mesh.axes if axis != "data")
        self.groups = groups
        self.pace = Pace(context)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer updates, by name: parameters or shares of them."""
        return self.shares.parameters

    def agree(self, step: int, loss: Tensor | float) -> Agreed:
        """Add up gradients and losses over the ranks and decide together whether to go on.

        Raises
        ------
        RunError
            If the loss is not a number: on all ranks, at the same step.
        """
        arrived = self.gradients.reduce()
        vote = self.pace.vote()
        if self.comm.size == 1:
            self.gradients.release([bool(n) for n in arrived])
            return Agreed(loss, self.pace.verdict(vote))
        mine = self._numbers([0.0, vote, 0.0, *arrived])
        mine[0] = loss
        mine[2] = ~mine[0].isfinite()
        whole = self.comm.all_reduce(mine, name="record of the step").tolist()
        agreed = Agreed(math.nan if whole[2] else whole[0], self.pace.verdict(whole[1]))
        self.known(step, agreed)
        self.gradients.release([bool(n) for n in whole[3:]])
        return agreed

    def known(self, step: int, agreed: Agreed) -> float:
        """Return the loss of the whole batch; waits until it has been computed.

        One rank asks when all of its step is under way: a device that must answer in the middle has
        nothing to do meanwhile.

        Raises
        ------
        RunError
            If it is not a number.
        """
        loss = float(agreed.loss)
        if not math.isfinite(loss):
            raise RunError(
                f"The loss is not a number any more at step {step} (it is {loss}). "
                "Try a smaller learning rate, or look for extreme values in the data.",
                rank=self.context.rank,
                step=step,
            )
        return loss

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

    def finish(self) -> None:
        """Average what replicas have come to since they last did, for a run that ends here."""
        if self.averages.outstanding:
            self.averages.average()
            self.masters.refresh()

    def _numbers(self, values: list[float]) -> Tensor:
        """Return ``values`` where the communicator can reach them."""
        return torch.tensor(values, dtype=torch.float64, device=self.comm.device_type)
