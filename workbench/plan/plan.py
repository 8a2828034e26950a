"""The plan: what every rank holds of every array, and every collective with its bytes.

Pure: imports nothing of torch, dask or the UI. A plan is frozen; the engine runs it, the planner
prices it, the UI draws it and the tests check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from workbench.mesh import BATCH_AXES, Mesh, balanced, balanced_units, cuts_features, shares
from workbench.plan.collective import Collective
from workbench.plan.cuts import Bucket, Cut, CutLabel
from workbench.plan.explanation import explain
from workbench.plan.memory import Memory, memory_of
from workbench.plan.replicas import WHOLE, Averaging, Compression
from workbench.plan.stages import Crossing, Source, Stage
from workbench.traced import Adapted, Array, Flat, Label, Layer, Meeting, Mix, Resized, Traced
from workbench.windows import Halo, Run, Window

MASTER_BYTES = 4
"""Of a number of a parameter that is updated in float32, whatever it is computed with."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer with the cuts of its input, its parameters (by name) and its output.

    ``choice`` is what a strategy has chosen where there are several ways: "gather" (the layer runs
    on whole arrays, gathered before it), "gather output" (it gives whole arrays), or for a linear
    layer and a convolution "filters" (outputs are split), "channels" (inputs are split and results
    added up) or "groups".
    """

    layer: Layer
    input: tuple[Cut, ...] = ()
    parameters: tuple[tuple[str, Cut], ...] = ()
    output: tuple[Cut, ...] = ()
    choice: str = ""

    @property
    def feature_axis(self) -> str:
        """The axis along which ranks have parts of what the layer itself multiplies by; or ""."""
        cuts = (cut.axis for _, cut in self.parameters if cuts_features(cut.axis))
        return next(cuts, "")

    def halo(self, mesh: Mesh) -> Halo | None:
        """Return who needs what of whom on the spatial axis; None if that cuts no input here."""
        cuts = sorted((c for c in self.input if c.axis == "spatial"), key=lambda c: c.part)
        if not cuts:
            return None
        sizes = self.layer.input_shape
        return Halo(
            tuple(self.layer.window(c.dim) or Window(sizes[c.dim], sizes[c.dim]) for c in cuts),
            tuple(mesh.parts("spatial", c.part) for c in cuts),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of the whole run, over all ranks, consumes."""

    size: int
    samples: int
    accumulate: int = 1

    def rows(self, degree: int, index: int) -> tuple[int, ...]:
        """Return the samples of one full batch in each micro-batch of replica ``index``.

        A replica without a sample computes on a stand-in, so the least is 1.
        """
        first, last = balanced(self.size, degree, index)
        return tuple(
            max(1, len(range(first + (micro - first) % self.accumulate, last, self.accumulate)))
            for micro in range(self.accumulate)
        )


