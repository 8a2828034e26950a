"""Code on tensors as the list of operations that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Ref:
    """In the arguments of an operation: the array with this number."""

    number: int


@dataclass(frozen=True)
class Node:
    """One array: an input, a constant, or what an operation makes.

    Attributes
    ----------
    operation:
        ``"input"``, ``"constant"``, or torch's name, such as ``"aten.relu.default"``.
    args, kwargs:
        Those of the operation; arrays stand as :class:`Ref`.
    where:
        The module whose code asks for it; for a constant, the name of the parameter.
    shapes:
        Shapes of the arrays among the arguments.
    item:
        Which of several results the array is; None where the operation has one.
    """

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    where: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    item: int | None = None

    @cached_property
    def refs(self) -> tuple[int, ...]:
        """Numbers of the arrays among the arguments, in order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)), is_leaf=_is_ref)
        return tuple(leaf.number for leaf in leaves if isinstance(leaf, Ref))

    @property
    def kind(self) -> str:
        """The operation without its overload: ``"aten.add"``."""
        return ".".join(self.operation.split(".")[:2])

    @property
    def title(self) -> str:
        """What to call it in front of people: ``"add"``."""
        return self.operation.split(".")[1].strip("_") if "." in self.operation else self.operation

    def renumbered(self, new: Callable[[int], int]) -> Node:
        """Return the node with other numbers for its arrays."""
        args, kwargs = pytree.tree_map_only(
            Ref, lambda ref: Ref(new(ref.number)), (self.args, dict(self.kwargs)), is_leaf=_is_ref
        )
        return replace(self, args=tuple(args), kwargs=tuple(kwargs.items()))

    def __call__(self, parts: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        """Carry the operation out on ``parts`` in place of its arrays, with other args if given."""
        given = iter(parts)
        own, named = pytree.tree_map_only(
            Ref,
            lambda _: next(given),
            (args or self.args, {**dict(self.kwargs), **kwargs}),
            is_leaf=_is_ref,
        )
        made = operation(self.operation)(*own, **named)
        return made if self.item is None else made[self.item]


def _is_ref(x: Any) -> bool:
    return isinstance(x, Ref)


@lru_cache(maxsize=1024)
def operation(name: str) -> Any:
    """Return torch's operation of this name."""
    found: Any = torch.ops
    for piece in name.split("."):
        found = getattr(found, piece)
    return found


@dataclass(frozen=True, eq=False)
class Network:
    """Arrays in the order in which they are made.

    Attributes
    ----------
    inputs, output:
        Numbers of the arrays that are given, and of the one that is asked for.
    constants:
        The tensors of the constants, by number.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    output: int
    constants: dict[int, Tensor] = field(default_factory=dict)

    def __dask_tokenize__(self) -> Any:
        """Return what it computes, for the names of dask arrays."""
        from dask.base import normalize_token

        described = [
            (n.operation, n.shape, str(n.dtype), repr(n.args), repr(n.kwargs)) for n in self.nodes
        ]
        values = [normalize_token(as_numpy(t)) for t in self.constants.values()]
        return ("network", described, self.inputs, self.output, list(self.constants), values)


def as_numpy(x: Tensor) -> Any:
    """Return the numbers of a tensor; of a type that numpy does not have, its bits."""
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        x = x.view(torch.int16)
    return x.numpy()


def linked(network: Network) -> Network:
    """Return the network without what its output does not depend on."""
    nodes, used, todo = network.nodes, set(network.inputs), [network.output]
    while todo:
        number = todo.pop()
        if number not in used or number == network.output:
            used.add(number)
            todo += [ref for ref in nodes[number].refs if ref not in used]
    order = sorted(used)
    place = {number: at for at, number in enumerate(order)}
    return Network(
        tuple(nodes[number].renumbered(place.__getitem__) for number in order),
        tuple(place[number] for number in network.inputs),
        place[network.output],
        {place[number]: x for number, x in network.constants.items() if number in place},
    )
