"""What an optimizer does to a share of a parameter, and the norm of gradients that are shared."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

STEPS = 3
ROWS, COLUMNS = 6, 4


def updates_by_entry(optimizer: Optimizer) -> bool:
    """Return whether each entry of a parameter is updated by its own gradients alone.

    Then a rank can update its share of a parameter and nobody sees the difference. Found out by
    trying: ``STEPS`` steps on a small parameter, whole and in shares, with the options of each of
    the optimizer's groups. SGD, Adam and most others do; those that take norms of a parameter
    (LAMB), factor its moments (Adafactor), or multiply it by matrices (Muon, Shampoo) do not, and
    what hooks do, nobody knows.
    """
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooked or "step" in vars(optimizer):
        return False
    source = torch.Generator().manual_seed(0)
    start, *gradients = (
        torch.randn(ROWS, COLUMNS, generator=source, dtype=torch.float64) for _ in range(STEPS + 1)
    )
    for group in optimizer.param_groups:
        try:
            whole = _updated(optimizer, group, start, gradients)
            for dim, size in enumerate((ROWS, COLUMNS)):
                halves = [
                    _updated(
                        optimizer,
                        group,
                        start.narrow(dim, first, size // 2),
                        [g.narrow(dim, first, size // 2) for g in gradients],
                    )
                    for first in (0, size // 2)
                ]
                if not torch.allclose(torch.cat(halves, dim), whole, rtol=1e-9, atol=1e-12):
                    return False
        except Exception:
            return False
    return True


def state_of(optimizer: Optimizer) -> tuple[int, int]:
    """Return how much an optimizer keeps: numbers for each of a parameter's, and bytes beside.

    Found out by a step on a small parameter, with the options of the first group.
    """
    start = torch.ones(ROWS, COLUMNS, dtype=torch.float64)
    try:
        made = _made(optimizer, optimizer.param_groups[0], start)
    except Exception:
        return 0, 0
    parameter = made.param_groups[0]["params"][0]
    parameter.grad = torch.ones_like(parameter)
    with contextlib.suppress(Exception):
        made.step()
    tensors = [v for v in made.state[parameter].values() if isinstance(v, Tensor)]
    alike = sum(v.shape == parameter.shape for v in tensors)
    return alike, sum(v.nbytes for v in tensors if v.shape != parameter.shape)


def _updated(
    like: Optimizer, group: dict[str, Any], start: Tensor, gradients: Iterable[Tensor]
) -> Tensor:
    optimizer = _made(like, group, start)
    parameter: Tensor = optimizer.param_groups[0]["params"][0]
    for gradient in gradients:
        parameter.grad = gradient.clone().contiguous()
        optimizer.step()
    return parameter.detach()


def _made(like: Optimizer, group: dict[str, Any], start: Tensor) -> Optimizer:
    """Return an optimizer like another one, of one parameter with numbers like ``start``."""
    kind = type(like)
    taken = inspect.signature(kind).parameters
    defaults = {key: value for key, value in like.defaults.items() if key in taken}
    options = {key: v for key, v in group.items() if key not in ("params", "param_names")}
    parameter = nn.Parameter(start.clone().contiguous())
    return kind([{"params": [parameter], **options}], **defaults)
