"""Attention (``nn.MultiheadAttention``) of which a rank has some heads."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.errors import RunError
from workbench.layers.carrier import HEADS, Carrier, Declared, Forward, Seat
from workbench.layers.channels import reduce_scatter_sum
from workbench.layers.dropout import ShareDropout
from workbench.layers.gather import Whole, all_reduce_sum
from workbench.plan import Cut
from workbench.traced import Flat, Refusal, Traced
from workbench.windows import Run


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.MultiheadAttention)
    query = arguments[0]
    batch = (0 if module.batch_first else 1) if len(query.shape) == 3 else -1
    labels = tuple(label if dim == batch else "" for dim, label in enumerate(query.labels))
    mixed = {
        name
        for array in arguments
        for label in array.labels
        for name in ([n for n, _ in label.parts] if isinstance(label, Flat) else [label])
        if name and label not in labels
    }
    refusals: tuple[Refusal, ...] = ()
    if mixed:
        reason = "in attention every position meets every other"
        refusals = (Refusal(tuple(sorted(mixed)), reason),)
    # An extra key for all heads is left to the whole layer.
    if module.bias_k is not None or module.add_zero_attn:
        return Declared(labels, refusals=refusals)
    return Declared(labels, refusals=refusals, role="heads", by_heads=_by_heads(module))


def _by_heads(module: nn.MultiheadAttention) -> tuple[tuple[str, int, Flat], ...]:
    own = ((HEADS, module.num_heads), ("", module.head_dim))
    three = Flat((("", 3), *own))
    found = [("out_proj.weight", 1, Flat(own))]
    if module.in_proj_weight is not None:
        found.append(("in_proj_weight", 0, three))
    else:
        found += [(f"{which}_proj_weight", 0, Flat(own)) for which in "qkv"]
    if module.in_proj_bias is not None:
        found.append(("in_proj_bias", 0, three))
    return tuple(found)


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    assert isinstance(module, nn.MultiheadAttention)
    if module.bias_k is not None or module.add_zero_attn or not seat.calls:
        return None
    if seat.calls[0].choice != "heads" and not module.dropout:
        return None
    return HeadAttention(module, seat)


class HeadAttention:
    """Attention over a rank's heads; outputs of all heads are added up over ranks.

    Scaled dot-product attention (Vaswani et al., "Attention is all you need", 2017), split by heads
    (Shoeybi et al., "Megatron-LM", 2019, section 3). Dropout draws the mask of all heads, the same
    for every number of ranks.
    """

    def __init__(self, module: nn.MultiheadAttention, seat: Seat) -> None:
        self.module, self.name = module, seat.name
        self.dropout = nn.Dropout(module.dropout)
        self.draw = ShareDropout(self.dropout, seat)
        layer, plan = seat.calls[0].layer, seat.plan
        self.heads: Run = plan.share_of_label(layer.heads, module.num_heads, seat.rank)
        axis = seat.calls[0].feature_axis
        self.comm = seat.comm(axis if seat.calls[0].choice == "heads" else "")
        # The dim of positions, if the rank gets the sums of some.
        self.positions = next((c.dim for c in seat.calls[0].output if c.axis == axis), None)
        shape = (plan.batch.size, module.num_heads, 1, 1)
        flat = Cut(1, axis)
        names = (f"{self.name}: attention weights", f"{self.name}: gradient of attention weights")
        self.whole = Whole(shape, (flat,), plan, seat.groups, *names)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what ``nn.MultiheadAttention`` does, of the same arguments."""
        module = self.module
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not module.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            x.unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
            for x in self._projected(query, key, value)
        )
        mask = self._mask(attn_mask, key_padding_mask, q.shape[0], q.dtype)
        drops = module.training and module.dropout > 0
        weights: Tensor | None = None
        if need_weights or drops:
            scores = (q / math.sqrt(module.head_dim)) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            if drops:
                p = float(module.dropout)
                shape = torch.Size((q.shape[0], module.num_heads, *weights.shape[2:]))
                kept = self.draw.kept(shape, p)[:, slice(*self.heads)]
                weights = weights * kept.to(weights) / (1 - p if p < 1 else 1)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output = F.linear(mixed.transpose(1, 2).flatten(-2), module.out_proj.weight)
        there, back = f"{self.name}: sum of outputs", f"{self.name}: gradients of outputs"
        if self.positions is None:
            output = all_reduce_sum(output, self.comm, there, back)
        else:
            output = reduce_scatter_sum(output, self.positions, self.comm, there, back)
        if module.out_proj.bias is not None:
            output = output + module.out_proj.bias
        if not batched:
            output = output.squeeze(0)
        elif not module.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        assert weights is not None
        weights = self._of_all_heads(weights, average_attn_weights)
        return output, weights if batched else weights.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        module = self.module
        if module.in_proj_weight is None:
            own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        elif query is key is value and module.in_proj_bias is not None:
            return F.linear(query, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
        else:
            own = module.in_proj_weight.chunk(3)
        biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
        given = zip((query, key, value), own, biases, strict=True)
        return tuple(F.linear(x, weight, bias) for x, weight, bias in given)

    def _mask(
        self, mask: Tensor | None, padding: Tensor | None, samples: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Return what is added to the scores, shape (samples or 1, own heads or 1, L or 1, S)."""
        found = None
        if mask is not None:
            found = _added(mask, dtype)
            if found.dim() == 3:
                own = found.unflatten(0, (samples, self.module.num_heads))
                found = own[:, slice(*self.heads)]
            else:
                found = found[None, None]
        if padding is not None:
            keys = _added(padding, dtype).reshape(samples, 1, 1, -1)
            found = keys if found is None else found + keys
        return found

    def _of_all_heads(self, weights: Tensor, average: bool) -> Tensor:
        if self.comm.size == 1:
            return weights.mean(1) if average else weights
        result: Tensor = _AllHeads.apply(weights, average, self)
        return result


class _AllHeads(torch.autograd.Function):
    """Attention weights of all heads, or their mean; says so if anybody asks for a gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, average: bool, attention: HeadAttention) -> Tensor:
        ctx.name = attention.name
        if not average:
            return attention.whole(own)
        mean = own.sum(1) / attention.module.num_heads
        return attention.comm.all_reduce(mean.contiguous(), name=attention.whole.name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RunError(
            f"Layer {ctx.name!r} is split by heads, and the loss depends on the attention weights "
            "that it returns, whose gradient is not carried. Use data, or a loss of the output.",
            rank=-1,
        )


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: minus infinity where a boolean one says not to look."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)


CARRIERS = (Carrier((nn.MultiheadAttention,), _declare, _build),)
