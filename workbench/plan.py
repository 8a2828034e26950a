"""The plan: what every rank holds of every array, and every collective with its bytes.

Pure: imports nothing of torch, dask or the UI. A plan is frozen; the engine runs it, the planner
prices it, the UI draws it and the tests check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from workbench.mesh import Mesh, balanced, shares

Phase = Literal["start", "forward", "backward", "update", "record"]
Operation = Literal["all_reduce", "reduce_scatter", "all_gather", "broadcast"]


@dataclass(frozen=True, slots=True)
class Array:
    """Name, shape and size of one item of an array, in bytes."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    trainable: bool = True

    @property
    def numel(self) -> int:
        """Number of items."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a leaf module, as the profile found it.

    Shapes are those of the whole (serial) batch, batch dim first. ``forward_flops`` counts one
    multiply and one add as two. ``batch_statistics`` says that the layer's output for one sample
    depends on the other samples of the batch, as in BatchNorm.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: tuple[Array, ...] = ()
    buffers: tuple[Array, ...] = ()
    forward_flops: int = 0
    itemsize: int = 4
    batch_statistics: bool = False

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the layer's own parameters."""
        return sum(p.nbytes for p in self.parameters)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the layer's output for the whole batch."""
        return Array(self.name, self.output_shape, self.itemsize).nbytes


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of a step: every rank along ``axis`` takes part, ``times`` times per step.

    ``numel`` is what one rank puts in: the whole array for an all_reduce, a reduce_scatter and a
    broadcast, the rank's own piece (equal on all ranks) for an all_gather.
    """

    name: str
    operation: Operation
    axis: str
    numel: int
    itemsize: int
    phase: Phase
    times: int = 1

    def sent_bytes(self, degree: int, index: int) -> int:
        """Return the payload bytes that the rank at ``index`` of ``degree`` sends for one step.

        An all_reduce is a reduce_scatter and an all_gather over the balanced split, the volume of
        the bandwidth-optimal ring (Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms",
        2009).
        """
        start, stop = balanced(self.numel, degree, index)
        own, others = stop - start, degree - 1
        elements = {
            "all_reduce": self.numel - own + others * own,
            "reduce_scatter": self.numel - own,
            "all_gather": others * self.numel,
            "broadcast": others * self.numel if index == 0 else 0,
        }[self.operation]
        return elements * self.itemsize * self.times if degree > 1 else 0


@dataclass(frozen=True, slots=True)
class Cut:
    """How one array is cut: ``dim`` over ``axis``; an array without cuts is whole on every rank."""

    dim: int
    axis: str


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer with the cuts of its input, its parameters and its output."""

    layer: Layer
    input: tuple[Cut, ...] = ()
    parameters: tuple[Cut, ...] = ()
    output: tuple[Cut, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of the whole run, over all ranks, consumes."""

    size: int
    samples: int
    accumulate: int = 1


@dataclass(frozen=True)
class Plan:
    """One strategy applied to one workload.

    ``layers`` are in the order of the forward pass. ``collectives`` are those of one step, and
    those of the start. ``buckets`` are names of parameters whose gradients travel together.
    ``output_shape`` is that of the model's output for the whole batch if that is one array.
    """

    workload: str
    batch: Batch
    layers: tuple[LayerPlan, ...]
    mesh: Mesh = field(default_factory=Mesh)
    collectives: tuple[Collective, ...] = ()
    buckets: tuple[tuple[str, ...], ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    output_shape: tuple[int, ...] = ()

    @property
    def strategy(self) -> str:
        """The strategy as it is written: ``"data=2"``, or ``"serial"``."""
        used = [f"{axis}={degree}" for axis, degree in self.mesh.axes if degree > 1]
        return ",".join(used) or "serial"

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.mesh.size

    def option(self, name: str, default: str) -> str:
        """Return one of the strategy's stated choices."""
        return dict(self.options).get(name, default)

    def sent_bytes(self, rank: int) -> int:
        """Return the payload bytes that ``rank`` sends in one step; communicators count the same.

        A short last batch with fewer samples than micro-batches skips the empty ones, and sends
        less.
        """
        where = self.mesh.coordinates(rank)
        return sum(
            c.sent_bytes(self.mesh.degree(c.axis), where.get(c.axis, 0))
            for c in self.collectives
            if c.phase != "start"
        )

    @property
    def bytes_per_step(self) -> int:
        """Payload bytes that the busiest rank sends in one step."""
        return max(self.sent_bytes(rank) for rank in range(self.ranks))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All parameters, each once, in the order of their layers."""
        found: dict[str, Array] = {}
        for planned in self.layers:
            for parameter in planned.layer.parameters:
                found.setdefault(parameter.name, parameter)
        return tuple(found.values())

    def __str__(self) -> str:
        """Explain who holds what, what each layer costs, and every collective with its bytes."""
        return "\n".join(_explain(self))

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


def _explain(plan: Plan) -> list[str]:
    batch = plan.batch
    ranks = f"{plan.ranks} rank{'s' if plan.ranks > 1 else ''}"
    lines = [
        f"Plan: {plan.workload} under {plan.strategy}, {ranks}",
        f"  a step: {batch.size} of {batch.samples:,} samples"
        + (f", in {batch.accumulate} micro-batches" if batch.accumulate > 1 else ""),
        *(f"  {note}" for note in plan.notes),
        "",
        *_layer_table(plan),
        "",
    ]
    if plan.ranks == 1:
        return [*lines, "One rank: nothing is sent."]
    return [*lines, *_collective_table(plan)]


def _layer_table(plan: Plan) -> list[str]:
    """Return the layers with their sizes; a rank's share of each is that of the cuts named."""
    rows = [("layer", "kind", "output", "cut", "MFLOP", "parameters", "activations")]
    for planned in plan.layers:
        layer = planned.layer
        cuts = " ".join(f"dim {c.dim} over {c.axis}" for c in planned.output) or "whole"
        rows.append(
            (
                layer.name,
                layer.kind,
                "×".join(map(str, layer.output_shape)) or "-",
                cuts,
                f"{layer.forward_flops / 1e6:,.1f}",
                in_binary_units(layer.parameter_bytes),
                in_binary_units(layer.activation_bytes),
            )
        )
    layers = [planned.layer for planned in plan.layers]
    rows.append(
        (
            "all layers",
            "",
            "",
            "",
            f"{sum(layer.forward_flops for layer in layers) / 1e6:,.1f}",
            in_binary_units(sum(array.nbytes for array in plan.arrays)),
            in_binary_units(sum(layer.activation_bytes for layer in layers)),
        )
    )
    return _aligned(rows, right_from=4)


def _collective_table(plan: Plan) -> list[str]:
    rows = [("collective", "kind", "axis", "when", "times", "sent by rank 0")]
    degrees = {axis: plan.mesh.degree(axis) for axis, _ in plan.mesh.axes}
    for c in plan.collectives:
        if c.phase != "start":
            sent = in_binary_units(c.sent_bytes(degrees[c.axis], 0))
            rows.append((c.name, c.operation, c.axis, c.phase, str(c.times), sent))
    start = sum(c.sent_bytes(degrees[c.axis], 0) for c in plan.collectives if c.phase == "start")
    return [
        *_aligned(rows, right_from=4),
        "",
        f"Sent in one step by the busiest rank: {plan.bytes_per_step:,} bytes "
        f"({in_binary_units(plan.bytes_per_step)}); once at the start by rank 0: "
        f"{in_binary_units(start)}.",
    ]


def in_binary_units(nbytes: float) -> str:
    """Return a number of bytes for people: ``in_binary_units(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024
    return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"


def _aligned(rows: Sequence[tuple[str, ...]], right_from: int) -> list[str]:
    """Return rows as text in columns, those from ``right_from`` on aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if number >= right_from else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
