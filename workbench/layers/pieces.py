"""One parameter of a layer that ranks have shares of: who holds it, and how it is cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.mesh import balanced


@dataclass(frozen=True)
class Piece:
    """A parameter by its name in the plan, with the modules and attributes that hold it.

    ``dtype`` is that which is computed in; what is updated may be in more precision.
    """

    name: str
    holders: tuple[tuple[nn.Module, str], ...]
    shape: tuple[int, ...]
    dim: int
    trainable: bool
    dtype: torch.dtype

    @property
    def share(self) -> nn.Parameter:
        """The rank's share."""
        module, attribute = self.holders[0]
        found = module._parameters[attribute]
        assert found is not None
        return found

    def share_shape(self, index: int, size: int) -> tuple[int, ...]:
        """Return the shape of the share of rank ``index``."""
        start, stop = balanced(self.shape[self.dim], size, index)
        return (*self.shape[: self.dim], stop - start, *self.shape[self.dim + 1 :])

    def part(self, whole: Tensor, index: int, size: int) -> Tensor:
        """Return what of a whole array like the parameter is the share of rank ``index``."""
        start, stop = balanced(self.shape[self.dim], size, index)
        return whole.narrow(self.dim, start, stop - start)
