"""All carriers: which layers can be carried out on arrays that are cut."""

from __future__ import annotations

from torch import nn

from workbench.layers import (
    adaptive,
    attention,
    batch_norm,
    convolution,
    dropout,
    embedding,
    linear,
    moments,
    padding,
    pooling,
    resample,
    shuffle,
    softmax,
    turned,
)
from workbench.layers.carrier import Carrier

CARRIERS: tuple[Carrier, ...] = (
    *convolution.CARRIERS,
    *pooling.CARRIERS,
    *adaptive.CARRIERS,
    *resample.CARRIERS,
    *padding.CARRIERS,
    *shuffle.CARRIERS,
    *batch_norm.CARRIERS,
    *moments.CARRIERS,
    *dropout.CARRIERS,
    *softmax.CARRIERS,
    *linear.CARRIERS,
    *turned.CARRIERS,
    *embedding.CARRIERS,
    *attention.CARRIERS,
)


def carrier_of(module: nn.Module) -> Carrier | None:
    """Return the carrier of ``module``; None for a layer that nobody knows.

    A class of the user's own with another ``forward`` has none, whatever it is derived from, since
    nobody else knows what it computes.
    """
    for carrier in CARRIERS:
        if carrier.serves(module):
            return carrier
    return None
