"""What an optimizer does to a share of a parameter, and the norm of gradients that are shared."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

STEPS = 3
ROWS, COLUMNS = 6, 4


class WholeOptimizer:
    """The optimizer of a whole model, to be given the rank's shares of the parameters later.

    A user's function that sorts parameters into groups, by their dims or sizes or by what stands in
    them, so sees those of the serial run.
    """

    def __init__(
        self, make: Callable[[list[tuple[str, nn.Parameter]]], Optimizer], model: nn.Module
    ) -> None:
        found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._optimizer = make(found)
        self._names = {id(p): name for name, p in found}
        self._shapes = {name: p.shape for name, p in found}

    def over(
        self, own: Mapping[str, nn.Parameter], cut: Callable[[str, Tensor], Tensor]
    ) -> Optimizer:
        """Return the optimizer over what a rank has of the parameters, by name.

        ``cut(name, whole)`` is the rank's part of an array like that parameter: of Adagrad's sums,
        say, which are there from the start.
        """
        optimizer = self._optimizer
        before = [(self._names[id(p)], state) for p, state in optimizer.state.items()]
        for group in optimizer.param_groups:
            names = [self._names[id(p)] for p in group["params"]]
            group["params"][:] = [own[name] for name in names if name in own]
        optimizer.state.clear()
        for name, state in before:
            if name in own:
                optimizer.state[own[name]] = {
                    key: cut(name, value).clone()
                    if isinstance(value, Tensor) and value.shape == self._shapes[name]
                    else value
                    for key, value in state.items()
                }
        return optimizer


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
