"""What all windowed layers without weights have in common: labels, and rows that are fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from workbench.layers.carrier import Declared, Forward, Seat, empty_like_output
from workbench.layers.fetch import Fetch, fetch_for
from workbench.plan import LayerPlan
from workbench.traced import Flat, Label, Layer, Refusal, Traced
from workbench.windows import Rows, Run, Window


def declared(
    module: nn.Module,
    argument: Traced,
    output_shape: tuple[int, ...],
    windows: Sequence[Window],
    refusals: tuple[Refusal, ...] = (),
) -> Declared:
    """Return a declaration with ``windows`` of the last dims; dims before them pass through.

    A dim that was flattened out of several loses its label: whoever flattens gathers it before.
    """
    first = len(argument.shape) - len(windows)
    labels: list[Label] = list(argument.labels[:first])
    carried, channels = [], []
    for number, window in enumerate(windows):
        label = argument.labels[first + number]
        if isinstance(label, Flat):
            label = ""
        elif label.startswith("out:"):
            channels.append(label)
            label = ""
        elif label:
            carried.append((first + number, window))
        labels.append(label)
    if channels:
        reason = f"{type(module).__name__} has windows over a dim that counts channels"
        refusals = (*refusals, Refusal(tuple(channels), reason))
    return Declared(tuple(labels), tuple(carried), refusals=refusals)


def positions(label: Label) -> list[str]:
    """Return the names of counted positions in the label of a dim; channels are none."""
    names = [name for name, _ in label.parts] if isinstance(label, Flat) else [label]
    return [name for name in names if name and not name.startswith("out:")]


def each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Return one number for every dim, where torch takes one for all or one for each."""
    numbers = (value,) if isinstance(value, int) else tuple(int(number) for number in value)
    return numbers * dims if len(numbers) == 1 else numbers


@dataclass(frozen=True)
class Cut:
    """A dim with a window that is cut: the input rows needed, and the output rows owned."""

    dim: int
    window: Window
    rows: Rows
    start: int
    stop: int

    @property
    def outputs(self) -> int:
        """Number of output rows that the rank owns."""
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Part:
    """One call of a windowed layer on this rank."""

    layer: Layer
    cuts: tuple[Cut, ...]
    fetch: Fetch
    ranges: tuple[Run, ...]

    @property
    def empty(self) -> bool:
        """Whether the rank owns no output."""
        return any(start == stop for start, stop in self.ranges[1:])

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of the rank's output, for as many samples as its input ``x`` has."""
        samples = x.shape[0] + self.layer.output_shape[0] - self.layer.input_shape[0]
        return (samples, *(stop - start for start, stop in self.ranges[1:]))


Compute = Callable[[Tensor], Tensor]


def on_needed_rows(
    module: nn.Module, seat: Seat, prepare: Callable[[Part], Compute]
) -> Forward | None:
    """Return a forward that fetches rows and computes on those; None if no row is cut.

    ``prepare`` is called once for each planned call. What it returns takes the needed rows of each
    cut dim, one after another and without any padding, and gives the rank's outputs, of which
    there is at least one.
    """
    if not any(cut.axis == "spatial" for call in seat.calls for cut in call.input):
        return None
    on_own_rows: Forward = module.forward
    made: dict[tuple[int, ...], tuple[Part | None, Compute]] = {}

    def forward(input: Tensor) -> Tensor:
        key = tuple(input.shape[1:])
        if key not in made:
            part = _part(seat, seat.call(input))
            compute = on_own_rows if part is None or part.empty else prepare(part)
            made[key] = part, compute
        part, compute = made[key]
        if part is None:
            return compute(input)
        x = part.fetch(input)  # others may wait for rows of a rank that has no outputs
        return empty_like_output(x, part.shape(input)) if part.empty else compute(x)

    return forward


def _part(seat: Seat, planned: LayerPlan) -> Part | None:
    fetch = fetch_for(seat, planned)
    if fetch is None:
        return None
    layer = planned.layer
    ranges = seat.ranges(layer.output_shape, planned.output)
    cuts = [
        Cut(dim, window, rows, *ranges[dim])
        for dim, rows in zip(fetch.dims, fetch.rows, strict=True)
        if (window := layer.window(dim)) is not None
    ]
    return Part(layer, tuple(cuts), fetch, ranges)
