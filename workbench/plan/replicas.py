"""What replicas along the axis data tell each other instead of whole gradients at every step.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal, cast

from workbench.errors import PlanError

Kind = Literal["none", "bf16", "powersgd", "topk"]
Shape = tuple[int, ...]
PLACE_BYTES = 4
"""Of the place of one of the largest entries in a bucket."""


@dataclass(frozen=True, slots=True)
class Compression:
    """What is sent of the gradients of a bucket.

    ``"bf16"``: all numbers, in bfloat16. ``"powersgd"``: two factors of each matrix, of ``rank``
    columns (Vogels et al., "PowerSGD", NeurIPS 2019). ``"topk"``: the largest entries, so many of
    all as ``ratio`` says, with their places (Stich et al., "Sparsified SGD with memory", 2018).
    """

    kind: Kind = "none"
    rank: int = 4
    ratio: float = 0.01

    def columns(self, shape: Shape) -> int:
        """Return the columns of the factors of a gradient; 0 if it is sent as it is.

        That is what has one dim, and what would not be less in factors.
        """
        if len(shape) < 2:
            return 0
        rows, columns = shape[0], prod(shape[1:])
        rank = min(self.rank, rows, columns)
        return rank if rank * (rows + columns) < rows * columns else 0

    def left(self, shapes: Sequence[Shape]) -> int:
        """Return the numbers of all first factors, and of what is sent as it is."""
        return sum(shape[0] * r if (r := self.columns(shape)) else prod(shape) for shape in shapes)

    def right(self, shapes: Sequence[Shape]) -> int:
        """Return the numbers of all second factors."""
        return sum(prod(shape[1:]) * r for shape in shapes if (r := self.columns(shape)))

    def largest(self, numel: int) -> int:
        """Return how many of ``numel`` entries are sent: one at least."""
        return min(numel, max(1, ceil(self.ratio * numel)))

    def numbers(self, part: str, shapes: Sequence[Shape]) -> int:
        """Return how many numbers a rank puts into one of the collectives of a bucket."""
        if part == "left":
            return self.left(shapes)
        if part == "right":
            return self.right(shapes)
        numel = sum(map(prod, shapes))
        return self.largest(numel) if part == "largest" else numel

    def kept(self, shapes: Sequence[Shape], itemsize: int) -> int:
        """Return the bytes that a rank keeps for a bucket from step to step, or to send."""
        numel = sum(map(prod, shapes))
        if self.kind == "bf16":
            return 2 * numel
        if self.kind == "topk":
            return numel * itemsize
        if self.kind == "powersgd":
            matrices = sum(prod(shape) for shape in shapes if self.columns(shape))
            return (matrices + self.right(shapes)) * itemsize
        return 0


WHOLE = Compression()
"""Gradients as they are."""


@dataclass(frozen=True, slots=True)
class Averaging:
    """Replicas make steps of their own, and average their parameters after every ``every`` steps.

    (McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
    2017; Stich, "Local SGD converges fast and communicates little", 2019.) With ``nesterov`` the
    average is a proposal to an outer optimizer with ``lr`` and ``momentum`` (Douillard et al.,
    "DiLoCo", 2023).
    """

    every: int
    nesterov: bool = False
    lr: float = 0.7
    momentum: float = 0.9


def compression_of(options: Mapping[str, str]) -> Compression:
    """Return the compression that the options ask for; PlanError if that is none."""
    kind = options.get("compression", "none")
    for name, owner in (("powersgd_rank", "powersgd"), ("topk_ratio", "topk")):
        if name in options and kind != owner:
            raise PlanError(
                f"{name}={options[name]} says something only with compression={owner!r}, and "
                f"compression is {kind!r}; ask for that, or leave {name} out."
            )
    return Compression(
        cast("Kind", kind),
        _whole(options, "powersgd_rank", 4),
        _number(options, "topk_ratio", 0.01, "more than 0 and at most 1", 0.0, 1.0),
    )


def averaging_of(options: Mapping[str, str]) -> Averaging | None:
    """Return how parameters are to be averaged, if they are; PlanError if that cannot be done."""
    outer = options.get("outer", "none")
    if "sync_every" not in options and outer != "none":
        raise PlanError(
            f"outer={outer!r} takes what replicas have come to by steps of their own, and there "
            "are none without sync_every; ask for sync_every=8, say, or leave outer out."
        )
    for name in ("outer_lr", "outer_momentum"):
        if name in options and outer == "none":
            raise PlanError(
                f"{name}={options[name]} is for an outer optimizer, and there is none; ask for "
                f'outer="nesterov", or leave {name} out.'
            )
    lr = _number(options, "outer_lr", 0.7, "more than 0 and at most 10", 0.0, 10.0)
    momentum = 0.9
    if options.get("outer_momentum") != "0":
        what = "0, or more than 0 and less than 1"
        momentum = _number(options, "outer_momentum", 0.9, what, 0.0, 0.999999)
    else:
        momentum = 0.0
    if "sync_every" not in options:
        return None
    if options.get("compression", "none") != "none":
        raise PlanError(
            f"sync_every={options['sync_every']} sends no gradients, which compression="
            f"{options['compression']!r} could make smaller; use one of the two."
        )
    return Averaging(_whole(options, "sync_every", 1), outer == "nesterov", lr, momentum)


def _whole(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise PlanError(f"{name}={value!r} must be a whole number, 1 or more.")
    return int(value)


def _number(
    options: Mapping[str, str], name: str, default: float, what: str, above: float, most: float
) -> float:
    value = options.get(name, str(default))
    try:
        number = float(value)
    except ValueError:
        number = above
    if not above < number <= most:
        raise PlanError(f"{name}={value!r} must be a number, {what}.")
    return number
