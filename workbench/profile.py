"""From a model to its layers: shapes, FLOPs, bytes, found without computing.

The model runs once on torch's meta device, where tensors have a shape but no memory. A model that
cannot (its code looks at values) runs once on zeros instead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from workbench.errors import PlanError
from workbench.plan import Array, Layer


@dataclass(frozen=True)
class Profile:
    """What one forward pass over a whole batch does.

    Attributes
    ----------
    layers:
        Every call of a leaf module, and of a module that computes by itself, in order.
    output_shapes:
        Shapes of all tensors in the output.
    plain:
        Whether the output is one tensor, and not a tuple or a dict, of one or several.
    """

    layers: tuple[Layer, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    plain: bool = True


def profile(model: nn.Module, *inputs: Tensor) -> Profile:
    """Profile ``model`` on inputs that may lie on the meta device (only shape and dtype are used).

    The model itself is not changed and no parameter is copied. BatchNorm counts as it is set:
    training or not.

    Raises
    ------
    PlanError
        If the model does not accept inputs of these shapes; names the layer.
    """
    inputs = tuple(torch.empty_like(x, device="meta") for x in inputs)
    try:
        return _Recorder(_on_meta(model)).run(inputs)
    except Exception:
        # The model looks at values, or is at fault: zeros on the CPU tell which.
        zeros = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in inputs)
        return _Recorder(copy.deepcopy(model).cpu()).run(zeros)


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a tensor, or in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` on the meta device; parameters are not copied on the way."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


class _Recorder:
    """Watches one forward pass through hooks on every module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self.arrays = _arrays_by_owner(model)
        self.layers: list[Layer] = []
        self.open: list[tuple[nn.Module, Sequence[Any], list[int]]] = []
        self.counter = FlopCounterMode(display=False)

    def run(self, inputs: Sequence[Tensor]) -> Profile:
        hooks = [
            hook
            for module in self.names
            for hook in (
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, with_kwargs=True),
            )
        ]
        try:
            with torch.no_grad(), self.counter:
                output = self.model(*inputs)
        except Exception as error:
            raise self._refusal(error, inputs) from error
        finally:
            for hook in hooks:
                hook.remove()
        self._add_functional()
        shapes = tuple(tuple(t.shape) for t in tensors_in(output))
        return Profile(tuple(self.layers), shapes, isinstance(output, Tensor))

    def _enter(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.open.append((module, [*args, kwargs], [self.counter.get_total_flops(), 0]))

    def _leave(
        self, module: nn.Module, _args: Sequence[Any], _kwargs: dict[str, Any], output: Any
    ) -> None:
        _, args, (before, inside) = self.open.pop()
        flops = self.counter.get_total_flops() - before
        if self.open:
            self.open[-1][2][1] += flops
        is_leaf = next(module.children(), None) is None
        own_arrays = self.arrays.get(self.names[module], ())
        if is_leaf or own_arrays or flops > inside:
            self._add(module, args, output, own_arrays, flops - inside)

    def _add(
        self,
        module: nn.Module,
        args: Sequence[Any],
        output: Any,
        parameters: tuple[Array, ...],
        flops: int,
    ) -> None:
        ins, outs = tensors_in(list(args)), tensors_in(output)
        self.layers.append(
            Layer(
                name=self.names[module] or type(module).__name__,
                kind=type(module).__name__,
                input_shape=tuple(ins[0].shape) if ins else (),
                output_shape=tuple(outs[0].shape) if outs else (),
                parameters=parameters,
                buffers=tuple(
                    Array(name, tuple(b.shape), b.element_size(), trainable=False)
                    for name, b in module.named_buffers(recurse=False)
                ),
                forward_flops=flops,
                itemsize=outs[0].element_size() if outs else 4,
                batch_statistics=uses_batch_statistics(module),
            )
        )

    def _add_functional(self) -> None:
        """Add parameters whose module was never called: code elsewhere reads them directly."""
        seen = {p.name for layer in self.layers for p in layer.parameters}
        kinds = {name: type(module).__name__ for module, name in self.names.items()}
        for owner, arrays in self.arrays.items():
            unseen = tuple(a for a in arrays if a.name not in seen)
            if unseen:
                self.layers.append(Layer(owner, kinds[owner], (), (), parameters=unseen))

    def _refusal(self, error: Exception, inputs: Sequence[Tensor]) -> PlanError:
        given = " and ".join(str(tuple(x.shape)) for x in inputs)
        if not self.open:
            return PlanError(
                f"The model does not take a batch of shape {given}: {_first_line(error)}"
            )
        module, args, _ = self.open[-1]
        found = " and ".join(str(tuple(x.shape)) for x in tensors_in(list(args))) or "no tensor"
        name = self.names[module]
        where = f"Layer {name!r}, {_one_line(module)}," if name else f"{type(module).__name__}"
        return PlanError(
            f"The model does not take a batch of shape {given}. {where} was given {found} and "
            f"says: {_first_line(error)}"
        )


def uses_batch_statistics(module: nn.Module) -> bool:
    """Return whether ``module`` normalises by the statistics of the batch, as set now."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or module.running_mean is None
    )


def _arrays_by_owner(model: nn.Module) -> dict[str, tuple[Array, ...]]:
    """Return the parameters by the module that holds them; a tied one has its first owner."""
    found: dict[str, tuple[Array, ...]] = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        array = Array(
            name, tuple(parameter.shape), parameter.element_size(), parameter.requires_grad
        )
        found[owner] = (*found.get(owner, ()), array)
    return found


def _one_line(module: nn.Module) -> str:
    text = repr(module)
    return text if "\n" not in text else type(module).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
