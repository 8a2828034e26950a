"""Where a pipeline cuts a model, and what crosses from one stage to another.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module in a forward pass: the ``number``-th of that module, from 0."""

    module: str
    number: int = 0

    def __str__(self) -> str:
        """Return the module's name, with the number of the call if it is not the first."""
        name = self.module or "the model"
        return f"{name}, call {self.number + 1}" if self.number else name


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor that a stage has in its hands: the ``place``-th argument or result of a call."""

    call: Call
    end: Literal["argument", "result"]
    place: int = 0

    def __str__(self) -> str:
        """Return it in words, such as ``"result of h.3"``."""
        number = f" {self.place}" if self.place else ""
        return f"{self.end}{number} of {self.call}"


@dataclass(frozen=True, slots=True)
class Size:
    """A shape that depends on the number of samples: per dim what is constant and per sample."""

    dims: tuple[tuple[int, int], ...]

    def of(self, samples: int) -> tuple[int, ...]:
        """Return the shape for so many samples."""
        return tuple(constant + each * samples for constant, each in self.dims)

    @property
    def per_sample(self) -> bool:
        """Whether the numbers grow in proportion to the samples."""
        return any(each for _, each in self.dims)

    @property
    def counts(self) -> bool:
        """Whether one dim at most grows, and in proportion to the samples."""
        grows = [constant for constant, each in self.dims if each]
        return not grows or grows == [0]

    @property
    def numel(self) -> int:
        """Numbers for one sample, or of the whole array if it does not depend on them."""
        return prod(self.of(1))


@dataclass(frozen=True, slots=True)
class Crossing:
    """One array that a stage computes and a later one needs, for each micro-batch."""

    source: Source
    start: int
    stop: int
    size: Size
    dtype: str
    itemsize: int
    gradient: bool

    @property
    def name(self) -> str:
        """Name of the message."""
        return f"stage {self.stop}: {self.source}"

    @property
    def gradient_name(self) -> str:
        """Name of the message that goes back."""
        return f"stage {self.stop}: gradient of {self.source}"


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of a pipeline: it begins with ``entry``, and calls ``layers`` of the plan.

    ``cost_flops`` is counted; ``cost_s`` is what its layers take for a micro-batch, if measured.
    """

    number: int
    entry: Call | None
    layers: tuple[int, ...]
    cost_flops: int
    cost_s: float | None = None
