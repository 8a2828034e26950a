"""Who holds the parameters of a model, and which are read where no layer that holds them runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.traced import Array

_SAME_ON_SHARES = {
    *("dtype", "device", "layout", "requires_grad", "is_leaf", "is_meta", "is_cuda", "is_sparse"),
    *("is_quantized", "is_nested", "ndim", "grad", "grad_fn", "name", "is_cpu"),
}
_CALLS_SAME_ON_SHARES = {"dim", "ndimension", "is_floating_point", "is_complex", "get_device"}


class Reads(TorchFunctionMode):
    """Notes for each parameter and buffer in which calls of modules code looks at it.

    ``running`` gives the names of the modules whose calls have begun and not ended.
    """

    def __init__(self, model: nn.Module, running: Callable[[], Iterable[str]]) -> None:
        super().__init__()
        self.running = running
        self.names: dict[int, str] = {}
        self.holders: dict[str, set[str]] = {}
        self.seen: dict[str, set[frozenset[str]]] = {}
        self.root = type(model).__name__
        for owner, module in model.named_modules():
            for attribute, held in (*module._parameters.items(), *module._buffers.items()):
                if held is not None:
                    name = self.names.setdefault(id(held), f"{owner}.{attribute}".lstrip("."))
                    self.holders.setdefault(name, set()).add(owner)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not _is_same_on_shares(func):
            for name in self._named((args, kwargs or {})):
                self.seen.setdefault(name, set()).add(frozenset(self.running()))
        return func(*args, **(kwargs or {}))

    def exposed(self, called: Collection[str]) -> tuple[str, ...]:
        """Return what has been read outside of the calls that have it whole.

        Those are the calls of layers that hold it; of one that is never called, of the module
        around it. ``called`` are the layers that are.
        """
        found = []
        for name, contexts in self.seen.items():
            readers = {self._reader(owner, called) for owner in self.holders[name]}
            if not all(readers & context for context in contexts):
                found.append(name)
        return tuple(found)

    def _reader(self, owner: str, called: Collection[str]) -> str:
        reader = owner or self.root
        while reader and reader not in called:
            reader = reader.rpartition(".")[0]
        return reader

    def _named(self, value: Any) -> list[str]:
        if isinstance(value, Tensor):
            name = self.names.get(id(value))
            return [] if name is None else [name]
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            return [name for item in value for name in self._named(item)]
        return []


def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` so that what it looks at is not taken for what the model's code does."""

    def called(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args)

    return called


def _is_same_on_shares(func: Any) -> bool:
    """Return whether ``func`` says of a share of an array what it says of the whole."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in _SAME_ON_SHARES
    return name in _CALLS_SAME_ON_SHARES


def arrays_by_owner(model: nn.Module) -> dict[str, tuple[Array, ...]]:
    """Return the parameters by the module that holds them; a tied one has its first owner."""
    found: dict[str, tuple[Array, ...]] = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        found[owner] = (*found.get(owner, ()), _array(name, parameter))
    return found


def tied(model: nn.Module) -> dict[nn.Module, tuple[Array, ...]]:
    """Return the parameters that modules hold of which another one is the first owner."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[nn.Module, tuple[Array, ...]] = {}
    for owner, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and first[parameter] != f"{owner}.{attribute}".lstrip("."):
                found[module] = (*found.get(module, ()), _array(first[parameter], parameter))
    return found


def _array(name: str, parameter: nn.Parameter) -> Array:
    return Array(name, tuple(parameter.shape), parameter.element_size(), parameter.requires_grad)
