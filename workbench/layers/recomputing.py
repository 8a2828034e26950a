"""What a forward pass that is done again must find as it was: random numbers, and buffers.

A stage of a pipeline that recomputes activations goes forward twice with a micro-batch. Dropout has
to draw the same again, and running statistics are to see each micro-batch once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from workbench.generators import Moment, again_from, moment

_Place = tuple[nn.Module, str]


class Repeats:
    """Lets parts of ``model`` be computed once more, with nothing that tells of it but activations.

    Parameters
    ----------
    device:
        Where the model draws its random numbers, beside the CPU.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.buffers: list[_Place] = [
            (module, name) for module in model.modules() for name in module._buffers
        ]
        # torch's own norms write to running statistics without a word; other code is watched.
        self.written: dict[_Place, None] = {
            place: None for place in self.buffers if "running_mean" in place[0]._buffers
        }

    @contextmanager
    def first(self) -> Iterator[Moment]:
        """Compute for the first time, without gradients; yields what :meth:`again` asks for."""
        before = [_seen(place) for place in self.buffers]
        with torch.no_grad():
            yield moment(self.device)
        for place, seen in zip(self.buffers, before, strict=True):
            if _seen(place) != seen:
                self.written[place] = None

    @contextmanager
    def again(self, then: Moment) -> Iterator[None]:
        """Compute once more what was computed from ``then`` on.

        Buffers that are written to are copies meanwhile, which backward may go on using.
        """
        held = [(module, name, module._buffers.get(name)) for module, name in self.written]
        copies: dict[int, Tensor] = {}
        for module, name, buffer in held:
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        try:
            with again_from(then, self.device):
                yield
        finally:
            for module, name, buffer in held:
                module._buffers[name] = buffer


def _seen(place: _Place) -> tuple[int, int]:
    """Return what changes when code writes to a buffer, or puts another in its place."""
    module, name = place
    buffer = module._buffers.get(name)
    return (id(buffer), -1 if buffer is None else buffer._version)
