"""What a rank keeps for backward when images are cut: its share, the halos, and little else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workbench.comm.comm import Comm
from workbench.comm.threads import run_threads
from workbench.composing import compose, trace
from workbench.layers.groups import Groups
from workbench.layers.share import Share
from workbench.layers.swap import parallelize
from workbench.models import DenoiseCNN
from workbench.plan import Batch, Plan
from workbench.strategies.notation import parse

IMAGE = (1, 3, 427, 64)


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes of all arrays that one forward pass keeps for backward, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    total = sum(kept.values())
    assert output.requires_grad
    return total


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_keeps_its_share_and_the_halos(ranks: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(IMAGE)
    serial = kept_bytes(DenoiseCNN(), x)
    start = Plan(
        "denoise",
        Batch(1, 1),
        (),
        parse(f"spatial={ranks}"),
        options=(("spatial_dims", "2"),),
    )
    plan = compose(start, trace(DenoiseCNN(), (x,), start))
    halos = max(
        sum(plan.sent_by(c, rank) for c in plan.collectives if c.name.endswith(": halo"))
        for rank in range(ranks)
    )

    def rank(comm: Comm) -> int:
        model = parallelize(DenoiseCNN(), plan, Groups(comm, plan.mesh), Share(rows=1))
        first, last = plan.share(IMAGE, plan.input, comm.rank)[2]
        return kept_bytes(model, x[:, :, first:last].clone())

    for kept in run_threads(ranks, rank):
        assert kept <= serial / ranks * 1.1 + halos
