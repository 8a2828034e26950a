"""Parameters that a model's own code writes to while it computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.nested import tensors_in
from workbench.traced import Write


class Writes(TorchDispatchMode):
    """Notes writes to parameters, also through views and ``.data``, and of what they are made.

    ``where`` gives name and class of the module whose ``forward`` runs.
    """

    def __init__(
        self, model: nn.Module, inputs: tuple[Tensor, ...], where: Callable[[], tuple[str, str]]
    ) -> None:
        super().__init__()
        self.model, self.where = model, where
        self._parameters = dict(model.named_parameters())
        self._names = {_storage(p): name for name, p in self._parameters.items()}
        # Of the samples, or drawn at random: ranks have others. The watch keeps all tensors, so a
        # storage does not come back as another.
        self._own = {_storage(x) for x in inputs}
        self._found: dict[str, Write] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        result = func(*args, **kwargs)
        random = torch.Tag.nondeterministic_seeded in func.tags
        own = random or any(_storage(x) in self._own for x in given)
        written = _written(func, args, kwargs)
        if own:
            self._own.update(_storage(x) for x in (*tensors_in(result), *written))
        for x in written:
            if (name := self._names.get(_storage(x))) is not None:
                self._note(name, func._schema.name.partition("::")[2], own)
        return result

    def found(self) -> tuple[Write, ...]:
        """Return what was written to; also where a parameter was replaced by another array."""
        now = dict(self.model.named_parameters())
        for name, before in self._parameters.items():
            after = now.get(name)
            storage = None if after is None else _storage(after)
            if after is not before or self._names.get(storage or 0) != name:
                self._note(name, "replaced", storage in self._own)
        return tuple(self._found.values())

    def _note(self, name: str, operation: str, own: bool) -> None:
        layer, kind = self.where()
        before = self._found.get(name)
        if before is None or (own and not before.differs):
            self._found[name] = Write(name, layer, kind, operation, own)


def _storage(x: Tensor) -> int:
    found: int = x.untyped_storage()._cdata
    return found


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    places, names = _targets(func)
    found = [args[place] for place in places if place < len(args)]
    return tensors_in((found, [kwargs[name] for name in names if name in kwargs]))


@lru_cache(maxsize=4096)
def _targets(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the arguments that ``func`` writes to, by place and by name."""
    written = [
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return tuple(place for place, _ in written), tuple(name for _, name in written)
