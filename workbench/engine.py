"""Run a plan: the step loop of every rank, the same code for serial and for parallel runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import nn

from workbench.cluster.context import RankContext
from workbench.generators import seed_all
from workbench.judging import Judge
from workbench.keeping import RankState
from workbench.layers.groups import Groups, parts_of
from workbench.layers.pipeline import Pipeline
from workbench.layers.precision import Masters, lower
from workbench.layers.share import Share
from workbench.layers.swap import parallelize
from workbench.layers.trace import Trace
from workbench.layers.weight_gradients import WeightGradients
from workbench.loading import Loader
from workbench.optimizers import WholeOptimizer
from workbench.order import Order
from workbench.passes import Passes, input_dtypes
from workbench.peak_memory import PeakMemory
from workbench.plan import Plan
from workbench.previewing import Previewer
from workbench.profile import outputs_of
from workbench.recipe import load_payload
from workbench.schedules import SCHEDULES
from workbench.scoring import Score, score
from workbench.snapshots import Snapshots
from workbench.spans import KINDS, MOST_KEPT, Kind, Span, SpanRecorder
from workbench.updating import Updater

SEND_EVERY_S = 0.25
SPREAD = 2_654_435_761  # times the first step: seeds of runs that go on lie far apart
LIVE_SPANS = 500  # in one message: the scheduler keeps the last thousand messages


@dataclass(frozen=True)
class Job:
    """What a rank is to do; ``payload`` is the workload without its data.

    ``arrays`` of the context hold ``x`` and ``y`` (the rank's piece of the data), ``x[1]`` and so
    on if the model takes several inputs, and ``test_x`` and ``test_y`` if there is test data. With
    ``preview``, a model from images to images has one of them shown now and then. A run that goes
    on from another begins at ``first_step``, and has the shares of that one's state among its
    arrays, see :class:`workbench.keeping.RankState`. After every ``snapshot_every`` steps of the
    whole training it leaves a copy of its state.
    """

    payload: bytes
    plan: Plan
    steps: int
    record_spans: bool = False
    preview: bool = False
    first_step: int = 0
    snapshot_every: int = 0


@dataclass
class Outcome:
    """What a rank has done: exact, unlike the live messages.

    ``rows`` hold one record per finished step, with this rank's own times; ``kept`` the shapes and
    dtypes of the arrays that it left on its worker; ``dropped_spans`` is how many spans there were
    besides the newest, which are kept; ``judged`` by step how many targets of its part of the batch
    this rank got right, and of how many; ``peak_memory_bytes`` what it took at most
    during the steps, see :class:`workbench.peak_memory.PeakMemory`.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    dropped_spans: int = 0
    sent_bytes: dict[str, int] = field(default_factory=dict)
    score: Score | None = None
    stopped: bool = False
    peak_memory_bytes: int = 0
    judged: dict[int, tuple[int, int]] = field(default_factory=dict)
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
        self.memory = PeakMemory(context.device)
        self.work, self.plan = load_payload(job.payload), job.plan
        self.groups = Groups(self.comm, self.plan.mesh, parts_of(self.plan))
        batch, dtypes = self.plan.batch, input_dtypes(self.work, self.plan)
        self.order = Order(batch.samples, batch.size, self.work.seed, self.work.shuffle_block)
        self.loader = Loader(context, self.plan, self.order, dtypes, job.first_step + job.steps)
        self.share = Share(seed=self.work.seed)
        model = self.work.make_model().to(context.device)
        for name, value in model.named_parameters():
            self.comm.broadcast(value.data, name=f"{name}, initial value")
        examples = None
        if not self.plan.output_shape and self.plan.option("loss", "mean") != "mean":
            examples = outputs_of(model, self.work.sample_shapes, self.work.input_dtypes)
        masters, self.weights = Masters(), WeightGradients()
        whole = WholeOptimizer(self.work.make_optimizer, model)
        pipeline: Pipeline | None = None
        if self.plan.stages:
            model, pipeline = self._staged(model, masters)
        else:
            if self.plan.buckets:
                self.weights.watch(model, halves=False)
            parallelize(model, self.plan, self.groups, self.share, masters)
        self.model = model
        masters.settle(model)
        self.state = RankState(model, masters.parameters, self.plan, self.groups, context)
        buffers = dict(model.named_buffers())
        self.updater = Updater(
            self.work, self.plan, context, self.groups, masters, buffers, self.state, whole
        )
        self.weights.add = self.updater.gradients.add
        self.state.take(self.updater.optimizer, self.updater.parameters)
        self.updater.begin()
        self.snapshots = Snapshots(context, self.updater.pace, job.snapshot_every)
        self.spans = SpanRecorder(job.record_spans)
        self.previewer = Previewer(context, self.plan, self.order, job.steps if job.preview else 0)
        self.judge = Judge(
            self.work.loss, job.first_step, job.steps, shares=bool(self.plan.class_cuts)
        )
        self.passes = Passes(
            self.work,
            self.plan,
            context,
            self.groups,
            model,
            pipeline,
            self.weights,
            self.share,
            self.updater,
            self.order,
            self.previewer,
            self.judge,
            examples,
        )
        self.outcome = Outcome()
        self.reported = 0
        self.pausing = False

    def _staged(self, model: nn.Module, masters: Masters) -> tuple[nn.Module, Pipeline]:
        """Return the model as a pipeline runs it, stage by stage."""
        inputs = [
            torch.empty(x.shape, dtype=dtype, device="meta")
            for x, dtype in zip(self.plan.inputs, input_dtypes(self.work, self.plan), strict=True)
        ]
        traced = lower(self.work.make_model()) if self.plan.low else model
        calls = Trace(traced, inputs).calls
        schedule = SCHEDULES[self.plan.option("schedule", "1f1b")]
        self.weights.watch(model, schedule.splits_backward)
        parallelize(model, self.plan, self.groups, self.share, masters)
        device = self.context.device
        return model, Pipeline(model, self.plan, self.groups, calls, self.weights, device)

    def run(self) -> Outcome:
        # Code that draws random numbers itself (F.dropout) must draw others for other samples and
        # in other stages, and the same on ranks that compute the same.
        # A run that goes on draws what comes next, or at least not the same again.
        first = self.job.first_step
        seed_all(self.work.seed + self.plan.mesh.stream(self.context.rank) + SPREAD * first)
        self.state.restore_generators()
        self.memory.begin()
        self.comm.barrier()
        self._record(True)
        began_s = sent_s = perf_counter()
        time_s = 0.0
        for step in range(first, first + self.job.steps):
            self.context.progress(step)
            self.judge.begin(step)
            row = self._step(step, began_s, time_s)
            time_s = row["time_s"]
            began_s += self.judge.end(step)  # no part of the training
            self.outcome.rows.append(row)
            self.context.spend({kind: row[f"{kind}_s"] for kind in KINDS})
            self.previewer.send()
            now_s = perf_counter()
            if now_s - sent_s >= SEND_EVERY_S or step in (first, first + self.job.steps - 1):
                self._report()
                sent_s = now_s
            last = self.outcome.stopped or step + 1 == first + self.job.steps
            if self.snapshots.due(step + 1) and not last:  # the last state is kept below
                self.snapshots.make(step + 1, self._keep)
            if self.pausing and not self.outcome.stopped:
                began_s += self._pause(step)
            if self.outcome.stopped:
                break
        self._record(False)
        self._report()
        self.outcome.peak_memory_bytes = self.memory.peak_bytes
        self.outcome.sent_bytes = dict(self.comm.sent_bytes)
        self.outcome.dropped_spans = self.spans.dropped
        self.outcome.kept = self._keep()
        if not self.outcome.stopped and "test_x" in self.context.arrays:
            self.outcome.score = score(
                self.state.whole(self.work.make_model().to(self.context.device)),
                self.passes.loss,
                self.passes.loss_kind,
                self.context.arrays,
                self.comm,
                self.context.device,
            )
        return self.outcome

    def _keep(self, mark: str = "") -> dict[str, tuple[tuple[int, ...], str]]:
        return self.state.keep(self.updater.optimizer, self.updater.parameters, mark)

    def _step(self, step: int, began_s: float, time_s: float) -> dict[str, float]:
        """Make a step of a training that began at ``began_s`` and took ``time_s`` so far.

        What was done since then, such as telling of the step before, is part of this one.
        """
        parts_s: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        comm_s, wait_s, sent = self.comm.comm_s, self.comm.wait_s, self._sent()
        self.spans.begin_step(step, began_s + time_s)
        with self._part(parts_s, "load", "samples"):
            micro_batches = self.loader.take(step)
        with self._part(parts_s, "compute"):
            loss = self.passes.run(step, micro_batches)
        agreed = self.updater.agree(step, loss)
        self.outcome.stopped = agreed.verdict.stop
        last = agreed.verdict.stop or step == self.job.first_step + self.job.steps - 1
        self.pausing = agreed.verdict.pause and not last
        with self._part(parts_s, "optimizer", "update"):
            self.updater.clip()
            self.updater.apply()
            self.updater.share(step, last)
        with self._part(parts_s, "compute"):  # a device may still be at it
            whole_loss = self.updater.known(step, agreed)
        stop_s = perf_counter()
        self.spans.end_step(stop_s)
        parts_s["comm"], parts_s["wait"] = self.comm.comm_s - comm_s, self.comm.wait_s - wait_s
        step_s = stop_s - began_s - time_s
        parts_s["overhead"] = step_s - sum(parts_s.values())
        return {
            "step": step,
            "time_s": stop_s - began_s,
            "step_s": step_s,
            "loss": whole_loss,
            "samples_per_s": self.order.batch_total(step) / step_s,
            **{f"{kind}_s": part_s for kind, part_s in parts_s.items()},
            "sent_bytes": self._sent() - sent,
        }

    @contextmanager
    def _part(self, parts_s: dict[str, float], kind: Kind, name: str = "") -> Iterator[None]:
        """Count the body as a kind of span, but for its communication and waiting."""
        talked_s = self.comm.comm_s + self.comm.wait_s
        start_s = perf_counter()
        with self.spans.within(kind, name):
            yield
        talked_s = self.comm.comm_s + self.comm.wait_s - talked_s
        parts_s[kind] += perf_counter() - start_s - talked_s

    def _pause(self, step: int) -> float:
        """Wait between two steps; return how long, which counts as no part of the training."""
        self._report()
        self._record(False)
        waited_s = self.updater.pace.wait(step)
        self._record(True)
        if self.updater.pace.stop_asked:
            self.outcome.stopped = True
            self.updater.finish()
        return waited_s

    def _record(self, on: bool) -> None:
        """Have the communicator tell of what it does, or no longer, if spans are wanted at all."""
        self.comm.on_span = self.spans.add if on and self.job.record_spans else None

    def _sent(self) -> int:
        return sum(self.comm.sent_bytes.values())

    def _report(self) -> None:
        """Send what is new: rows from rank 0; counts, memory, newest spans from every rank."""
        spans = self.spans.take()
        self.outcome.spans += spans
        surplus = max(0, len(self.outcome.spans) - MOST_KEPT)
        del self.outcome.spans[:surplus]
        self.spans.dropped += surplus
        rows = self.outcome.rows[self.reported :] if self.context.rank == 0 else []
        self.reported = len(self.outcome.rows)
        judged = self.judge.counts()
        self.outcome.judged |= judged
        grown = self.memory.grown()
        if rows or spans or judged or grown:
            news = {"rows": rows, "spans": spans[-LIVE_SPANS:], "judged": judged}
            self.context.send("steps", news | {"peak_memory_bytes": self.memory.told_bytes})
