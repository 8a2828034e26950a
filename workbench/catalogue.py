"""The workloads that come along, on real data, each for another strategy to win."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class CatalogueEntry:
    """A workload by name: ``title`` and ``description`` are for people.

    ``arguments()`` gives those of its :class:`workbench.workload.Workload`; no data is read.
    """

    name: str
    title: str
    description: str
    arguments: Callable[[], dict[str, Any]]


def _digits_cnn() -> dict[str, Any]:
    from torch.optim import SGD

    from workbench.datasets import digits
    from workbench.models import DigitsCNN

    data = digits()
    return dict(
        model=DigitsCNN,
        data=(data.x, data.y),
        test_data=(data.test_x, data.test_y),
        optimizer=partial(SGD, lr=0.02, momentum=0.9),
        batch_size=128,
        steps=50,
    )


def _digits_mlp() -> dict[str, Any]:
    from torch.optim import SGD

    from workbench.datasets import digits
    from workbench.models import DigitsMLP

    data = digits()
    return dict(
        model=DigitsMLP,
        data=(data.x, data.y),
        test_data=(data.test_x, data.test_y),
        optimizer=partial(SGD, lr=0.05, momentum=0.9),
        batch_size=64,
        steps=100,
    )


def _photo_denoise() -> dict[str, Any]:
    from torch.nn import MSELoss
    from torch.optim import Adam

    from workbench.datasets import photos
    from workbench.models import DenoiseCNN

    data = photos()
    return dict(
        model=DenoiseCNN,
        data=(data.x, data.y),
        test_data=(data.test_x, data.test_y),
        loss=MSELoss(),
        optimizer=partial(Adam, lr=3e-3),
        batch_size=1,
        steps=20,
    )


def _stdlib_gpt() -> dict[str, Any]:
    from torch.optim import AdamW

    from workbench.datasets import text
    from workbench.losses import NextByteLoss
    from workbench.models import ByteGPT

    data = text()
    return dict(
        model=ByteGPT,
        data=(data.x, data.y),
        test_data=(data.test_x, data.test_y),
        loss=NextByteLoss(),
        optimizer=partial(AdamW, lr=4e-3),
        batch_size=16,
        steps=60,
    )


CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            CatalogueEntry(
                "digits-cnn",
                "Handwritten digits, convolutions",
                "Few parameters and many samples per step: splitting the samples (data) pays.",
                _digits_cnn,
            ),
            CatalogueEntry(
                "digits-mlp",
                "Handwritten digits, wide layers",
                "5 million parameters and a small batch: splitting the weights (tensor) pays.",
                _digits_mlp,
            ),
            CatalogueEntry(
                "photo-denoise",
                "Noise out of a photograph",
                "One large image per step: only splitting the image itself (spatial) can pay.",
                _photo_denoise,
            ),
            CatalogueEntry(
                "stdlib-gpt",
                "Python source, byte by byte",
                "A small transformer that learns to write Python's standard library.",
                _stdlib_gpt,
            ),
        )
    }
)
