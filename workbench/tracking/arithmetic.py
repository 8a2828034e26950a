"""Rules of operations that compute: entry by entry, reductions, products, windows, random draws."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from workbench.traced import Label
from workbench.tracking.operation import (
    EVEN_SAFE,
    RULES,
    Operation,
    Rule,
    everything,
    nothing_left,
    report_meeting,
    rule,
    tags_of,
)
from workbench.tracking.tags import EVEN, Even, Lost, Tag, Tags, labels_in, labels_of, lost


def pointwise(op: Operation) -> list[list[Tag]]:
    """Dims meet as broadcasting aligns them."""
    return [_broadcast(op, op.tensors, tuple(result.shape)) for result in op.results]


def _broadcast(op: Operation, tensors: Sequence[Tensor], shape: tuple[int, ...]) -> list[Tag]:
    found: list[Tag] = []
    stretched: list[Label] = []
    apart: list[Label] = []
    for dim, size in enumerate(shape):
        met: list[Tag] = []
        for tensor in tensors:
            own = dim - len(shape) + tensor.dim()
            if own >= 0:
                tag = tags_of(tensor)[own]
                if tensor.shape[own] == size:
                    met.append(tag)
                elif labels := labels_of(tag):
                    stretched += labels
                    met.append(Lost(frozenset(labels)))
        tag, mixed = op.names.meet(met, size)
        apart += mixed
        found.append(tag)
    report_meeting(op, tensors, stretched, apart)
    return found


def _identity(op: Operation) -> Tags:
    return tags_of(op.first)


for _name in (
    *("_to_copy", "copy", "copy_", "fill", "zero", "masked_fill", "hardswish", "_prelu_kernel"),
    *("log_sigmoid_forward", "nan_to_num", "isclose", "floor_divide", "complex", "polar"),
    # in place these lack torch's tag
    *("abs", "eq", "ne", "ge", "gt", "le", "lt", "mish", "gelu", "threshold", "copysign"),
    *("heaviside", "gcd", "lcm"),
    *("__and__", "__or__", "__iand__", "__ior__", "lift_fresh", "lift", "bucketize"),
):
    RULES[_name] = pointwise
    EVEN_SAFE.add(_name)

rule("detach", "alias", "lift_fresh_copy", "_conj", "resolve_conj", "resolve_neg", even=True)(
    _identity
)
rule("zeros_like", "ones_like", "full_like", "empty_like", even=True)(_identity)


@rule("zeros", "ones", "full", "empty", "empty_strided", "empty_permuted", even=True)
@rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", even=True)
def _constant(op: Operation) -> list[Tag]:
    return [EVEN] * op.results[0].dim()


@rule("sum", "mean", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std", "var_mean")
@rule("std_mean", "norm", "linalg_vector_norm", "prod", "any", "all", "logsumexp", "nansum")
@rule("median", "nanmedian", "mode", "kthvalue", "count_nonzero", "aminmax", "nanmean")
def _reduce(op: Operation) -> list[list[Tag]]:
    if op.name in ("max", "min") and "other" in op.given:
        return pointwise(op)
    tags, dims = list(tags_of(op.first)), op.dims()
    if "dim" in op.given and op.given["dim"] is None and op.name in ("norm", "linalg_vector_norm"):
        dims = list(range(op.first.dim()))
    hit = labels_in(tags[d] for d in dims)
    gone: Tag = ""
    if hit:
        op.mix(hit, concerned=sorted(d for d in dims if labels_of(tags[d])))
        gone = Lost(frozenset(hit))
    kept = [gone if d in dims else tag for d, tag in enumerate(tags)]
    bare = [tag for d, tag in enumerate(tags) if d not in dims]
    return [kept if r.dim() == len(kept) else bare for r in op.results]


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "_softmax", "_log_softmax")
@rule("_safe_softmax", "softmax", "log_softmax", "sort", "argsort", "topk", "glu")
@rule("flip", "roll", "tril", "triu")
def _along(op: Operation) -> list[list[Tag]]:
    tags = list(tags_of(op.first))
    if op.name in ("tril", "triu"):
        dims = [len(tags) - 2, len(tags) - 1]
    else:
        dims = op.dims("dims" if op.name in ("flip", "roll") else "dim")
    if hit := labels_in(tags[d] for d in dims):
        op.mix(hit, concerned=[d for d in dims if labels_of(tags[d])])
        tags = [lost(tag) if d in dims else tag for d, tag in enumerate(tags)]
    tags = ["" if d in dims and isinstance(tag, Even) else tag for d, tag in enumerate(tags)]
    return [tags] * len(op.results)


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(op: Operation) -> list[list[Tag]]:
    tags = list(tags_of(op.first))
    normalized = len(op.given["normalized_shape"])
    dims = range(len(tags) - normalized, len(tags))
    if hit := labels_in(tags[d] for d in dims):
        op.mix(hit, concerned=[d for d in dims if labels_of(tags[d])])
        tags[dims.start :] = map(lost, tags[dims.start :])
    statistics: list[Tag] = [*tags[: dims.start], *[""] * normalized]
    return [tags, *[statistics] * (len(op.results) - 1)]


@rule("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "vdot")
def _product(op: Operation) -> list[Tag]:
    a, b = op.tensors[-2:]
    ta, tb = tags_of(a), tags_of(b)
    if hit := labels_in((ta[-1], tb[max(0, b.dim() - 2)])):
        op.mix(hit, f"{op.said} that adds up {tuple(a.shape)} over its last dim")
    rows: list[Tag] = list(ta[:-1])
    if b.dim() == 3:
        rows[0], mixed = op.names.meet((ta[0], tb[0]), a.shape[0])
        if mixed:
            op.mix(mixed)
    found: list[Tag] = [*rows, *(tb[-1:] if b.dim() > 1 else ())]
    return _with_bias(op, found) if len(op.tensors) == 3 else found


def _with_bias(op: Operation, tags: list[Tag]) -> list[Tag]:
    bias, shape, found = op.tensors[0], op.results[0].shape, []
    for dim, (tag, size) in enumerate(zip(tags, shape, strict=True)):
        own = dim - len(shape) + bias.dim()
        met = [tag] if own < 0 or bias.shape[own] != size else [tag, tags_of(bias)[own]]
        joined, mixed = op.names.meet(met, size)
        if mixed:
            op.mix(mixed)
        found.append(joined)
    return found


@rule("embedding")
def _embedding(op: Operation) -> list[Tag]:
    weight, indices = op.tensors[:2]
    if hit := labels_in(tags_of(weight)):
        op.mix(hit)
    return [*tags_of(indices), ""]


@rule("constant_pad_nd")
def _pad(op: Operation) -> list[Tag]:
    tags = list(tags_of(op.first))
    sizes = op.given["pad"]
    padded = [len(tags) - 1 - i // 2 for i, size in enumerate(sizes) if size]
    if hit := labels_in(tags[d] for d in padded):
        op.mix(hit, concerned=sorted(d for d in set(padded) if labels_of(tags[d])))
        tags = [lost(tag) if d in padded else tag for d, tag in enumerate(tags)]
    return ["" if d in padded and isinstance(t, Even) else t for d, t in enumerate(tags)]


def neighbours(op: Operation, count: int) -> list[list[Tag]]:
    """Return tags where each of the last ``count`` dims is mixed with itself, and no other."""
    tags = list(tags_of(op.first))
    dims = range(max(0, len(tags) - count), len(tags))
    if labels_in(t for x in op.tensors[1:] for t in tags_of(x)):
        return everything(op)
    if hit := labels_in(tags[d] for d in dims):
        op.mix(hit)
        tags = [lost(tag) if d in dims else tag for d, tag in enumerate(tags)]
    tags = ["" if d in dims and isinstance(tag, Even) else tag for d, tag in enumerate(tags)]
    return [tags] * len(op.results)


def _windowed(count: int) -> Rule:
    return lambda op: neighbours(op, count)


for _d in (1, 2, 3):
    for _name in (
        *(f"avg_pool{_d}d", f"max_pool{_d}d_with_indices", f"max_pool{_d}d"),
        *(f"_adaptive_avg_pool{_d}d", f"adaptive_avg_pool{_d}d", f"adaptive_max_pool{_d}d"),
        *(f"upsample_nearest{_d}d", f"_upsample_nearest_exact{_d}d"),
        *(f"reflection_pad{_d}d", f"replication_pad{_d}d"),
    ):
        RULES[_name] = _windowed(_d)
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"):
    RULES[_name] = _windowed(int(_name[-2]))
RULES["upsample_trilinear3d"] = _windowed(3)

RANDOM = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("bernoulli", "uniform", "normal", "normal_functional", "exponential", "random", "cauchy"),
    *("geometric", "log_normal", "multinomial", "poisson", "binomial", "native_dropout"),
    *("rrelu_with_noise", "_standard_gamma", "_sample_dirichlet"),
}


def random(op: Operation, everywhere: Sequence[Label]) -> list[list[Tag]]:
    """Numbers drawn at random are others on every rank; ``everywhere`` are the input's labels."""
    hit = (*labels_in(tag for x in op.tensors for tag in tags_of(x)), *everywhere)
    if hit:
        op.mix(
            hit,
            f"random numbers ({op.said}), and every rank draws others",
            advice="use nn.Dropout, which draws the same for every number of ranks",
            random=True,
        )
    rest: Tag = Lost(frozenset(hit)) if hit else ""
    return [[rest if tag in ("", EVEN) else tag for tag in tags] for tags in nothing_left(op)]
