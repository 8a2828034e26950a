"""Forward and backward of the micro-batches of a step: from samples to gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from workbench.cluster.context import RankContext
from workbench.divisors import Divisor
from workbench.judging import Judge
from workbench.layers.cross_entropy import shared_loss
from workbench.layers.gather import Whole
from workbench.layers.groups import Groups
from workbench.layers.pipeline import Pipeline
from workbench.layers.precision import LOW, exactly
from workbench.layers.share import Share
from workbench.layers.weight_gradients import WeightGradients
from workbench.loading import MicroBatch
from workbench.losses import on_device
from workbench.nested import over_tensors
from workbench.order import Order
from workbench.plan import Cut, Plan
from workbench.previewing import Previewer
from workbench.recipe import Recipe
from workbench.trials import SAMPLES
from workbench.updating import Updater


def input_dtypes(work: Recipe, plan: Plan) -> list[torch.dtype]:
    """Return the types in which the model is given its inputs."""
    found: list[torch.dtype] = [getattr(torch, dtype) for dtype in work.input_dtypes]
    return [LOW if plan.low and dtype.is_floating_point else dtype for dtype in found]


class Passes:
    """Takes a rank's samples forward and backward through its part of the model.

    Gradients are left where backward puts them, for ``gradients`` to collect. Which samples are in
    hand, ``share`` says to the parallel layers. ``examples`` are outputs as
    :func:`workbench.trials.loss_kind` takes them, of a model that gives several tensors.
    """

    def __init__(
        self,
        work: Recipe,
        plan: Plan,
        context: RankContext,
        groups: Groups,
        model: nn.Module,
        pipeline: Pipeline | None,
        weights: WeightGradients,
        share: Share,
        updater: Updater,
        order: Order,
        previewer: Previewer,
        judge: Judge,
        examples: Any,
    ) -> None:
        self.plan, self.context, self.comm, self.groups = plan, context, context.comm, groups
        self.model, self.pipeline, self.share = model, pipeline, share
        self.weights = weights
        self.updater, self.gradients = updater, updater.gradients
        self.order, self.previewer = order, previewer
        self.judge = judge
        self.loss = on_device(work.loss, context.device)
        self.loss_of_share = shared_loss(self.loss, plan, groups, judge.note)
        mesh, rank = plan.mesh, context.rank
        beside = mesh.group(rank, *(axis for axis, _ in mesh.axes if axis != "data"))
        self.together = {mesh.replica(other) for other in beside}
        self.more = 1.0
        self.loss_kind = plan.option("loss", "mean")
        self.copies = plan.copies((Cut(0, "data"), *plan.output))
        if plan.output_shape:
            shares = plan.share(plan.output_shape, plan.output, context.rank)
            sizes = (1, *(stop - start for start, stop in shares[1:]))
            examples = torch.empty(sizes, dtype=getattr(torch, work.dtype), device="meta")
        samples = 1 if plan.output_shape else SAMPLES
        self.divisor = Divisor(self.loss, examples, samples, self._part_of_output())

    def run(self, step: int, micro_batches: list[MicroBatch]) -> Tensor | float:
        """Run forward and backward of all micro-batches; returns this rank's part of the loss.

        It is left where it was computed: to read a number is to wait for the device.
        """
        scale = self._scale(step, micro_batches)
        self.more = self._own_batch(step)
        if self.pipeline is not None:
            return self._pipelined(self.pipeline, step, micro_batches, scale)
        total: Tensor | float = 0.0
        for micro, (rows, inputs, y) in enumerate(micro_batches):
            if not rows.total:  # a short last batch: no rank has a sample of this micro-batch
                continue
            share = self.share
            share.step, share.micro = step, micro
            share.start, share.rows = rows.start, len(rows.index)
            output = self._for_loss(self.model(*inputs))
            self.previewer.take(step, rows, inputs[0], output, y)
            self.judge.take(output, y, len(rows.index))
            loss = self._loss(output, y, scale[micro])
            if loss is not None:
                with self.weights.collecting():
                    _times(loss, self.more).backward()
                total = total + loss.detach().double()
            else:
                self._take_part(output, y, counting=len(rows.index) > 0)
        return total

    def _pipelined(
        self,
        pipeline: Pipeline,
        step: int,
        micro_batches: list[MicroBatch],
        scale: list[float],
    ) -> Tensor | float:
        """Run all micro-batches through the pipeline; the last stage has the loss."""
        losses = []

        def begin(micro: int) -> bool:
            rows, share = micro_batches[micro][0], self.share
            share.step, share.micro = step, micro
            share.start, share.rows = rows.start, len(rows.index)
            self.gradients.counting = len(rows.index) > 0
            return self.gradients.counting

        def finish(micro: int, output: Any) -> list[Tensor]:
            rows, (x, *_), y = micro_batches[micro]
            output = self._for_loss(output)
            self.previewer.take(step, rows, x, output, y)
            self.judge.take(output, y, len(rows.index))
            # Ranks of other stages have no loss to share this one with.
            loss = self._loss(output, y, scale[micro] * self.plan.mesh.degree("pipeline"))
            if loss is None:
                return [t * 0 for t in self.divisor.ends(output, y)]
            losses.append(loss.detach().double())
            return [loss * self.more]

        inputs = {micro: xs for micro, (rows, xs, _) in enumerate(micro_batches) if rows.total}
        pipeline.run(inputs, begin, finish)
        self.gradients.counting = True
        pipeline.work_off()
        return sum(losses)

    def _for_loss(self, output: Any) -> Any:
        """Return a model's output for a loss, which may need the whole, in float32 at least."""
        if self.plan.made != self.plan.output:
            output = self._whole_output(output)
        return over_tensors(output, exactly) if self.plan.low else output

    def _loss(self, output: Tensor, y: Tensor, scale: float) -> Tensor | None:
        """Return what a micro-batch adds to the loss; None if it has no sample that counts."""
        if not scale and not self.plan.class_cuts:
            return None
        loss = self.loss_of_share(output, y)  # ranks with shares of classes do so together
        return _times(loss, scale) if scale else None

    def _take_part(self, output: object, y: Tensor, counting: bool) -> None:
        """Go backward without a loss: other ranks need this one in the collectives on the way.

        Samples whose targets are all left out still count in the statistics of the batch, and so
        have gradients; a stand-in has none.
        """
        ends = self.divisor.ends(output, y)
        self.gradients.counting = counting
        if ends:
            with self.weights.collecting():
                torch.autograd.backward(ends, [torch.zeros_like(t) for t in ends])
        self.gradients.counting = True

    def _whole_output(self, output: Tensor) -> Tensor:
        """Return the output as all ranks of the spatial axis have it, for a loss of the whole."""
        shape, cuts = self.plan.output_shape, self.plan.made
        names = ("output: whole", "output: gradient of whole")
        return Whole(shape, cuts, self.plan, self.groups, *names)(output)

    def _scale(self, step: int, micro_batches: list[MicroBatch]) -> list[float]:
        """Return what each micro-batch's loss counts for in the loss of the whole batch.

        A rank that has a part of every image counts for its part; one that has the same output as
        others shares its loss with them.
        """
        if self.comm.size == 1 and len(micro_batches) == 1:
            return [1.0]
        part = self._part_of_output()
        if self.loss_kind == "sum":
            return [(part > 0) * (len(r.index) > 0) / self.copies for r, _, _ in micro_batches]
        if self.loss_kind == "mean":
            batch = self.order.batch_total(step)
            return [part * len(rows.index) / batch / self.copies for rows, _, _ in micro_batches]
        weights = [
            self.divisor.of(y) / self.copies if len(rows.index) and part else 0.0
            for rows, _, y in micro_batches
        ]
        whole = torch.tensor([sum(weights)], dtype=torch.float64, device=self.comm.device_type)
        whole = self.comm.all_reduce(whole, name="weight of the targets")
        # A batch whose targets are all left out has no loss, in the serial run neither.
        return [weight / (float(whole) or math.nan) for weight in weights]

    def _own_batch(self, step: int) -> float:
        """Return how much a gradient counts where replicas make steps of their own.

        Then it is that of the loss of the replica's samples and not of its part of the whole loss.
        """
        if self.plan.averaging is None:
            return 1.0
        replicas, whole = self.plan.mesh.replicas, self.order.batch_total(step)
        own = sum(self.order.taken(step, replicas, index) for index in self.together)
        self.updater.averages.count(own, whole)
        return whole / own if own else 1.0

    def _part_of_output(self) -> float:
        """Return this rank's part of the positions of the model's output."""
        if not self.plan.output:
            return 1.0
        shape = self.plan.output_shape
        ranges = self.plan.share(shape, self.plan.output, self.context.rank)
        return math.prod(
            (stop - start) / size for (start, stop), size in zip(ranges, shape, strict=True)
        )


def _times(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1.0 else loss * factor
