"""Put parallel layers in the place of those that the plan does not leave whole."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.comm.comm import Comm
from workbench.layers import dropout
from workbench.layers.batch_norm import SynchronizedBatchNorm
from workbench.layers.share import Share
from workbench.plan import Plan


def parallelize(model: nn.Module, plan: Plan, comm: Comm, share: Share) -> nn.Module:
    """Return ``model``, in place, with every layer swapped that needs to know of the other ranks.

    Parameters and buffers keep their identity and their names. A module that stands in several
    places is swapped for one and the same. A class of the user's with a ``forward`` of its own
    stays, since nobody else knows what it computes.
    """
    swapped: dict[nn.Module, nn.Module] = {}
    for number, (name, module) in enumerate(list(model.named_modules())):
        if dropout.is_torchs(module):
            swapped[module] = dropout.ShareDropout(module, number, share)
        elif isinstance(module, _BatchNorm) and _replaced(module, plan):
            together = plan.option("batch_norm", "synchronized") != "local"
            swapped[module] = SynchronizedBatchNorm(module, comm, share, name, together)
    for old, new in swapped.items():
        new.train(old.training)
    if model in swapped:
        return swapped[model]
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child is not None and child in swapped:
                setattr(parent, child_name, swapped[child])
    return model


def _replaced(module: _BatchNorm, plan: Plan) -> bool:
    if type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        return False
    if isinstance(module, nn.SyncBatchNorm):  # torch's own refuses to train on a CPU
        return True
    return plan.mesh.degree("data") > 1 and plan.option("batch_norm", "synchronized") != "local"
