"""Operations spelled out in simpler ones, which have a rule for boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from workbench.arrays.network import Node, Ref

# Of the arrays that a spelling makes itself, -1 is the first, -2 the second.

Spelling = Callable[[Node], list[Node]]


def spell(node: Node) -> list[Node]:
    """Return what ``node`` comes to; the last one is its result."""
    found = _SPELLINGS.get(node.kind)
    if found is None or (node.item and "norm" in node.kind):  # statistics that nobody asks for
        return [node]
    return found(node)


def _node(like: Node, operation: str, shape: tuple[int, ...], *args: Any, **changes: Any) -> Node:
    """Return an operation on arrays; ``shapes`` must be given where a rule needs them."""
    return replace(
        like, operation=operation, shape=shape, args=args, kwargs=(), item=None, **changes
    )


def _split(node: Node) -> list[Node]:
    x, sizes = node.args[0], node.args[1]
    dim = _named(node, 2, "dim", 0) % len(node.shape)
    assert node.item is not None
    start = sizes * node.item if isinstance(sizes, int) else sum(sizes[: node.item])
    stop = start + node.shape[dim]
    return [_node(node, "aten.slice.Tensor", node.shape, x, dim, start, stop)]


def _unbind(node: Node) -> list[Node]:
    dim = _named(node, 1, "dim", 0) % len(node.shapes[0])
    return [_node(node, "aten.select.int", node.shape, node.args[0], dim, node.item)]


def _glu(node: Node) -> list[Node]:
    x, shape = node.args[0], node.shapes[0]
    dim = _named(node, 1, "dim", -1) % len(shape)
    half = shape[dim] // 2
    return [
        _node(node, "aten.slice.Tensor", node.shape, x, dim, 0, half),
        _node(node, "aten.slice.Tensor", node.shape, x, dim, half, 2 * half),
        _node(node, "aten.sigmoid.default", node.shape, Ref(-2), shapes=(node.shape,)),
        _node(node, "aten.mul.Tensor", node.shape, Ref(-1), Ref(-3), shapes=(node.shape,) * 2),
    ]


def _pixel_shuffle(node: Node) -> list[Node]:
    x, r = node.args[:2]
    *lead, c, h, w = node.shapes[0]
    first = len(lead)
    apart = (*lead, c // (r * r), r, r, h, w)
    order = [*range(first), first, first + 3, first + 1, first + 4, first + 2]
    return _moved(node, x, apart, order)


def _pixel_unshuffle(node: Node) -> list[Node]:
    x, r = node.args[:2]
    *lead, c, h, w = node.shapes[0]
    first = len(lead)
    apart = (*lead, c, h // r, r, w // r, r)
    order = [*range(first), first, first + 2, first + 4, first + 1, first + 3]
    return _moved(node, x, apart, order)


def _channel_shuffle(node: Node) -> list[Node]:
    x, groups = node.args[:2]
    n, c, *rest = node.shapes[0]
    apart = (n, groups, c // groups, *rest)
    return _moved(node, x, apart, [0, 2, 1, *range(3, len(apart))])


def _moved(node: Node, x: Ref, apart: tuple[int, ...], order: list[int]) -> list[Node]:
    turned = tuple(apart[dim] for dim in order)
    return [
        _node(node, "aten.view.default", apart, x, list(apart)),
        _node(node, "aten.permute.default", turned, Ref(-1), order, shapes=(apart,)),
        _node(node, "aten.view.default", node.shape, Ref(-2), list(node.shape), shapes=(turned,)),
    ]


def _group_norm(node: Node) -> list[Node]:
    x, weight, bias, _, _, _, groups, eps = node.args
    n, c, *rest = node.shape
    apart = (n, groups, c // groups, *rest)
    found = [
        _node(node, "aten.view.default", apart, x, list(apart), shapes=(node.shape,)),
        *_normalized(node, Ref(-1), apart, tuple(range(2, len(apart))), eps, 2),
        _node(node, "aten.view.default", node.shape, Ref(-3), list(node.shape), shapes=(apart,)),
    ]
    return found + _affine(node, Ref(-4), weight, bias, len(found))


def _normalized(
    node: Node, x: Ref, shape: tuple[int, ...], dims: tuple[int, ...], eps: float, number: int
) -> list[Node]:
    """Return moments of ``x`` along ``dims`` as array ``-number``, and ``x`` normalized by them."""
    kept = (2, *(1 if dim in dims else size for dim, size in enumerate(shape)))
    normalized = _node(
        node, "workbench.normalized", shape, x, Ref(-number), eps, shapes=(shape, kept)
    )
    return [_node(node, "workbench.moments", kept, x, dims, shapes=(shape,)), normalized]


def _affine(node: Node, x: Ref, weight: Any, bias: Any, made: int) -> list[Node]:
    """Return ``x`` times a weight plus a bias of each channel; ``made`` nodes come before."""
    column = (node.shape[1], *(1,) * (len(node.shape) - 2))
    found: list[Node] = []
    for given, operation in ((weight, "aten.mul.Tensor"), (bias, "aten.add.Tensor")):
        if given is None:
            continue
        found.append(
            _node(node, "aten.view.default", column, given, list(column), shapes=(column[:1],))
        )
        at = Ref(-(made + len(found)))
        found.append(_node(node, operation, node.shape, x, at, shapes=(node.shape, column)))
        x = Ref(-(made + len(found)))
    return found


def _batch_norm(node: Node) -> list[Node]:
    x, weight, bias, _, _, training, _, eps = node.args
    if not training:
        return [node]
    dims = (0, *range(2, len(node.shape)))
    found = _normalized(node, x, node.shape, dims, eps, 1)
    return found + _affine(node, Ref(-2), weight, bias, len(found))


def _addmm(node: Node) -> list[Node]:
    bias, x, y = node.args[:3]
    if dict(node.kwargs):  # alpha or beta
        return [node]
    kind = "aten.mm.default" if node.kind == "aten.addmm" else "aten.bmm.default"
    return [
        _node(node, kind, node.shape, x, y, shapes=node.shapes[1:]),
        _node(
            node, "aten.add.Tensor", node.shape, Ref(-1), bias, shapes=(node.shape, node.shapes[0])
        ),
    ]


def _adaptive_max(node: Node) -> list[Node]:
    dims = 2 if node.kind.endswith("2d") else 3
    if node.item or any(size != 1 for size in node.shape[-dims:]):
        return [node]
    return [_node(node, "aten.amax.default", node.shape, node.args[0], list(range(-dims, 0)), True)]


def _named(node: Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else dict(node.kwargs).get(name, default)


_SPELLINGS: dict[str, Spelling] = {
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.unbind": _unbind,
    "aten.glu": _glu,
    "aten.addmm": _addmm,
    "aten.baddbmm": _addmm,
    "aten.adaptive_max_pool2d": _adaptive_max,
    "aten.adaptive_max_pool3d": _adaptive_max,
    "aten.pixel_shuffle": _pixel_shuffle,
    "aten.pixel_unshuffle": _pixel_unshuffle,
    "aten.channel_shuffle": _channel_shuffle,
    "aten.native_group_norm": _group_norm,
    "aten.native_batch_norm": _batch_norm,
}
