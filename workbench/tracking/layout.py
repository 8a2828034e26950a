"""Rules of operations that move entries about: views, parts, copies, concatenation, indexing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import gcd

import torch
from torch import Tensor

from workbench.traced import Label
from workbench.tracking.operation import Operation, everything, report_meeting, rule, tags_of
from workbench.tracking.regroup import regroup
from workbench.tracking.tags import (
    EVEN,
    Even,
    Lost,
    Merged,
    Tag,
    is_fused,
    labels_in,
    labels_of,
    lost,
    lost_in,
)


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", even=True)
def _view(op: Operation) -> list[Tag]:
    old = list(zip(tags_of(op.first), op.first.shape, strict=True))
    new = list(op.results[0].shape)
    if op.first.numel() != op.results[0].numel():  # viewed as another dtype
        return everything(op)[0]
    tags, torn = regroup(old, new, op.merged, op.names.split)
    if torn:
        op.mix(torn, f"{op.said} to {tuple(new)}")
    return tags


@rule("unsqueeze", even=True)
def _unsqueeze(op: Operation) -> list[Tag]:
    tags = list(tags_of(op.first))
    tags.insert(op.given["dim"] % (op.first.dim() + 1), "")
    return tags


@rule("squeeze", even=True)
def _squeeze(op: Operation) -> list[Tag]:
    tags = tags_of(op.first)
    dims = op.dims()
    gone = [d for d in dims if op.first.shape[d] == 1]
    # Where a rank has one row of a dim, that would vanish too.
    if hit := labels_in(tags[d] for d in dims):
        if op.given.get("dim") is None:
            op.mix(hit, "squeeze without a dim", advice="name the dim that is to go: squeeze(dim)")
        else:
            op.mix(hit, concerned=[d for d in dims if labels_of(tags[d])])
    return [tag for d, tag in enumerate(tags) if d not in gone]


@rule("permute", "transpose", "t", "numpy_T", "swapaxes", "movedim", even=True)
def _permute(op: Operation) -> list[Tag]:
    tags = list(tags_of(op.first))
    if op.name == "permute":
        return [tags[d] for d in op.dims("dims")]
    if op.name == "transpose":
        a, b = op.dims("dim0")[0], op.dims("dim1")[0]
        if tags:
            tags[a], tags[b] = tags[b], tags[a]
        return tags
    return tags[::-1]


@rule("expand", even=True)
def _expand(op: Operation) -> list[Tag]:
    shape, tags = op.results[0].shape, tags_of(op.first)
    found: list[Tag] = []
    for dim, size in enumerate(shape):
        own = dim - len(shape) + op.first.dim()
        tag: Tag = EVEN if own < 0 else tags[own]
        if own >= 0 and op.first.shape[own] != size:
            hit = labels_of(tag)
            if hit:
                op.mix(hit, f"expand to {tuple(shape)}")
            tag = lost(tag) if hit else EVEN
        found.append(tag)
    return found


@rule("slice", "select", "split", "split_with_sizes", "unbind", "unsafe_split")
@rule("unsafe_split_with_sizes", "chunk", "narrow")
def _part(op: Operation) -> list[list[Tag]]:
    dim = op.given.get("dim", 0) % op.first.dim()
    tags = list(tags_of(op.first))
    if op.name not in ("select", "unbind") and all(r.shape == op.first.shape for r in op.results):
        return [tags]
    if pieces := _whole_things(op, tags[dim], dim):
        return [[*tags[:dim], piece, *tags[dim + 1 :]] for piece in pieces]
    if hit := labels_of(tags[dim]):
        sizes = [op.first.shape[dim], *(r.shape[dim] for r in op.results if r.dim() == len(tags))]
        single = op.name in ("select", "unbind")
        count = sizes[0] // (1 if single else max(1, gcd(*sizes)))
        op.names.part(tags[dim], count, () if single else _edges(op, dim))
        op.mix(hit, f"{op.said} of dim {dim}")
        tags[dim] = lost(tags[dim])
    if op.name in ("select", "unbind"):
        del tags[dim]
    return [tags] * len(op.results)


def _edges(op: Operation, dim: int) -> list[int]:
    """Return where the parts that code takes of a dim begin and end."""
    start = (op.given["start"] or 0) if op.name in ("slice", "narrow") else 0
    start += op.first.shape[dim] if start < 0 else 0
    return list(accumulate((result.shape[dim] for result in op.results), initial=start))


def _whole_things(op: Operation, tag: Tag, dim: int) -> list[Tag]:
    """Return the tags of parts that are whole things of several side by side; none if not so."""
    if not isinstance(tag, Merged) or not is_fused(tag) or op.name in ("select", "unbind"):
        return []
    if op.given.get("step", 1) != 1:
        return []
    edges = _edges(op, dim)
    if tag.beside:
        ends = list(accumulate((size for _, size in tag.parts), initial=0))
        things = dict(zip(pairwise(ends), (part for part, _ in tag.parts), strict=True))
        found = [things.get(each, "") for each in pairwise(edges)]
        return found if all(found) else []
    (none, _), (label, size) = tag.parts
    sizes = [stop - start for start, stop in pairwise(edges)]
    if edges[0] % size or any(n % size or not n for n in sizes):
        return []
    return [label if n == size else Merged(((none, n // size), (label, size))) for n in sizes]


@rule("cat", "_cat", even=True)
def _cat(op: Operation) -> list[Tag]:
    shape = op.results[0].shape
    parts = [t for t in op.tensors if t.dim() == len(shape)]  # torch skips empty ones of one dim
    dim = op.given.get("dim", 0) % max(1, len(shape))
    if len(parts) == 1:
        return list(tags_of(parts[0]))
    return _lined_up(op, parts, list(shape), dim)


@rule("stack", even=True)
def _stack(op: Operation) -> list[Tag]:
    tags = _lined_up(op, op.tensors, list(op.first.shape), None)
    tags.insert(op.given.get("dim", 0) % (op.first.dim() + 1), "")
    return tags


def _lined_up(
    op: Operation, parts: Sequence[Tensor], shape: list[int], joined: int | None
) -> list[Tag]:
    found: list[Tag] = []
    apart: list[Label] = []
    for d, size in enumerate(shape):
        met = [tags_of(t)[d] for t in parts]
        if d == joined:
            hit, gone = labels_in(met), lost_in(met)
            if hit:
                op.mix(hit, f"{op.said} along dim {d}")
            found.append(Lost(gone | set(hit)) if gone or hit else "")
            continue
        tag, mixed = op.names.meet(met, size)
        apart += mixed
        found.append(tag)
    report_meeting(op, parts, (), apart)
    return found


@rule("repeat")
def _repeat(op: Operation) -> list[Tag]:
    times = op.given["repeats"]
    tags: list[Tag] = [EVEN] * (len(times) - op.first.dim()) + list(tags_of(op.first))
    sizes = [1] * (len(times) - op.first.dim()) + list(op.first.shape)
    for dim, (tag, size, count) in enumerate(zip(tags, sizes, times, strict=True)):
        if count != 1:
            hit = labels_of(tag)
            if hit:
                op.mix(hit, f"repeat of dim {dim}")
            tags[dim] = lost(tag) if hit else EVEN if size == 1 else ""
    return tags


@rule("index")
def _index(op: Operation) -> list[Tag]:
    tags, indices = list(tags_of(op.first)), op.given["indices"]
    used = [d for d, index in enumerate(indices) if index is not None]
    hit = labels_in([*(tags[d] for d in used), *(t for d in used for t in tags_of(indices[d]))])
    if hit or any(indices[d].dtype in (torch.bool, torch.uint8) for d in used):
        return everything(op)[0]
    rest: list[Tag] = [tag for d, tag in enumerate(tags) if d not in used]
    new: list[Tag] = [""] * (op.results[0].dim() - len(rest))
    at = used[0] if used and used == list(range(used[0], used[-1] + 1)) else 0
    return [*rest[:at], *new, *rest[at:]]


@rule("index_select")
def _index_select(op: Operation) -> list[Tag]:
    tags, dim = list(tags_of(op.first)), op.dims()[0]
    if hit := (*labels_of(tags[dim]), *labels_in(tags_of(op.tensors[1]))):
        op.mix(hit, f"index_select of dim {dim}")
        tags[dim] = lost(tags[dim])
    elif isinstance(tags[dim], Even):
        tags[dim] = ""
    return tags
