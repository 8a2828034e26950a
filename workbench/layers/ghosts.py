"""A model's forward pass from the middle: what comes before stands in as ghosts.

A stage of a pipeline runs the model's own code. Modules of earlier stages are not computed; their
results are ghosts, which have a shape and no numbers. Where the stage begins, ghosts that it meets
become real: they are received from the stage that has them. Where the next stage begins, the pass
ends. So a model of any code can be cut between any two calls of modules, with all that goes around
the cut carried along. What code has made of ghosts between two modules is made once more, of what
is received, where it needs numbers; unless it was drawn at random, or written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils import _pytree as pytree

from workbench.errors import PlanError
from workbench.layers.trace import Spec
from workbench.plan.stages import Source

if TYPE_CHECKING:
    from workbench.layers.stages import Stages


class Uncarried(PlanError):
    """A value that ``stage`` needs is at hand in no stage that could send it, nor made of such."""

    stage = 1


META = torch.device("meta")
"""Where ghosts are, whichever device code asks for: they have no numbers to move."""


@dataclass
class Made:
    """How code has made ghosts of others, to be done once more where they need numbers.

    ``given`` are the tensors that it was given, with the version that each had.
    """

    func: Any
    arguments: Any
    given: list[tuple[Tensor, int]]
    values: list[Tensor] | None = None


def modes() -> tuple[bool, ...]:
    """Return what functions of torch go by beside their arguments."""
    autocast = map(torch.is_autocast_enabled, ("cpu", "cuda"))
    return torch.is_grad_enabled(), *autocast


class Ghost(Tensor):
    """A tensor without numbers: what it is the result of, and which pass it belongs to.

    Attributes
    ----------
    source, spec:
        What a stage can be sent in its place, if it is the argument or the result of a module.
    made, place:
        How code between modules has made it, and which of the results it was.
    found:
        The real tensor, once the stage has needed it, and its version then.
    """

    source: Source | None
    spec: Spec | None
    made: Made | None
    place: int
    found: tuple[Tensor, int] | None
    drawn: bool
    memory: UntypedStorage
    stages: Stages

    @classmethod
    def of(cls, shape: Tensor, stages: Stages, source: Source | None = None) -> Ghost:
        """Return a ghost of the shape of a tensor on the meta device."""
        ghost = torch.Tensor._make_subclass(cls, shape.detach())
        ghost.source, ghost.stages, ghost.spec = source, stages, None
        ghost.made, ghost.place, ghost.found, ghost.drawn = None, 0, None, False
        ghost.memory = shape.untyped_storage()
        return ghost

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        stages = next(leaf.stages for leaf in leaves if isinstance(leaf, Ghost))
        if stages.real and func not in _ABOUT_SHAPES:
            args, kwargs = stages.materialized((args, kwargs))
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:  # a new object at every look: `is` would never hold
            return stages.device
        if func in (Tensor.cpu, Tensor.cuda):
            return args[0]
        # An autograd.Function, which has a gradient of its own, computes without gradients too.
        remakes = modes() == stages.modes
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            plain = {id(x): _on_meta(x) for x in given}
            before = [(x, x._version, plain[id(x)]._version) for x in given]
            drawn = stages.drawn
            result = _on_metas(func, args, kwargs, plain)
            for x, _, version in before:
                if plain[id(x)]._version != version:
                    stages.note_write(x)
            made = None
            if remakes and stages.drawn == drawn:
                versions = [(x, version) for x, version, _ in before]
                # Lists are copied, since code may go on changing them.
                arguments = pytree.tree_map(lambda x: x, (args, kwargs))
                made = Made(func, arguments, versions)
            same = {id(plain[id(x)]): x for x in given if isinstance(x, Ghost)}
            places = iter(range(10**9))

            def ghost(x: Tensor) -> Tensor:
                place = next(places)
                if id(x) in same:  # written to in place
                    return same[id(x)]
                found = Ghost.of(x, stages)
                found.made, found.place, found.drawn = made, place, stages.drawn != drawn
                return found

            return pytree.tree_map_only(Tensor, ghost, result)


def _on_metas(func: Any, args: Any, kwargs: Any, plain: Mapping[int, Tensor]) -> Any:
    """Return what a function gives for the shapes of what it is given."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: plain[id(x)], (args, kwargs))
    args, kwargs = pytree.tree_map_only(torch.device, lambda _: META, (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": META}
    if func == Tensor.to and len(args) > 1 and isinstance(args[1], str | int):
        args = (args[0], META, *args[2:])
    return func(*args, **kwargs)


_ABOUT_SHAPES = {
    getattr(Tensor, name).__get__
    if name in ("shape", "ndim", "dtype", "device")
    else getattr(Tensor, name)
    for name in ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "__len__")
}


def _on_meta(x: Tensor) -> Tensor:
    plain = x.as_subclass(Tensor) if isinstance(x, Ghost) else x
    return plain if plain.is_meta else torch.empty_like(plain, device="meta")
