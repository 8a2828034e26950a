"""A plan in words.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.plan.plan import Plan


def explain(plan: Plan) -> str:
    """Say who holds what, what each layer costs, and every collective with its bytes."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> list[str]:
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
    lines += [*_memory_lines(plan), ""]
    if plan.ranks == 1:
        return [*lines, "One rank: nothing is sent."]
    return [*lines, *_collective_table(plan)]


def _memory_lines(plan: Plan) -> list[str]:
    """Return what the rank with most keeps, predicted."""
    most = max((plan.memory(rank) for rank in range(plan.ranks)), key=lambda m: m.total_bytes)
    parts = (
        ("parameters", most.parameters_bytes),
        ("gradients", most.gradients_bytes),
        ("optimizer state", most.optimizer_bytes),
        ("activations", most.activations_bytes),
    )
    listed = ", ".join(f"{in_binary_units(size)} {what}" for what, size in parts)
    return [
        f"Kept by the rank with most (predicted): {in_binary_units(most.total_bytes)} = {listed}."
    ]


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
    for c in plan.collectives:
        if c.phase != "start":
            sent = in_binary_units(plan.sent_by(c, 0))
            times = plan.batch.accumulate if c.per_sample else c.times
            rows.append((c.name, c.operation, "+".join(c.axes), c.phase, str(times), sent))
    start = sum(plan.sent_by(c, 0) for c in plan.collectives if c.phase == "start")
    said = "Sent in one step by the busiest rank"
    if plan.period > 1:
        busiest = max(range(plan.ranks), key=plan.sent_bytes)
        usual, last = plan.sent_bytes(busiest, 0), plan.sent_bytes(busiest, plan.period - 1)
        said = (
            f"Sent by the busiest rank in {plan.period - 1} steps {usual:,} bytes each and in the "
            f"one after that {last:,} bytes; in the mean"
        )
    return [
        *_aligned(rows, right_from=4),
        "",
        f"{said}: {plan.bytes_per_step:,} bytes "
        f"({in_binary_units(plan.bytes_per_step)}); once at the start by rank 0: "
        f"{in_binary_units(start)}.",
    ]


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


def in_binary_units(nbytes: float) -> str:
    """Return a number of bytes for people: ``in_binary_units(1536) == "1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            break
        nbytes /= 1024
    return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"
