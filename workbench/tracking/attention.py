"""Rule of torch's fused attention, which is one operation where it computes and several on meta."""

from __future__ import annotations

from torch import Tensor

from workbench.traced import Label
from workbench.tracking.operation import Operation, everything, rule, tags_of
from workbench.tracking.tags import Tag, labels_in, lost


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")
@rule("_scaled_dot_product_fused_attention_overrideable")
def _attention(op: Operation) -> list[list[Tag]]:
    """Take samples, heads and queries each by itself; every key meets all queries of its head.

    Several heads of queries in a row may have a head of keys and values in common.
    """
    query, key, value = op.tensors[:3]
    mask: Tensor | None = op.given.get("attn_mask", op.given.get("attn_bias"))
    if any(x.dim() != 4 for x in (query, key, value)) or query.shape[1] % key.shape[1]:
        return everything(op)
    of_query, of_key, of_value = (list(tags_of(x)) for x in (query, key, value))
    if query.shape[1] != key.shape[1]:
        for tag in (of_key[1], of_value[1]):
            op.names.split(tag, key.shape[1])
    inner = (of_query[3], of_key[3], of_key[2], of_value[2])
    mixed: list[Label] = list(labels_in(inner))
    apart: list[Label] = []
    found: list[Tag] = []
    for dim in (0, 1, 2):
        met: list[Tag] = [of_query[dim]]
        if dim < 2:
            met += [of_key[dim], of_value[dim]]
        own = dim - 4 + mask.dim() if mask is not None else -1
        if mask is not None and own >= 0:
            tag = tags_of(mask)[own]
            if mask.shape[own] == query.shape[dim]:
                met.append(tag)
            else:
                mixed += labels_in([tag])
        tag, more = op.names.meet(met, query.shape[dim])
        apart += more
        found.append(tag)
    if mask is not None:
        mixed += labels_in(tags_of(mask)[-1:])
    if mixed or apart:
        op.mix(dict.fromkeys((*mixed, *apart)))
    found.append(lost(of_value[3]) if set(mixed) & set(labels_in(of_value[3:])) else of_value[3])
    statistics: list[list[Tag]] = [
        found[:3] if result.dim() == 3 else [""] * result.dim() for result in op.results[1:]
    ]
    return [found, *statistics]
