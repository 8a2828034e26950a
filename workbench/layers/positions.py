"""Arrays of which a rank has some positions, where they meet arrays that are whole.

Where code adds up two arrays, such as what a block was given and what it has made, and a rank has
some positions of one and all of the other, it takes the same positions of that. Nothing is sent:
the gradient of the whole array is what ranks have of it, added up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.layers.carrier import Forward, Seat
from workbench.layers.gather import Whole
from workbench.layers.sizes import Counting, inside
from workbench.mesh import cuts_features
from workbench.nested import over_tensors
from workbench.plan import Plan
from workbench.traced import POSITIONS, Meeting

_NAMES = ("add", "sub", "mul", "div")
_WORDS = ("add", "sub", "mul", "truediv")
IN_PLACE = frozenset(
    getattr(Tensor, name)
    for name in (*(f"{name}_" for name in _NAMES), *(f"__i{word}__" for word in _WORDS))
)
_MEET = IN_PLACE | {
    *(getattr(Tensor, name) for name in _NAMES),
    *(getattr(torch, name) for name in _NAMES),
    *(getattr(Tensor, f"__{side}{word}__") for word in _WORDS for side in ("", "r")),
}


def meets(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether two arrays meet, entry by entry, in a call of ``func``."""
    return func in _MEET and len(args) > 1 and all(isinstance(x, Tensor) for x in args[:2])


class _Meeting(Counting):
    """Takes a rank's positions of whole arrays, at the places that the plan names."""

    def __init__(self, what: Meeting, plan: Plan, rank: int) -> None:
        super().__init__(what.inside)
        self.places: dict[int, list[tuple[int, int]]] = {}
        for number, place, back in what.places:
            self.places.setdefault(number, []).append((place, back))
        self.plan, self.rank = plan, rank

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.away or not meets(func, args):
            return func(*args, **kwargs)
        number, self.functions = self.functions, self.functions + 1
        given = list(args)
        for place, back in self.places.get(number, ()):
            given[place] = self._own(given[place], given[1 - place].shape[-back], back)
        return func(*given, **kwargs)

    def _own(self, x: Tensor, share: int, back: int) -> Tensor:
        """Return the rank's positions of ``x``, unless it has no more than the other array."""
        start, stop = self.plan.share_of_label(POSITIONS, x.shape[-back], self.rank)
        if share == x.shape[-back] or share != stop - start:
            return x
        return x.narrow(x.dim() - back, start, share)


def meet(model: nn.Module, plan: Plan, rank: int) -> list[_Meeting]:
    """Have modules of ``model`` take the rank's positions; returns what does so, to look away."""
    modes = []
    for what in plan.meetings:
        mode = _Meeting(what, plan, rank)
        module = model.get_submodule(what.module)
        module.forward = inside(module.forward, mode)
        modes.append(mode)
    return modes


def gathered(forward: Forward, seat: Seat) -> Forward:
    """Return the ``forward`` of a module whose output has some positions, and is made whole.

    That is the first array that it returns.
    """
    plan, wholes = seat.plan, {}
    for planned in seat.calls:
        if planned.choice == "gather output":
            shape = planned.layer.results[0].shape
            cuts = [cut for cut in planned.input if cuts_features(cut.axis)]
            own = tuple(stop - start for start, stop in plan.share(shape, cuts, seat.rank))
            names = (f"{seat.name}: whole output", f"{seat.name}: gradient of the whole output")
            wholes[own[1:]] = Whole(shape, cuts, plan, seat.groups, *names)

    def run(*given: Any, **named: Any) -> Any:
        first = iter((True,))

        def whole(x: Tensor) -> Tensor:
            gather = wholes.get(tuple(x.shape[1:])) if next(first, False) else None
            return x if gather is None else gather(x)

        return over_tensors(forward(*given, **named), whole)

    return run
