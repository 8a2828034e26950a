"""The picture that a run works on: the shares that ranks send, put together, and how clean it is.

For looking at. Numbers are those of what is shown: eight bits a value, and every ``stride``-th
pixel of a large image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.windows import Run

KINDS = ("input", "output", "target")
MOST_BYTES = 160_000  # of one image
MOST_WAITING = 4  # steps of which some ranks' shares have come and others' have not

Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Preview:
    """One sample at one step: what the model was given, what it made of it, what was wanted.

    Images are (H, W, channels) in eight bits. The decibels are peak signal-to-noise ratios against
    ``target``, infinite where nothing differs.
    """

    step: int
    input: Image
    output: Image
    target: Image
    input_psnr_db: float
    output_psnr_db: float


@dataclass(frozen=True)
class Part:
    """A rank's share of one image, (channels, H, W), and its ranges in the image that is shown."""

    ranges: tuple[Run, ...]
    values: Image


@dataclass(frozen=True)
class Parts:
    """What one rank sends: the shape of the whole image that is shown, and shares by kind."""

    step: int
    shape: tuple[int, ...]
    shares: Mapping[str, Part]


def stride_for(shape: tuple[int, ...]) -> int:
    """Return the least stride at which an image (channels, H, W) has ``MOST_BYTES`` at most."""
    stride = 1
    while math.prod(shown_shape(shape, stride)) > MOST_BYTES:
        stride += 1
    return stride


def shown_shape(shape: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Return the shape of an image (channels, H, W) of which every ``stride``-th pixel is shown."""
    channels, *sizes = shape
    return (channels, *(-(-size // stride) for size in sizes))


def thinned(owned: Run, stride: int) -> tuple[int, Run]:
    """Return where in a share the first shown position is, and the share's range of those shown.

    What is shown are the multiples of ``stride`` in the whole image, so that shares fit together.
    """
    start, stop = owned
    first, last = -(-start // stride), -(-stop // stride)
    return first * stride - start, (first, last)


def psnr_db(image: Image, target: Image) -> float:
    """Return the peak signal-to-noise ratio of two images of eight bits."""
    error = float(np.mean((image.astype(np.float64) - target) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


@dataclass
class _Step:
    """The images of one step, as far as their shares have come."""

    images: dict[str, Image]
    missing: dict[str, int]


@dataclass
class Assembly:
    """Puts together what ranks send; ``newest`` is the last step of which everything has come.

    Messages may be lost on the way: a step that stays without one is forgotten.
    """

    newest: Preview | None = None
    _waiting: dict[int, _Step] = field(default_factory=dict)

    def add(self, parts: Parts) -> None:
        """Take in what one rank has sent."""
        if self.newest is not None and parts.step <= self.newest.step:
            return
        channels, height, width = parts.shape
        step = self._waiting.setdefault(
            parts.step,
            _Step(
                {kind: np.zeros((height, width, channels), np.uint8) for kind in KINDS},
                dict.fromkeys(KINDS, math.prod(parts.shape)),
            ),
        )
        for kind, part in parts.shares.items():
            channel, row, column = (slice(*run) for run in part.ranges)
            step.images[kind][row, column, channel] = part.values.transpose(1, 2, 0)
            step.missing[kind] -= part.values.size
        if not any(step.missing.values()):
            self._show(parts.step, step.images)
        for late in sorted(self._waiting)[:-MOST_WAITING]:
            del self._waiting[late]

    def _show(self, number: int, images: Mapping[str, Image]) -> None:
        target = images["target"]
        for image in images.values():
            image.setflags(write=False)
        self.newest = Preview(
            number,
            images["input"],
            images["output"],
            target,
            psnr_db(images["input"], target),
            psnr_db(images["output"], target),
        )
        self._waiting = {step: has for step, has in self._waiting.items() if step > number}
