"""Dropout whose mask does not depend on how the batch is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from workbench.layers.carrier import Carrier, Declared, Seat, passed
from workbench.layers.gather import split, split_flat
from workbench.traced import Traced

_BY_ENTRY = (nn.Dropout, nn.AlphaDropout)
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_SELU_AT_MINUS_INFINITY = -1.7580993408473766
_NUMBERS_PER_BLOCK = 8  # Philox makes eight 32-bit numbers for each value of its counter.


class ShareDropout:
    """Dropout (Srivastava et al., 2014) with the mask that the serial run draws for these samples.

    The random numbers of a sample depend on (seed, step, layer, micro-batch, place in the batch),
    drawn by a counter-based generator (Salmon et al., 2011) that each rank starts at its own place:
    nothing is drawn twice and nothing is sent. Not the numbers of torch's own generator, which
    cannot skip ahead.

    Alpha dropout (Klambauer et al., 2017) sets entries to what SELU gives for minus infinity, and
    keeps mean and variance by an affine map.
    """

    def __init__(self, dropout: nn.Module, seat: Seat) -> None:
        self.dropout, self.seat, self.share = dropout, seat, seat.share
        self.channelwise = isinstance(dropout, _BY_CHANNEL)
        self.alpha = isinstance(dropout, _ALPHA)
        self.cut = bool(seat.cut_axes)
        self.calls: dict[int, int] = {}
        self.drawn_in = (-1, -1)

    def __call__(self, input: Tensor) -> Tensor:
        """Return ``input``, samples in dim 0, with entries or channels dropped, the rest scaled.

        Dim 0 may also count equally many items per sample, as after ``flatten(0, 1)``. An input
        whose dim 0 cannot be that, such as a parameter's, is masked the same on all ranks. Of a
        sample that is cut the rank draws the whole mask and takes its part.
        """
        p, in_place = float(self.dropout.p), bool(self.dropout.inplace)  # type: ignore[arg-type]
        if not self.dropout.training or p == 0.0:
            return input
        kept = self._mask(input, p).to(device=input.device, dtype=input.dtype)
        if not self.alpha:
            kept.mul_(1.0 / (1.0 - p) if p < 1 else 0.0)
            return input.mul_(kept) if in_place else input * kept
        low = _SELU_AT_MINUS_INFINITY
        scale = ((1.0 - p) * (1.0 + p * low**2)) ** -0.5 if p < 1 else 0.0
        offset = (1.0 - kept).mul_(low).sub_(p * low).mul_(scale)
        kept.mul_(scale)
        return input.mul_(kept).add_(offset) if in_place else input * kept + offset

    def _mask(self, x: Tensor, p: float) -> Tensor:
        """Return False with probability ``p``, else True, for each entry or channel of ``x``."""
        if not self.cut:
            return self.kept(self._masked(x.shape), p)
        planned = self.seat.call(x)
        whole = planned.layer.input_shape
        kept = self.kept(self._masked((x.shape[0], *whole[1:])), p)
        cuts = [cut for cut in planned.input if cut.dim > 0 and kept.shape[cut.dim] > 1]
        flats = {cut.dim: cut.flat for cut in cuts if cut.flat is not None}
        for dim, flat in flats.items():
            kept = split_flat(kept, dim, flat, self.seat.plan, self.seat.rank)
        ranges = self.seat.ranges(whole, planned.input)
        dims = sorted({cut.dim for cut in cuts if cut.flat is None})
        return split(kept, [ranges[dim] for dim in dims], dims)

    def _masked(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the mask of an array of ``shape``."""
        ones = (1,) * (len(shape) - 2) if self.channelwise else tuple(shape[2:])
        return torch.Size((*shape[:2], *ones))

    def kept(self, shape: torch.Size, p: float) -> Tensor:
        """Return the mask of this rank's samples, whole."""
        share = self.share
        rows, width = (shape[0] if shape else 1), math.prod(shape[1:])
        per_sample, rest = divmod(rows, max(1, share.rows))
        start = 0 if rest else share.start * per_sample
        blocks = -(-width // _NUMBERS_PER_BLOCK)
        stream = (share.micro << 32) | (self.seat.number << 16) | self._call()
        philox = np.random.Philox(
            key=np.array([share.seed, share.step], dtype=np.uint64),
            counter=np.array([0, 0, stream, 1], dtype=np.uint64),
        )
        philox.advance(start * blocks)
        raw = philox.random_raw(rows * blocks * (_NUMBERS_PER_BLOCK // 2))
        numbers = raw.view(np.uint32).reshape(rows, blocks * _NUMBERS_PER_BLOCK)[:, :width]
        return torch.from_numpy(numbers >= np.uint32(p * (2**32 - 1))).reshape(shape)

    def _call(self) -> int:
        """Return which call of the layer in this micro-batch this is.

        A forward pass that is done again in the backward pass (``torch.utils.checkpoint``) needs
        the masks of the first time. Torch restores the state of its generator for that, so a number
        drawn from it tells a repeated call from a new one.
        """
        if self.drawn_in != (self.share.step, self.share.micro):
            self.drawn_in = (self.share.step, self.share.micro)
            self.calls.clear()
        stamp = int(torch.empty((), dtype=torch.int64).random_())
        return self.calls.setdefault(stamp, len(self.calls))


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    return Declared(passed(arguments[0], output_shape))


CARRIERS = (Carrier((*_BY_ENTRY, *_BY_CHANNEL), _declare, ShareDropout),)
