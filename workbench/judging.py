"""Counts on a rank, now and then, how many targets of the training batch in hand were right.

What the model has put out for the loss is looked at again, after the step and outside of its time:
there is no forward pass and no message between ranks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from workbench.losses import class_dim, ignored_label
from workbench.scoring import classes_in

POINTS = 20
"""About so many steps of a run are looked at, the first and the last among them."""

FEWEST_BETWEEN = 10
"""Steps from one that is looked at to the next: of short steps, looking is a few per cent."""


class Judge:
    """Judges the batches of some steps of a run from ``first_step`` on.

    Parameters
    ----------
    loss:
        Says where the classes are, and which label does not count.
    shares:
        Whether ranks have only some of the classes each: then :meth:`note` is told by the loss,
        which knows the largest of all.
    """

    def __init__(
        self, loss: Callable[..., Tensor], first_step: int, steps: int, *, shares: bool
    ) -> None:
        self._dim, self._ignored = class_dim(loss), ignored_label(loss)
        self._first, self._last = first_step, first_step + steps - 1
        self._every = max(FEWEST_BETWEEN, -(-steps // POINTS))
        self._shares, self._looking, self._samples = shares, False, 0
        self._held: tuple[Tensor, Tensor] | None = None
        self._counts: list[Tensor] = []
        self._known: list[tuple[int, Tensor | None]] = []

    def begin(self, step: int) -> None:
        """Begin a step."""
        self._looking = (step - self._first) % self._every == 0 or step == self._last

    def take(self, output: object, targets: Tensor, samples: int) -> None:
        """Take what the loss of a micro-batch is given; with 0 ``samples`` it is a stand-in."""
        if not self._looking:
            return
        self._samples = samples
        if samples and not self._shares and isinstance(output, Tensor):
            self._count_held()  # at most one micro-batch's output is kept for longer than its loss
            self._held = output.detach(), targets

    def note(self, below: Tensor, total: Tensor, count: int, targets: Tensor) -> None:
        """Take what :func:`workbench.layers.cross_entropy.shared_loss` tells of a micro-batch."""
        if self._looking and self._samples:
            self._add(below, total == count, targets)

    def end(self, step: int) -> float:
        """End a step, after its time was taken; return the seconds that this has taken."""
        if not self._looking:
            return 0.0
        began_s = perf_counter()
        self._count_held()
        counts = torch.stack(self._counts).sum(0) if self._counts else None
        self._known.append((step, counts))
        self._counts, self._looking = [], False
        return perf_counter() - began_s

    def counts(self) -> dict[int, tuple[int, int]]:
        """Return by step how many targets were right, and of how many, since the last call.

        A rank that has no outputs has counted none of none. On a GPU, numbers are waited for here.
        """
        known, self._known = self._known, []
        found = {}
        for step, counted in known:
            right, of = (0, 0) if counted is None else map(int, counted.tolist())
            found[step] = (right, of)
        return found

    def _count_held(self) -> None:
        if self._held is None:
            return
        (output, targets), self._held = self._held, None
        dim = classes_in(output, targets, self._dim)
        if dim is not None:
            # Of many pixels, the largest is found in a tenth of the time that its place is.
            place = targets.clamp(min=0).long().unsqueeze(dim)
            largest = output.amax(dim)
            below = output.gather(dim, place).squeeze(dim) - largest
            self._add(below, output.amin(dim) == largest, targets)

    def _add(self, below: Tensor, alike: Tensor, targets: Tensor) -> None:
        # Where all classes are alike, as with weights of zero, it is the first that is named.
        right = (below == 0) & (targets >= 0) & (~alike | (targets == 0))
        counted = torch.ones_like(right) if self._ignored is None else targets != self._ignored
        self._counts.append(torch.stack([(right & counted).sum(), counted.sum()]))
