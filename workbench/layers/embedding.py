"""Embeddings of which a rank has some features or some rows of the table."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from workbench.layers.carrier import OUT, Carrier, Declared, Forward, Seat
from workbench.mesh import balanced
from workbench.traced import Traced


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.Embedding)
    # Rows that the forward pass rescales, and sparse gradients, are left to the whole table.
    splits = module.max_norm is None and not module.sparse and not module.scale_grad_by_freq
    if not splits:
        return Declared((*arguments[0].labels, ""))
    return Declared((*arguments[0].labels, OUT), role="embedding")


def _build(module: nn.Module, seat: Seat) -> Forward | None:
    """Return the forward for a part of the vocabulary: zeros for rows that other ranks have."""
    assert isinstance(module, nn.Embedding)
    if not seat.calls or seat.calls[0].choice != "channels":
        return None
    mesh = seat.plan.mesh
    axis = seat.calls[0].feature_axis
    start, stop = balanced(module.num_embeddings, mesh.degree(axis), mesh.place(seat.rank, axis))
    padding = module.padding_idx
    own_padding = padding - start if padding is not None and start <= padding < stop else None

    def forward(input: Tensor) -> Tensor:
        elsewhere = (input < start) | (input >= stop)
        rows = (input - start).masked_fill(elsewhere, 0)
        found = F.embedding(rows, module.weight, own_padding)
        return found.masked_fill(elsewhere.unsqueeze(-1), 0.0)

    return forward


CARRIERS = (Carrier((nn.Embedding,), _declare, _build),)
