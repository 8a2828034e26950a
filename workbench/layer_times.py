"""How long each layer of a model takes on this machine, there and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from time import monotonic, perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.errors import PlanError
from workbench.generators import set_aside
from workbench.plan.stages import Call

ROUNDS = 5
LIMIT_S = 10.0
"""After so long every layer is run once only."""


def layer_times(
    model: nn.Module, inputs: Sequence[Tensor], rows: int, layers: Collection[str]
) -> dict[Call, float]:
    """Return the seconds of forward and backward of each call of the named modules, the fastest.

    Runs a copy of ``model``, on the processor that asks and with its torch threads, on ``rows``
    samples of random numbers (zeros where whole numbers are asked for).

    Parameters
    ----------
    inputs:
        Tensors of the shapes and dtypes that the model takes, on any device.

    Raises
    ------
    PlanError
        If the model does not run on such numbers.
    """
    counts: dict[str, int] = {}
    found: dict[Call, float] = {}
    deadline = monotonic() + LIMIT_S

    def around(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(name, counts.get(name, 0))
            counts[name] = call.number + 1
            best = _seconds(own, args, kwargs)
            for _ in range(ROUNDS - 1):
                if monotonic() > deadline:
                    break
                best = min(best, _seconds(own, args, kwargs))
            found[call] = best
            return own(*args, **kwargs)

        return forward

    tried = copy.deepcopy(model).cpu()
    for name, module in list(tried.named_modules()):
        if name in layers:
            module.forward = around(name, module.forward)
    try:
        with set_aside(), torch.no_grad():
            tried(*(_like(x, rows) for x in inputs))
    except Exception as error:
        raise PlanError(
            "balance='measured' runs the model once on random numbers, which it does not take "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); use balance='counted'."
        ) from error
    return found


def _seconds(own: Callable[..., Any], args: Any, kwargs: Any) -> float:
    def leaf(x: Tensor) -> Tensor:
        x = x.detach()
        # Code may write into what it is given, but not into a leaf.
        return x.requires_grad_().clone() if x.is_floating_point() else x.clone()

    with torch.enable_grad():
        args, kwargs = pytree.tree_map_only(Tensor, leaf, (args, kwargs))
        start_s = perf_counter()
        leaves = pytree.tree_leaves(own(*args, **kwargs))
        ends = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.ones_like(x) for x in ends])
        return perf_counter() - start_s


def _like(x: Tensor, rows: int) -> Tensor:
    shape = (rows, *x.shape[1:])
    if x.is_floating_point():
        return torch.randn(shape, dtype=x.dtype)
    return torch.zeros(shape, dtype=x.dtype)
