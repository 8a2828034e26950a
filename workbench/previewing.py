"""The rank's side of the picture: its share of what the model makes of one sample, now and then."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from workbench.cluster.context import RankContext
from workbench.mesh import BATCH_AXES
from workbench.order import Order, Rows
from workbench.plan import Cut, Plan
from workbench.preview import Part, Parts, shown_shape, stride_for, thinned

EVERY_STEPS = 5
MOST_PREVIEWS = 40  # of one run: the scheduler keeps the last thousand messages
SHORT_EPOCH_STEPS = 10


class Previewer:
    """Sends this rank's share of the first sample's input, output and target.

    :meth:`take` only remembers tensors of the forward pass, and :meth:`send` is called between two
    steps: no step computes anything for it. A model whose output is not an image of its input's
    size, with 1 or 3 channels, has no picture, and a rank whose shares others have too sends none.
    """

    def __init__(self, context: RankContext, plan: Plan, order: Order, steps: int) -> None:
        self.context, self.plan = context, plan
        self.shape = plan.output_shape[1:]
        where = plan.mesh.coordinates(context.rank).items()
        # Of a pipeline only the last stage has a picture to take.
        self.where = {axis: place for axis, place in where if place and axis != "pipeline"}
        first = not any(axis in self.where for axis in BATCH_AXES)
        pictures = len(self.shape) == 3 and self.shape[0] in (1, 3) and first
        self.steps = preview_steps(plan, order, steps) if pictures and steps else frozenset()
        self._taken: tuple[int, dict[str, Tensor]] | None = None

    def take(self, step: int, rows: Rows, x: Tensor, output: object, y: Tensor) -> None:
        """Remember the first sample of a micro-batch, if it is a picture and its turn has come."""
        first = rows.start == 0 and len(rows.index) > 0
        if step in self.steps and first and isinstance(output, Tensor):
            taken = {"input": x[0], "output": output[0].detach(), "target": y[0]}
            if all(self._is_share(taken[kind], cuts) for kind, cuts in self._cuts()):
                self._taken = step, taken

    def send(self) -> None:
        """Send what was taken in the step that has ended."""
        if self._taken is None:
            return
        (step, taken), self._taken = self._taken, None
        stride = stride_for(self.shape)
        shares = {
            kind: _part(taken[kind], self._ranges(cuts), stride)
            for kind, cuts in self._cuts()
            if set(self.where) <= {cut.axis for cut in cuts}  # else another rank has the same
        }
        if shares:
            shape = shown_shape(self.shape, stride)
            self.context.send("preview", Parts(step, shape, shares))

    def _cuts(self) -> list[tuple[str, tuple[Cut, ...]]]:
        plan = self.plan
        return [("input", plan.input), ("output", plan.output), ("target", plan.target)]

    def _ranges(self, cuts: Iterable[Cut]) -> tuple[tuple[int, int], ...]:
        return self.plan.share(self.plan.output_shape, cuts, self.context.rank)[1:]

    def _is_share(self, sample: Tensor, cuts: Iterable[Cut]) -> bool:
        """Return whether a sample is a share of an image of the output's size."""
        sizes = tuple(stop - start for start, stop in self._ranges(cuts))
        return sample.shape == sizes and sample.is_floating_point()


def preview_steps(plan: Plan, order: Order, steps: int) -> frozenset[int]:
    """Return the steps to show: the first, the last, and every fifth or fewer between.

    Every step trains on other samples, and pictures that change with each look do not seem to get
    cleaner. Where an epoch is short, one sample comes back soon enough to be watched alone: the one
    of the last step, so that what stays on the screen is the end of the training. Its first look is
    in the first epoch then, after a few steps.
    """
    gap = max(EVERY_STEPS, -(-steps // MOST_PREVIEWS))
    if order.steps_per_epoch <= SHORT_EPOCH_STEPS:
        samples = [_first_sample(plan, order, step) for step in range(steps)]
        same = [step for step, sample in enumerate(samples) if sample == samples[-1]]
        if samples[-1] is not None and len(same) > 1:
            shown = same[-1:]
            for step in reversed(same):
                if shown[-1] - step >= gap:
                    shown.append(step)
            return frozenset({*shown, same[0]})
    return frozenset({*range(0, steps, gap), steps - 1})


def _first_sample(plan: Plan, order: Order, step: int) -> int | None:
    """Return the sample at the first place of the batch of ``step``; None if that is empty."""
    rows = order.rows(step, plan.mesh.replicas, 0, plan.batch.accumulate)[0]
    return int(rows.index[0]) if len(rows.index) else None


def _part(sample: Tensor, ranges: tuple[tuple[int, int], ...], stride: int) -> Part:
    channels, *image = ranges
    (row, rows), (column, columns) = (thinned(owned, stride) for owned in image)
    shown = sample[:, row::stride, column::stride].float()
    values = shown.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return Part((channels, rows, columns), values)
