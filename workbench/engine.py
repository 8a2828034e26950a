"""Run a plan: the step loop of every rank, the same code for serial and for parallel runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.cluster.context import RankContext
from workbench.errors import RunError
from workbench.keeping import RankState
from workbench.layers.gather import gather
from workbench.layers.ghosts import Trace
from workbench.layers.gradients import GradientBuckets
from workbench.layers.groups import Groups
from workbench.layers.late import LateWeights
from workbench.layers.pipeline import Pipeline
from workbench.layers.sharding import ShareUpdate
from workbench.layers.share import Share
from workbench.layers.swap import parallelize
from workbench.losses import loss_weight, on_device
from workbench.order import Order, Rows
from workbench.plan import Cut, Plan
from workbench.previewing import Previewer
from workbench.profile import tensors_in
from workbench.recipe import load_payload
from workbench.schedules import SCHEDULES
from workbench.scoring import Score, score
from workbench.spans import MOST_KEPT, Span, SpanRecorder

SEND_EVERY_S = 0.25
LIVE_SPANS = 500  # in one message: the scheduler keeps the last thousand messages


@dataclass(frozen=True)
class Job:
    """What a rank is to do; ``payload`` is the workload without its data.

    ``arrays`` of the context hold ``x`` and ``y`` (the rank's piece of the data), and ``test_x``
    and ``test_y`` if there is test data. With ``preview``, a model from images to images has one of
    them shown now and then. A run that goes on from another begins at ``first_step``, and has the
    shares of that one's state among its arrays, see :class:`workbench.keeping.RankState`.
    """

    payload: bytes
    plan: Plan
    steps: int
    record_spans: bool = False
    preview: bool = False
    first_step: int = 0


@dataclass
class Outcome:
    """What a rank has done: exact, unlike the live messages.

    ``rows`` hold one record per finished step, with this rank's own times; ``kept`` the shapes and
    dtypes of the arrays that it left on its worker; ``dropped_spans`` is how many spans there were
    besides the newest, which are kept.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    dropped_spans: int = 0
    sent_bytes: dict[str, int] = field(default_factory=dict)
    score: Score | None = None
    stopped: bool = False
    kept: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


def train(context: RankContext, job: Job) -> Outcome:
    """Train for ``job.steps`` steps or until told to stop; every rank of the plan calls this.

    Leaves parameters and buffers with :meth:`RankContext.keep` as ``parameter:NAME`` and
    ``buffer:NAME``.

    Raises
    ------
    RunError
        If the loss stops being a number: all ranks decide that together, at the same step.
    """
    return _Trainer(context, job).run()


class _Trainer:
    def __init__(self, context: RankContext, job: Job) -> None:
        self.context, self.job, self.comm = context, job, context.comm
        self.work, self.plan = load_payload(job.payload), job.plan
        self.where = self.plan.mesh.coordinates(context.rank)
        self.groups = Groups(self.comm, self.plan.mesh)
        self.order = Order(self.plan.batch.samples, self.plan.batch.size, self.work.seed)
        self.loss_kind = self.plan.option("loss", "mean")
        self.share = Share(seed=self.work.seed)
        torch.manual_seed(self.work.seed)
        self.loss = on_device(self.work.loss, context.device)
        model = self.work.make_model().to(context.device)
        for name, value in model.named_parameters():
            self.comm.broadcast(value.data, name=f"{name}, initial value")
        self.pipeline: Pipeline | None = None
        if self.plan.stages:
            model, self.pipeline = self._staged(model)
        else:
            parallelize(model, self.plan, self.groups, self.share)
        self.model = model
        self.state = RankState(model, self.plan, self.groups, context)
        self.update = ShareUpdate(self.model, self.plan, self.groups)
        own = self.state.own(self.update.parameters)
        self.optimizer = self.work.make_optimizer(
            [(name, p) for name, p in own.items() if p.requires_grad]
        )
        self.gradients = GradientBuckets(
            self.state.own(dict(self.model.named_parameters())),
            self.plan.buckets,
            self.groups,
            self.plan.summed_in_layers,
        )
        self.state.take(self.optimizer, self.update.parameters)
        self.spans = SpanRecorder(job.record_spans)
        self.previewer = Previewer(context, self.plan, self.order, job.steps if job.preview else 0)
        self.outcome = Outcome()
        self.copies = self.plan.copies((Cut(0, "data"), *self.plan.output))
        self.stop_asked = False
        self.reported = 0

    def _staged(self, model: nn.Module) -> tuple[nn.Module, Pipeline]:
        """Return the model as a pipeline runs it, stage by stage."""
        x = self.plan.inputs[0]
        dtype = getattr(torch, self.work.input_dtype)
        calls = Trace(model, [torch.empty(x.shape, dtype=dtype, device="meta")]).calls
        late = LateWeights()
        if SCHEDULES[self.plan.option("schedule", "1f1b")].splits_backward:
            late.watch(model)
        parallelize(model, self.plan, self.groups, self.share)
        return model, Pipeline(model, self.plan, self.groups, calls, late, self.context.device)

    def run(self) -> Outcome:
        # Code that draws random numbers itself (F.dropout) must draw others for other samples, and
        # the same on ranks that compute on the same ones.
        own_seed = (self.work.seed + self.plan.mesh.replica(self.context.rank)) % 2**64
        torch.manual_seed(own_seed)
        random.seed(own_seed)
        np.random.seed(own_seed % 2**32)
        self.comm.barrier()
        self.comm.on_span = self.spans.add if self.job.record_spans else None
        began_s = sent_s = perf_counter()
        first = self.job.first_step
        for step in range(first, first + self.job.steps):
            self.context.progress(step)
            row = self._step(step, began_s)
            self.outcome.rows.append(row)
            self.previewer.send()
            now_s = perf_counter()
            if now_s - sent_s >= SEND_EVERY_S or step in (first, first + self.job.steps - 1):
                self._report()
                sent_s = now_s
            if self.outcome.stopped:
                break
        self.comm.on_span = None
        self._report()
        self.outcome.sent_bytes = dict(self.comm.sent_bytes)
        self.outcome.dropped_spans = self.spans.dropped
        self.outcome.kept = self.state.keep(self.optimizer, self.update.parameters)
        if not self.outcome.stopped and "test_x" in self.context.arrays:
            self.outcome.score = score(
                self.state.whole(self.work.make_model().to(self.context.device)),
                self.loss,
                self.loss_kind,
                self.context.arrays,
                self.comm,
                self.context.device,
            )
        return self.outcome

    def _step(self, step: int, began_s: float) -> dict[str, float]:
        start_s = perf_counter()
        comm_s, wait_s, sent = self.comm.comm_s, self.comm.wait_s, self._sent()
        self.spans.begin_step(step)
        with self.spans.timed("load", "samples"):
            micro_batches = [
                (rows, *self._load(rows))
                for rows in self.order.rows(
                    step,
                    self.plan.mesh.replicas,
                    self.plan.mesh.replica(self.context.rank),
                    self.plan.batch.accumulate,
                )
            ]
        load_s = perf_counter() - start_s
        loss = self._gradients(step, micro_batches)
        loss = self._agree(step, loss)
        optimizing_s = perf_counter()
        if self.work.clip_norm is not None:
            self._clip(self.work.clip_norm)
        with self.spans.timed("optimizer", "update"):
            self.update.before()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.update.after()
        stop_s = perf_counter()
        self.spans.end_step()
        optimizer_s = stop_s - optimizing_s
        comm_s, wait_s = self.comm.comm_s - comm_s, self.comm.wait_s - wait_s
        step_s = stop_s - start_s
        return {
            "step": step,
            "time_s": stop_s - began_s,
            "step_s": step_s,
            "loss": loss,
            "samples_per_s": self.order.batch_total(step) / step_s,
            "compute_s": step_s - comm_s - wait_s - optimizer_s - load_s,
            "comm_s": comm_s,
            "wait_s": wait_s,
            "optimizer_s": optimizer_s,
            "load_s": load_s,
            "sent_bytes": self._sent() - sent,
        }

    def _load(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return samples and targets of one micro-batch; a stand-in if there are none."""
        index = rows.index if len(rows.index) else np.zeros(1, dtype=np.int64)
        x, y = (
            torch.from_numpy(self.context.arrays[name].take(index, axis=0)).to(self.context.device)
            for name in ("x", "y")
        )
        return x, y

    def _gradients(self, step: int, micro_batches: list[tuple[Rows, Tensor, Tensor]]) -> float:
        """Run forward and backward of all micro-batches; returns this rank's part of the loss."""
        scale = self._scale(step, micro_batches)
        if self.pipeline is not None:
            return self._pipelined(self.pipeline, step, micro_batches, scale)
        total = 0.0
        for micro, (rows, x, y) in enumerate(micro_batches):
            if not rows.total:  # a short last batch: no rank has a sample of this micro-batch
                continue
            share = self.share
            share.step, share.micro = step, micro
            share.start, share.rows = rows.start, len(rows.index)
            output = self.model(x)
            if self.plan.made != self.plan.output:
                output = self._whole_output(output)
            self.previewer.take(step, rows, x, output, y)
            if scale[micro]:
                loss = self.loss(output, y) * scale[micro]
                loss.backward()
                total += loss.item()
            else:
                self._take_part(output, counting=len(rows.index) > 0)
        return total

    def _pipelined(
        self,
        pipeline: Pipeline,
        step: int,
        micro_batches: list[tuple[Rows, Tensor, Tensor]],
        scale: list[float],
    ) -> float:
        """Run all micro-batches through the pipeline; the last stage has the loss."""
        losses = []

        def begin(micro: int) -> None:
            rows, share = micro_batches[micro][0], self.share
            share.step, share.micro = step, micro
            share.start, share.rows = rows.start, len(rows.index)
            self.gradients.counting = len(rows.index) > 0

        def finish(micro: int, output: Any) -> list[Tensor]:
            rows, x, y = micro_batches[micro]
            self.previewer.take(step, rows, x, output, y)
            if not scale[micro]:
                return [t * 0 for t in tensors_in(output) if t.requires_grad]
            # Ranks of other stages have no loss to share this one with.
            loss = self.loss(output, y) * (scale[micro] * self.plan.mesh.degree("pipeline"))
            losses.append(loss.item())
            return [loss]

        inputs = {micro: [x] for micro, (rows, x, _) in enumerate(micro_batches) if rows.total}
        pipeline.run(inputs, begin, finish)
        self.gradients.counting = True
        return sum(losses)

    def _take_part(self, output: object, counting: bool) -> None:
        """Go backward without a loss: other ranks need this one in the collectives on the way.

        Samples whose targets are all left out still count in the statistics of the batch, and so
        have gradients; a stand-in has none.
        """
        ends = [t for t in tensors_in(output) if t.requires_grad]
        self.gradients.counting = counting
        if ends:
            torch.autograd.backward(ends, [torch.zeros_like(t) for t in ends])
        self.gradients.counting = True

    def _whole_output(self, output: Tensor) -> Tensor:
        """Return the output as all ranks of the spatial axis have it, for a loss of the whole."""
        return gather(
            output,
            self.plan.outputs[0],
            self.plan,
            self.groups,
            name="output: whole",
            backward_name="output: gradient of whole",
        )

    def _scale(self, step: int, micro_batches: list[tuple[Rows, Tensor, Tensor]]) -> list[float]:
        """Return what each micro-batch's loss counts for in the loss of the whole batch.

        A rank that has a part of every image counts for its part; one that has the same output as
        others shares its loss with them.
        """
        part = self._part_of_output()
        if self.loss_kind == "sum":
            return [(part > 0) * (len(r.index) > 0) / self.copies for r, _, _ in micro_batches]
        if self.loss_kind == "mean":
            batch = self.order.batch_total(step)
            return [part * len(rows.index) / batch / self.copies for rows, _, _ in micro_batches]
        weights = [
            float(loss_weight(self.loss, y)) / self.copies if len(rows.index) and part else 0.0
            for rows, _, y in micro_batches
        ]
        whole = self._numbers([sum(weights)])
        whole = self.comm.all_reduce(whole, name="weight of the targets")
        # A batch whose targets are all left out has no loss, in the serial run neither.
        return [weight / (float(whole) or math.nan) for weight in weights]

    def _part_of_output(self) -> float:
        """Return this rank's part of the positions of the model's output."""
        if not self.plan.output:
            return 1.0
        shape = self.plan.output_shape
        ranges = self.plan.share(shape, self.plan.output, self.context.rank)
        return math.prod(
            (stop - start) / size for (start, stop), size in zip(ranges, shape, strict=True)
        )

    def _agree(self, step: int, loss: float) -> float:
        """Add up gradients and losses over the ranks and decide together whether to go on."""
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
        self.outcome.stopped = bool(whole[1])
        self.gradients.release([bool(n) for n in whole[3:]])
        return float(whole[0])

    def _clip(self, most: float) -> None:
        """Scale all gradients down if their norm is more than ``most``, alike on all ranks."""
        squares = torch.zeros((), dtype=torch.float64, device=self.context.device)
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                copies = self.plan.copies_of(name)
                squares += parameter.grad.double().square().sum() / copies
        whole = self.comm.all_reduce(self._numbers([float(squares)]), name="norm of the gradients")
        # As torch.nn.utils.clip_grad_norm_ does.
        scale = min(1.0, most / (float(whole) ** 0.5 + 1e-6))
        if scale < 1.0:
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)

    def _numbers(self, values: list[float]) -> Tensor:
        """Return ``values`` where the communicator can reach them."""
        return torch.tensor(values, dtype=torch.float64, device=self.comm.device_type)

    def _sent(self) -> int:
        return sum(self.comm.sent_bytes.values())

    def _report(self) -> None:
        """Send what is new: rows from rank 0, the newest spans from every rank."""
        spans = self.spans.take()
        self.outcome.spans += spans
        surplus = max(0, len(self.outcome.spans) - MOST_KEPT)
        del self.outcome.spans[:surplus]
        self.spans.dropped += surplus
        rows = self.outcome.rows[self.reported :] if self.context.rank == 0 else []
        self.reported = len(self.outcome.rows)
        if rows or spans:
            self.context.send("steps", {"rows": rows, "spans": spans[-LIVE_SPANS:]})
