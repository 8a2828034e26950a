"""Dropout whose mask does not depend on how the batch is cut."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from workbench.layers.share import Share

_BY_ENTRY = (nn.Dropout, nn.AlphaDropout)
_BY_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_FORWARDS = {kind.forward for kind in (*_BY_ENTRY, *_BY_CHANNEL)}
_SELU_AT_MINUS_INFINITY = -1.7580993408473766
_NUMBERS_PER_BLOCK = 8  # Philox makes eight 32-bit numbers for each value of its counter.


def is_torchs(module: nn.Module) -> bool:
    """Return whether ``module`` is a dropout layer that computes what torch's own does."""
    return isinstance(module, (*_BY_ENTRY, *_BY_CHANNEL)) and type(module).forward in _FORWARDS


class ShareDropout(nn.Module):
    """Dropout (Srivastava et al., 2014) with the mask that the serial run draws for these samples.

    The random numbers of a sample depend on (seed, step, layer, micro-batch, place in the batch),
    drawn by a counter-based generator (Salmon et al., 2011) that each rank starts at its own place:
    nothing is drawn twice and nothing is sent. Not the numbers of torch's own generator, which
    cannot skip ahead.

    Alpha dropout (Klambauer et al., 2017) sets entries to what SELU gives for minus infinity, and
    keeps mean and variance by an affine map.
    """

    def __init__(self, dropout: nn.Module, number: int, share: Share) -> None:
        super().__init__()
        self.p = float(dropout.p)  # type: ignore[arg-type]
        self.inplace = bool(dropout.inplace)
        self.channelwise = isinstance(dropout, _BY_CHANNEL)
        self.alpha = isinstance(dropout, _ALPHA)
        self.number = number
        self.share = share
        self.calls: dict[int, int] = {}
        self.drawn_in = (-1, -1)

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``, samples in dim 0, with entries or channels dropped, the rest scaled.

        Dim 0 may also count equally many items per sample, as after ``flatten(0, 1)``. An input
        whose dim 0 cannot be that, such as a parameter's, is masked the same on all ranks.
        """
        if not self.training or self.p == 0.0:
            return input
        shape = input.shape[:2] + (1,) * (input.dim() - 2) if self.channelwise else input.shape
        kept = self._kept(shape).to(device=input.device, dtype=input.dtype)
        p = self.p
        if not self.alpha:
            kept.mul_(1.0 / (1.0 - p) if p < 1 else 0.0)
            return input.mul_(kept) if self.inplace else input * kept
        low = _SELU_AT_MINUS_INFINITY
        scale = ((1.0 - p) * (1.0 + p * low**2)) ** -0.5 if p < 1 else 0.0
        offset = (1.0 - kept).mul_(low).sub_(p * low).mul_(scale)
        kept.mul_(scale)
        return input.mul_(kept).add_(offset) if self.inplace else input * kept + offset

    def _kept(self, shape: torch.Size) -> Tensor:
        """Return False with probability p, else True."""
        share = self.share
        rows, width = (shape[0] if shape else 1), math.prod(shape[1:])
        per_sample, rest = divmod(rows, max(1, share.rows))
        start = 0 if rest else share.start * per_sample
        blocks = -(-width // _NUMBERS_PER_BLOCK)
        stream = (share.micro << 32) | (self.number << 16) | self._call()
        philox = np.random.Philox(
            key=np.array([share.seed, share.step], dtype=np.uint64),
            counter=np.array([0, 0, stream, 1], dtype=np.uint64),
        )
        philox.advance(start * blocks)
        raw = philox.random_raw(rows * blocks * (_NUMBERS_PER_BLOCK // 2))
        numbers = raw.view(np.uint32).reshape(rows, blocks * _NUMBERS_PER_BLOCK)[:, :width]
        return torch.from_numpy(numbers >= np.uint32(self.p * (2**32 - 1))).reshape(shape)

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

    def extra_repr(self) -> str:
        """Return what the printed module says."""
        return f"p={self.p}, the mask of the whole batch"
