"""The receptive field of a network: which rows of its input one row of its output sees."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from workbench.arrays.boxes import Box
from workbench.arrays.network import Network
from workbench.arrays.tiles import walk_back

_LOOKED_AT = 33


@dataclass(frozen=True)
class Field:
    """The receptive field along one dim.

    Output row ``o`` sees at most ``size`` input rows from ``o * stride - padding`` on. Where the
    network goes down and up again, rows see different ranges; ``size`` and ``padding`` are those
    that hold for all that were looked at, in the middle of the array.

    Attributes
    ----------
    dim, rows:
        The dim of the input, and how many rows it has.
    whole:
        Whether a row in the middle sees as many rows as there are, so that ``size`` is no more than
        a lower bound.
    """

    dim: int
    rows: int
    size: int
    stride: Fraction
    padding: int
    whole: bool = False

    def __str__(self) -> str:
        """Say it in a line."""
        if self.whole:
            return f"dim {self.dim}: all {self.rows} rows"
        seen = f"{self.size} of {self.rows} rows"
        return f"dim {self.dim}: {seen}, stride {self.stride}, padding {self.padding}"


def receptive_field(network: Network) -> tuple[Field, ...]:
    """Return the receptive field along each dim of the input that goes on to the output, from 2."""
    source, output = network.nodes[network.inputs[0]], network.nodes[network.output]
    found = []
    for dim in range(2, min(len(source.shape), len(output.shape))):
        rows, made = source.shape[dim], output.shape[dim]
        if not made or not rows or len(source.shape) != len(output.shape):
            continue
        first = max(0, made // 2 - _LOOKED_AT // 2)
        stride = Fraction(rows, made).limit_denominator(64)
        seen = []
        for row in range(first, min(made, first + _LOOKED_AT)):
            box: Box = tuple(
                (row, row + 1) if d == dim else (n // 2, n // 2 + 1)
                for d, n in enumerate(output.shape)
            )
            boxes = walk_back(network, {network.output: [box]}).get(network.inputs[0], [])
            for seen_box in boxes:
                seen.append((row, *seen_box[dim]))
        if not seen:
            continue
        found.append(
            Field(
                dim,
                rows,
                max(stop - start for _, start, stop in seen),
                stride,
                max(round(row * stride) - start for row, start, _ in seen),
                any(start == 0 and stop == rows for _, start, stop in seen) and rows > 1,
            )
        )
    return tuple(found)
