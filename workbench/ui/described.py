"""What the panel tells of a workload, and what suits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.catalogue import CATALOGUE

if TYPE_CHECKING:
    from workbench.workload import Workload


@dataclass(frozen=True)
class Described:
    """A workload as the panel tells of it: what it is, and what suits it."""

    name: str
    about: str
    samples: int
    shape: str
    batch: int
    steps: int
    seed: int


def described(name: str, work: Workload) -> Described:
    """Return what there is to tell of a workload; ``name`` is that of the catalogue, if any."""
    about = CATALOGUE[name].description if name in CATALOGUE else ""
    shape = " + ".join(" × ".join(map(str, one)) or "1" for one in work.sample_shapes)
    return Described(name, about, work.samples, shape, work.batch_size, work.steps, work.seed)
