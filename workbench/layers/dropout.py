"""Dropout whose mask does not depend on how the batch is cut."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from workbench.layers.share import Share

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_NUMBERS_PER_BLOCK = 8  # Philox makes eight 32-bit numbers for each value of its counter.


class ShareDropout(nn.Module):
    """Dropout (Srivastava et al., 2014) with the mask that the serial run draws for these samples.

    The random numbers of a sample depend on (seed, step, layer, micro-batch, place in the batch),
    drawn by a counter-based generator (Salmon et al., 2011) that each rank starts at its own place:
    nothing is drawn twice and nothing is sent. Not the numbers of torch's own generator, which
    cannot skip ahead.
    """

    def __init__(self, dropout: nn.Module, number: int, share: Share) -> None:
        super().__init__()
        self.p = float(dropout.p)  # type: ignore[arg-type]
        self.inplace = bool(dropout.inplace)
        self.channelwise = not isinstance(dropout, nn.Dropout)
        self.number = number
        self.share = share
        self.calls = 0
        self.drawn_in = (-1, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, samples in dim 0, with entries or channels zeroed and the rest scaled."""
        if not self.training or self.p == 0.0:
            return x
        kept_shape = x.shape[:2] + (1,) * (x.dim() - 2) if self.channelwise else x.shape
        scale = 1.0 / (1.0 - self.p) if self.p < 1 else 0.0
        mask = self._kept(kept_shape).to(device=x.device, dtype=x.dtype).mul_(scale)
        return x.mul_(mask) if self.inplace else x * mask

    def _kept(self, shape: torch.Size) -> Tensor:
        """Return False with probability p, else True."""
        share = self.share
        if self.drawn_in != (share.step, share.micro):
            self.drawn_in, self.calls = (share.step, share.micro), 0
        rows, width = shape[0], math.prod(shape[1:])
        blocks = -(-width // _NUMBERS_PER_BLOCK)
        stream = (share.micro << 32) | (self.number << 16) | self.calls
        self.calls += 1
        philox = np.random.Philox(
            key=np.array([share.seed, share.step], dtype=np.uint64),
            counter=np.array([0, 0, stream, 1], dtype=np.uint64),
        )
        philox.advance(share.start * blocks)
        raw = philox.random_raw(rows * blocks * (_NUMBERS_PER_BLOCK // 2))
        numbers = raw.view(np.uint32).reshape(rows, blocks * _NUMBERS_PER_BLOCK)[:, :width]
        return torch.from_numpy(numbers >= np.uint32(self.p * (2**32 - 1))).reshape(shape)

    def extra_repr(self) -> str:
        """Return what the printed module says."""
        return f"p={self.p}, the mask of the whole batch"
