"""What all windowed layers without weights have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from workbench.layers.carrier import Declared, Seat
from workbench.plan import LayerPlan
from workbench.traced import Flat, Label, Refusal, Traced
from workbench.windows import Window


def declared(
    module: nn.Module,
    argument: Traced,
    output_shape: tuple[int, ...],
    windows: Sequence[Window],
    refusals: tuple[Refusal, ...] = (),
) -> Declared:
    """Return a declaration with ``windows`` of the last dims; dims before them pass through.

    A channel label on a dim with a window, or a flattened dim, is no row that could be fetched.
    """
    first = len(argument.shape) - len(windows)
    labels: list[Label] = list(argument.labels[:first])
    carried, lost = [], []
    for number, window in enumerate(windows):
        label = argument.labels[first + number]
        names = [name for name, _ in label.parts] if isinstance(label, Flat) else [label]
        if isinstance(label, Flat) or label.startswith("out:"):
            lost += [name for name in names if name]
            label = ""
        elif label:
            carried.append((first + number, window))
        labels.append(label)
    if lost:
        reason = f"{type(module).__name__} has windows over a dim that counts no positions"
        refusals = (*refusals, Refusal(tuple(lost), reason))
    return Declared(tuple(labels), tuple(carried), refusals=refusals)


def output_sizes(seat: Seat, planned: LayerPlan, x: Tensor) -> tuple[int, ...]:
    """Return the shape of this rank's share of the output, for as many samples as ``x`` has."""
    ranges = seat.ranges(planned.layer.output_shape, planned.output)
    return (x.shape[0], *(stop - start for start, stop in ranges[1:]))
