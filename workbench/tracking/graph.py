"""The autograd graph of a watched pass: which results gradients flow back into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from workbench.nested import tensors_in


def reached(nodes: Sequence[Any]) -> set[Any]:
    """Return all nodes of the autograd graph that backward passes through."""
    todo = [node for node in nodes if node is not None]
    found = set(todo)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in found:
                found.add(node)
                todo.append(node)
    return found


def nodes_of(x: Tensor, given: Sequence[Any]) -> list[Any]:
    """Return the nodes that made ``x``: of a view what it views too, which stays if it changes."""
    found = [x.grad_fn]
    inputs = [y for z in tensors_in(given) for y in (z, z._base)]
    if x._base is not None and not any(x._base is y for y in inputs):
        found.append(x._base.grad_fn)
    return [node for node in found if node is not None]
