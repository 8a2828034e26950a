"""What a pass keeps for its backward pass, by the layer that keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from workbench.traced import Traced
from workbench.tracking.operation import tags_of


class Saved:
    """Storages that layers save, each counted once in the model, and who saves them too.

    ``made`` has all views of a storage that were seen; ``known`` are those that count for nothing,
    such as parameters.
    """

    def __init__(self, made: dict[int, list[Tensor]], known: Iterable[Tensor]) -> None:
        self._made = made
        self._known = {x.untyped_storage()._cdata for x in known}
        self._first: dict[int, int] = {}
        self._by_layer: dict[tuple[int, int], list[Tensor]] = {}
        self._silent = False

    def note(self, tensor: Tensor, layer: int) -> None:
        """Note that layer number ``layer`` saves ``tensor``."""
        storage = tensor.untyped_storage()._cdata
        if storage not in self._known and not self._silent:
            self._first.setdefault(storage, layer)
            seen = self._made.setdefault(storage, [tensor])
            self._by_layer.setdefault((layer, storage), seen)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Note nothing meanwhile."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def of_layers(
        self, count: int, traced: Callable[[Tensor], Traced]
    ) -> list[tuple[tuple[Traced, ...], tuple[tuple[int, Traced], ...]]]:
        """Return for each of ``count`` layers what it saves, and what others have saved before."""
        own: list[list[Traced]] = [[] for _ in range(count)]
        too: list[list[tuple[int, Traced]]] = [[] for _ in range(count)]
        for (number, storage), seen in self._by_layer.items() if count else ():
            # Of all views of what is saved the one of which most is known.
            most = max(x.numel() for x in seen)
            tensor = max(
                (x for x in seen if x.numel() == most), key=lambda x: sum(map(bool, tags_of(x)))
            )
            layer, first = (min(max(0, n), count - 1) for n in (number, self._first[storage]))
            if number == self._first[storage]:
                own[layer].append(traced(tensor))
            elif layer != first:
                too[layer].append((first, traced(tensor)))
        return [(tuple(a), tuple(b)) for a, b in zip(own, too, strict=True)]


def as_results(saved: Iterable[Traced], results: Iterable[Traced]) -> tuple[Traced, ...]:
    """Return what a layer saves; of what nothing is known, and has a result's shape, as that is.

    So the indices of pooling, which come with its result, are cut as the result is.
    """
    shapes = {result.shape: result.labels for result in results}
    return tuple(
        each if any(each.labels) else replace(each, labels=shapes.get(each.shape, each.labels))
        for each in saved
    )