@dataclass(frozen=True)
class Plan:
    """One strategy applied to one workload.

    ``layers`` are in the order of the forward pass. ``collectives`` are those of one step, and
    those of the start.
    ``output_shape`` is that of the model's output for the whole batch if that is one array.
    ``input``, ``output`` and ``target`` say how the model's input, its output and the targets are
    cut, if each is one array. ``inputs`` and ``outputs`` are all of them, with their labels, and
    ``mixes`` is the code that mixes positions of labelled dims, ``units`` the pieces of features
    that code takes them apart into, and ``adapted`` the numbers that it takes for that.
    ``resized`` are modules whose code gives sizes of whole arrays, ``meetings`` those in whose code
    arrays that are whole meet others of which ranks have some positions.
    ``exposed`` are parameters and buffers that code reads where no layer that has them is called.
    ``cut_labels`` says which labels are cut, and ``whole`` which flattened dims are gathered all
    the same. ``updates`` says which share of a whole parameter a rank updates, by name. ``stages``
    are those of a pipeline, ``crossings`` what one computes for another, ``passed`` what modules
    are given and return of which ranks have shares, and ``held`` the places on the pipeline whose
    ranks have a parameter or buffer, by name. ``optimizer_state`` is how many
    numbers the optimizer keeps for each of a parameter's, and how many bytes beside. ``made`` says
    how the model leaves its output, which is gathered before the loss where ``output`` is not cut.
    ``compression`` is what replicas send of gradients, ``averaging`` when they average ``averaged``
    instead. ``loss_dim`` is the dim of the output that counts classes, if the loss can be computed
    of shares of them; 0 if not.
    """

    workload: str
    batch: Batch
    layers: tuple[LayerPlan, ...]
    mesh: Mesh = field(default_factory=Mesh)
    collectives: tuple[Collective, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    output_shape: tuple[int, ...] = ()
    input: tuple[Cut, ...] = ()
    output: tuple[Cut, ...] = ()
    target: tuple[Cut, ...] = ()
    made: tuple[Cut, ...] = ()
    cut_labels: tuple[CutLabel, ...] = ()
    whole: tuple[Flat, ...] = ()
    mixes: tuple[Mix, ...] = ()
    units: tuple[tuple[str, int], ...] = ()
    adapted: tuple[Adapted, ...] = ()
    exposed: tuple[str, ...] = ()
    resized: tuple[Resized, ...] = ()
    meetings: tuple[Meeting, ...] = ()
    inputs: tuple[Traced, ...] = ()
    outputs: tuple[Traced, ...] = ()
    targets: Traced | None = None
    updates: tuple[tuple[str, Cut], ...] = ()
    stages: tuple[Stage, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    passed: tuple[tuple[Source, Traced], ...] = ()
    held: tuple[tuple[str, tuple[int, ...]], ...] = ()
    optimizer_state: tuple[int, int] = (0, 0)
    compression: Compression = WHOLE
    averaging: Averaging | None = None
    averaged: tuple[Bucket, ...] = ()
    loss_dim: int = 0

    @property
    def strategy(self) -> str:
        """The strategy as it is written: ``"data=2"``, or ``"serial"``."""
        return str(self.mesh)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.mesh.size

    @property
    def low(self) -> bool:
        """Whether forward and backward are in bfloat16, and weights are updated in float32."""
        return self.option("precision", "full") == "bf16"

    @property
    def in_full(self) -> Plan:
        """The same cuts, computed in the workload's own precision."""
        kept = tuple(option for option in self.options if option[0] != "precision")
        return replace(self, options=kept)

    @property
    def inexact(self) -> str:
        """What makes the result another one than that of the serial run, by design; "" if none."""
        if self.averaging is not None:
            outer = ", outer=nesterov" if self.averaging.nesterov else ""
            return f"sync_every={self.averaging.every}{outer}"
        kind = self.compression.kind
        return "" if kind == "none" else f"compression={kind}"

    def kept_itemsize(self, array: Array) -> int:
        """Return the bytes of one number of a parameter as it is updated, and of its gradients."""
        return MASTER_BYTES if self.low else array.itemsize

    def option(self, name: str, default: str) -> str:
        """Return one of the strategy's stated choices."""
        return dict(self.options).get(name, default)

    @property
    def period(self) -> int:
        """The number of steps after which what is sent repeats itself."""
        return self.averaging.every if self.averaging is not None else 1

    def sent_bytes(self, rank: int, step: int | None = None) -> int:
        """Return the payload bytes that ``rank`` sends in one step; communicators count the same.

        That is in ``step``, or in the mean over a period, rounded up. A short last batch with fewer
        samples than micro-batches skips the empty ones, and sends less. A run whose last step ends
        no period averages after it all the same.
        """
        every = self._sent(rank, "average")
        usual = sum(self.sent_by(c, rank) for c in self.collectives if c.phase != "start") - every
        if step is None:
            return usual - (-every // self.period)
        return usual + (every if (step + 1) % self.period == 0 else 0)

    def _sent(self, rank: int, phase: str) -> int:
        return sum(self.sent_by(c, rank) for c in self.collectives if c.phase == phase)

    def sent_by(self, collective: Collective, rank: int) -> int:
        """Return the payload bytes that ``rank`` sends for one of the collectives, in its step."""
        mesh = self.mesh
        group = collective.group(mesh, rank)
        if rank not in group:
            return 0
        samples = self.batch.rows(mesh.replicas, mesh.replica(rank))
        if collective.arrays:
            arrays = {array.name: array for array in (*self.buffers, *self.arrays)}
            shapes = [self.owned(arrays[name], rank).shape for name in collective.arrays]
            own = self.compression.numbers(collective.part, shapes)
            collective = replace(collective, numel=own)
        if collective.by_rank:
            collective = replace(collective, shares=tuple(collective.by_rank[r] for r in group))
        return collective.sent_bytes(len(group), group.index(rank), samples)

    def share(self, shape: Sequence[int], cuts: Iterable[Cut], rank: int) -> tuple[Run, ...]:
        """Return the range that ``rank`` owns along every dim of an array that is cut so."""
        found = [(0, size) for size in shape]
        for cut in cuts:
            if cut.flat is not None:
                parts = [self.share_of_label(label, size, rank) for label, size in cut.flat.parts]
                together = sum if cut.flat.beside else prod
                found[cut.dim] = (0, together(stop - start for start, stop in parts))
                continue
            count = self.mesh.parts(cut.axis, cut.part)
            place = self.mesh.place(rank, cut.axis, cut.part)
            found[cut.dim] = balanced_units(shape[cut.dim], count, place, cut.units)
        return tuple(found)

    def passed_shape(self, source: Source, whole: Sequence[int], rank: int) -> tuple[int, ...]:
        """Return the shape that ``rank`` has of what a module is given or returns.

        ``whole`` is the shape that it has where nothing is cut, for any number of samples.
        """
        array = next((array for passed, array in self.passed if passed == source), None)
        if array is None:
            return tuple(whole)
        own = self.share(array.shape, self.cuts_of(array), rank)
        # A dim may count the samples too, of which the array has those of the whole batch.
        return tuple(
            size * (stop - start) // traced if traced else size
            for size, traced, (start, stop) in zip(whole, array.shape, own, strict=True)
        )

    def copies(self, cuts: Iterable[Cut]) -> int:
        """Return how many ranks hold each share of an array that is cut so."""
        return self.mesh.size // prod(
            self.mesh.parts(cut.axis, cut.part) for cut in dict.fromkeys(cuts)
        )

    def kept_cuts(self, kept: str, dims: int) -> tuple[Cut, ...]:
        """Return how a kept array is cut: ``"parameter:w"``, ``"buffer:b"``, ``"optimizer:k:w"``.

        What an optimizer has of a parameter is cut as that, where it has as many ``dims``, and by
        what a rank updates of it.
        """
        kind, _, name = kept.partition(":")
        if kind != "optimizer":
            return self.parameter_cuts(name)
        name = name.partition(":")[2]
        shape = next((array.shape for array in self.arrays if array.name == name), ())
        if dims == 0 or dims != len(shape):
            return ()
        return (*self.parameter_cuts(name), *(cut for n, cut in self.updates if n == name))

    def copies_of(self, name: str) -> int:
        """Return how many ranks hold each share of a parameter."""
        copies = self.copies(self.parameter_cuts(name))
        return copies * len(self.holders(name)) // self.mesh.degree("pipeline")

    def share_of_label(self, label: Label, size: int, rank: int) -> Run:
        """Return the range that ``rank`` owns of a dim with ``label`` and ``size``."""
        for cut in self.cut_labels:
            if cut.label == label:
                parts = self.mesh.parts(cut.axis, cut.part)
                place = self.mesh.place(rank, cut.axis, cut.part)
                return balanced_units(size, parts, place, cut.units)
        return (0, size)

    def parameter_cuts(self, name: str) -> tuple[Cut, ...]:
        """Return how the parameter ``name`` is cut."""
        found = {
            cut: None
            for planned in self.layers
            for cut_name, cut in planned.parameters
            if cut_name == name
        }
        return tuple(found)

    @property
    def summed_in_layers(self) -> frozenset[str]:
        """Parameters whose gradients layers add up over ranks that have other samples."""
        return frozenset(
            name
            for planned in self.layers
            for name, cut in planned.parameters
            if cut.axis in BATCH_AXES
        )

    def holders(self, name: str) -> tuple[int, ...]:
        """Return the places on the pipeline whose ranks have a parameter or buffer."""
        return dict(self.held).get(name, tuple(range(self.mesh.degree("pipeline"))))

    def holds(self, name: str, rank: int) -> bool:
        """Return whether ``rank`` has a parameter or buffer, or a share of it."""
        return self.mesh.place(rank, "pipeline") in self.holders(name)

    def owned(self, array: Array, rank: int) -> Array:
        """Return what ``rank`` holds of a parameter."""
        ranges = self.share(array.shape, self.parameter_cuts(array.name), rank)
        return replace(array, shape=tuple(stop - start for start, stop in ranges))

    def cuts_of(self, array: Traced) -> tuple[Cut, ...]:
        """Return how an array with these labels is cut, its batch dim aside."""
        found = []
        for dim, label in enumerate(array.labels):
            flat = label if isinstance(label, Flat) else None
            if flat in self.whole:
                continue
            carried = [name for name, _ in flat.parts] if flat is not None else [label]
            found += [
                Cut(dim, cut.axis, cut.part, flat, cut.units)
                for cut in self.cut_labels
                if cut.label in carried
            ]
        return tuple(found)

    @property
    def class_label(self) -> Label:
        """Label of the classes in the output, if the loss can be computed of shares of them."""
        labels = self.outputs[0].labels if self.loss_dim and len(self.outputs) == 1 else ()
        return labels[self.loss_dim] if self.loss_dim < len(labels) else ""

    @property
    def class_cuts(self) -> tuple[Cut, ...]:
        """How the output is cut in classes where the loss is computed; none if it is whole."""
        if not self.class_label:
            return ()
        return tuple(cut for cut in self.cuts_of(self.outputs[0]) if cut.dim == self.loss_dim)

    def memory(self, rank: int) -> Memory:
        """Return what ``rank`` keeps, in bytes: predicted."""
        return memory_of(self, rank)

    @property
    def bytes_per_rank(self) -> int:
        """Bytes that the rank with most keeps: parameters, gradients, state and activations."""
        return max(self.memory(rank).total_bytes for rank in range(self.ranks))

    @property
    def bytes_per_step(self) -> int:
        """Payload bytes that the busiest rank sends in one step, in the mean over a period."""
        return max(self.sent_bytes(rank) for rank in range(self.ranks))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All parameters, each once, in the order of their layers."""
        found: dict[str, Array] = {}
        for planned in self.layers:
            for parameter in planned.layer.parameters:
                found.setdefault(parameter.name, parameter)
        return tuple(found.values())

    @property
    def buffers(self) -> tuple[Array, ...]:
        """All buffers, each once, in the order of their layers."""
        found: dict[str, Array] = {}
        for planned in self.layers:
            layer = planned.layer
            inside = "" if layer.name == layer.kind else f"{layer.name}."
            for buffer in layer.buffers:
                name = f"{inside}{buffer.name}"
                found.setdefault(name, replace(buffer, name=name))
        return tuple(found.values())

    def __str__(self) -> str:
        """Explain who holds what, what each layer costs, and every collective with its bytes."""
        return explain(self)

    def adding(
        self,
        *,
        collectives: Iterable[Collective] = (),
        notes: Iterable[str] = (),
        **changes: object,
    ) -> Plan:
        """Return this plan with more collectives and notes, and other fields replaced."""
        return replace(
            self,
            collectives=(*self.collectives, *collectives),
            notes=(*self.notes, *notes),
            **changes,  # type: ignore[arg-type]
        )


def shares_of(batch: Batch, degree: int) -> tuple[int, ...]:
    """Return the samples of one full batch that each of ``degree`` replicas takes."""
    return shares(batch.size, degree)
