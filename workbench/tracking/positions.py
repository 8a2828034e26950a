"""Positions (of a sequence) that ranks have shares of between layers, and where those are whole.

A layer whose outputs are added up over ranks may leave each rank the sums of some positions only
(Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022,
section 4.2.2). What treats every position alike goes on with those: norms, dropout, sums with what
was there before, of which a rank takes the same positions. Other code needs all of them, which a
layer before it then has to gather. Which layers those are is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.layers.positions import IN_PLACE, meets
from workbench.traced import POSITIONS, Label, Layer, Meeting, Mix, Traced
from workbench.tracking.operation import set_tags, tags_of
from workbench.tracking.sizes import CallSizes, Frame
from workbench.tracking.tags import Tags

if TYPE_CHECKING:
    from workbench.layers.carrier import Declared


@dataclass(frozen=True)
class Need:
    """All positions are needed of an array; ``layer`` has made it, "" if other code has.

    ``last`` is the layer that has left ranks those that it has.
    """

    layer: str
    where: str
    operation: str
    last: str = ""


@dataclass
class Positions:
    """Which layers leave ranks shares of positions in one pass, and what that has shown.

    Attributes
    ----------
    cut:
        Layers whose outputs have their positions cut.
    gathered:
        Layers whose outputs are made whole again.
    needs:
        What needed all positions of an array that has them cut.
    met:
        Where such an array met one that is whole, by module: as in :class:`Meeting`.
    inside:
        The modules that the code of such a module calls.
    results:
        What layers returned, call by call.
    last, order:
        The layer that has left ranks some positions last, and all that have, in order.
    """

    cut: frozenset[str] = frozenset()
    gathered: frozenset[str] = frozenset()
    needs: list[Need] = field(default_factory=list)
    met: dict[str, set[tuple[int, int, int]]] = field(default_factory=dict)
    inside: dict[str, dict[str, None]] = field(default_factory=dict)
    results: dict[nn.Module, list[Any]] = field(default_factory=dict)
    last: str = ""
    order: dict[str, None] = field(default_factory=dict)

    def forget(self) -> None:
        """Forget what an earlier pass has shown."""
        for shown in (self.needs, self.met, self.inside, self.results, self.order):
            shown.clear()
        self.last = ""

    def made(self, name: str, x: Tensor) -> None:
        """Tag what a module has made, and remember by whom that is: the innermost one."""
        tags = tags_of(x)
        if not hasattr(x, "_workbench_made_by"):
            x._workbench_made_by = name  # type: ignore[attr-defined]
        if name in self.cut and (dim := position_dim(tags)) is not None:
            set_tags(x, (*tags[:dim], POSITIONS, *tags[dim + 1 :]))
            self.last = name
            self.order.setdefault(name)
        elif name in self.gathered:
            set_tags(x, tuple("" if tag == POSITIONS else tag for tag in tags))

    def view(self, x: Tensor, of: Tensor) -> None:
        """Remember by whom what ``x`` is a view of has been made."""
        if hasattr(of, "_workbench_made_by"):
            x._workbench_made_by = of._workbench_made_by  # type: ignore[attr-defined]

    def need(self, arrays: Iterable[Tensor], where: str, operation: str) -> None:
        """Note that all positions of ``arrays`` are needed."""
        for x in arrays:
            if POSITIONS in tags_of(x):
                need = Need(getattr(x, "_workbench_made_by", ""), where, operation, self.last)
                if need not in self.needs:
                    self.needs.append(need)

    def missed(self, mix: Mix) -> None:
        """Note what a pass with other numbers of positions has shown, if ``mix`` is of that."""
        if POSITIONS in mix.labels:
            # Most likely of an array that a layer has made which the same code calls.
            beside = [name for name in self.order if name.rpartition(".")[0] == mix.layer]
            likely = next(iter(beside or self.order), "")
            self.needs.append(Need("", mix.layer, mix.operation, likely))

    @property
    def meetings(self) -> tuple[Meeting, ...]:
        """Where ranks take their positions of an array that is whole."""
        return tuple(
            Meeting(module, tuple(self.inside.get(module, ())), tuple(sorted(places)))
            for module, places in self.met.items()
        )


def position_dim(tags: Tags) -> int | None:
    """Return the dim of a layer's output that counts positions: before the features, not samples.

    None if there is none: the output has one row per sample.
    """
    return next((dim for dim, tag in enumerate(tags[:-1]) if dim and tag == ""), None)


def goes_by_position(said: Declared, arguments: Sequence[Traced]) -> bool:
    """Return whether a layer treats every position of its input alike, and gives the same."""
    first: tuple[Label, ...] = arguments[0].labels if arguments else ()
    if POSITIONS not in [label for array in arguments for label in array.labels]:
        return True
    places = [dim for dim, label in enumerate(first) if label == POSITIONS]
    return (
        said.role in ("plain", "channelwise")
        and len(arguments) == 1
        and all(dim < len(said.labels) and said.labels[dim] == POSITIONS for dim in places)
        and not {dim for dim, _ in said.windows} & set(places)
        and not any(POSITIONS in each.labels for each in said.sums)
        and not any(POSITIONS in each.labels for each in said.refusals)
    )


def gathering(name: str, module: nn.Module, given: Traced, made: Traced) -> Layer:
    """Return a module that is no layer as one which makes what it returns whole."""
    return Layer(
        name=name,
        kind=type(module).__name__,
        input_shape=given.shape,
        output_shape=made.shape,
        itemsize=made.itemsize,
        arguments=(given,),
        results=(made,),
    )


class Met(TorchFunctionMode):
    """Has arrays that are whole meet those whose positions are cut, as on a rank."""

    def __init__(
        self, positions: Positions, call: Callable[[], tuple[str, CallSizes] | None]
    ) -> None:
        super().__init__()
        self.positions, self.call = positions, call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        here = self.call() if meets(func, args) else None
        if here is None:
            return func(*args, **kwargs)
        module, call = here
        number, call.met = call.met, call.met + 1
        for place in (0, 1):
            whole, cut = args[place], args[1 - place]
            if (back := _taken_of(whole, cut)) is None:
                continue
            if place == 0 and func in IN_PLACE:  # other positions would stay as they were
                self.positions.need([cut], module, func.__name__)
                continue
            self.positions.met.setdefault(module, set()).add((number, place, back))
            self.positions.inside.setdefault(module, {}).update(dict.fromkeys(call.inside))
            own = tags_of(whole)
            set_tags(whole, (*own[:-back], POSITIONS, *own[len(own) - back + 1 :]))
            try:
                return func(*args, **kwargs)
            finally:
                set_tags(whole, own)
        return func(*args, **kwargs)


def _taken_of(whole: Tensor, cut: Tensor) -> int | None:
    """Return the dim of ``whole``, from the last, of which a rank takes positions; None if none."""
    if POSITIONS in tags_of(whole):
        return None
    for back in range(1, min(whole.dim(), cut.dim()) + 1):
        alike = whole.shape[-back] == cut.shape[-back] and not tags_of(whole)[-back]
        if tags_of(cut)[-back] == POSITIONS and alike:
            return back
    return None


class MetAgain(TorchFunctionMode):
    """In a pass with other numbers of positions, has whole arrays keep up with what they meet."""

    def __init__(
        self,
        first: Positions,
        frame: Callable[[], tuple[str, Frame] | None],
        unwatched: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__()
        self.first, self.frame, self.unwatched = first, frame, unwatched

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        here = self.frame() if meets(func, args) else None
        if here is None:
            return func(*args, **kwargs)
        module, frame = here
        number, frame.met = frame.met, frame.met + 1
        given = list(args)
        for at, place, back in self.first.met.get(module, ()):
            if at == number:
                x, other = given[place], given[1 - place]
                with self.unwatched():
                    few = torch.arange(other.shape[-back]) % max(1, x.shape[-back])
                    given[place] = x.detach().index_select(x.dim() - back, few.to(x.device))
        return func(*given, **kwargs)
