"""Which layers can be split in what they make or in what they read, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from workbench.plan import Cut, Plan
from workbench.traced import Flat, Label, Layer


@dataclass(frozen=True)
class Splittable:
    """One call of a layer as these strategies see it.

    ``source`` and ``made`` are the labels of the features that it reads and makes, ``inputs`` and
    ``outputs`` their numbers. ``ways`` are the choices that there are. A layer that makes several
    ``things`` side by side, such as queries, keys and values, has that label for all of them, and
    ``made`` for the features of each.
    """

    layer: Layer
    source: Label
    made: Label
    inputs: int
    outputs: int
    ways: tuple[str, ...]
    things: Flat | None = None

    @property
    def features(self) -> int:
        """The number of features that it makes, or of the fewest where these are of things."""
        sizes = [size for label, size in self.things.parts if label] if self.things else []
        return min(sizes, default=self.outputs)

    def choice(self, kept: frozenset[Label], degree: int) -> str:
        """Return how the layer is split, given which labels stay cut; "" if it stays whole."""
        reads = "channels" in self.ways and (self.source in kept or "filters" not in self.ways)
        choice = "channels" if reads else self.ways[0]
        return "" if choice == "filters" and self.outputs < degree else choice

    def parameter_cuts(
        self, choice: str, axis: str, units: Callable[[Label], int], stays: bool
    ) -> list[tuple[str, Cut]]:
        """Return how the layer's parameters are cut, by name, in whole ``units`` of a label.

        ``stays`` says whether what the layer makes stays cut.
        """
        layer = self.layer
        if choice == "heads":
            return [(name, Cut(dim, axis, flat=flat)) for name, dim, flat in layer.by_heads]
        if self.things is not None and stays:
            return [
                (p.name, Cut(int(layer.turned and len(p.shape) > 1), axis, flat=self.things))
                for p in (*layer.parameters, *layer.tied)
            ]
        # A transposed convolution and an embedding count what they read in the weight's first dim.
        turned = layer.turned or layer.kind.startswith("ConvTranspose") or layer.role == "embedding"
        found = []
        for parameter in (*layer.parameters, *layer.tied):
            is_weight = len(parameter.shape) > 1
            if choice in ("filters", "channels") and is_weight:
                dim, label = int((choice == "channels") != turned), self.made
                label = self.source if choice == "channels" else label
                found.append((parameter.name, Cut(dim, axis, units=units(label))))
            elif choice == "groups" or (choice == "filters" and not is_weight):
                found.append((parameter.name, Cut(0, axis, units=units(self.made))))
        return found


def splittable(
    plan: Plan, degree: int, find: Callable[[Layer], Splittable | None]
) -> list[Splittable]:
    """Return what ``find`` can split of each call of each layer, in ``degree``.

    That is nothing if all of it would stay whole: a layer that makes fewer features than there are
    ranks can only go on with shares that another one has made.

    A layer that is called more than once is split in what it makes only, since what it reads may be
    cut in one call and whole in the other. One whose parameters other code reads or makes
    (``torch.nn.utils.parametrize``) stays whole. So does, in all of its calls, what cannot be split
    in one of them, and what shares a parameter with it.
    """
    calls: dict[str, int] = {}
    for planned in plan.layers:
        calls[planned.layer.name] = calls.get(planned.layer.name, 0) + 1
    found: list[Splittable] = []
    whole: set[str] = set()  # layers, and parameters
    for planned in plan.layers:
        layer = planned.layer
        left = layer.parametrized or is_exposed(layer, plan) or _reads_a_part(layer, plan)
        one = None if left else find(layer)
        if one is None:
            whole |= {layer.name, *(array.name for array in (*layer.parameters, *layer.tied))}
        elif calls[layer.name] > 1 and "filters" in one.ways:
            found.append(replace(one, ways=("filters",)))
        else:
            found.append(one)
    found = [
        one
        for one in found
        if one.layer.name not in whole
        and whole.isdisjoint(a.name for a in (*one.layer.parameters, *one.layer.tied))
    ]
    return found if any(one.choice(frozenset(), degree) for one in found) else []


def is_exposed(layer: Layer, plan: Plan) -> bool:
    """Return whether code reads a parameter or buffer of ``layer`` where that is not called."""
    names = {array.name for array in (*layer.parameters, *layer.tied)}
    names |= {name for name, _, _ in layer.by_heads}
    names |= {buffer.name for buffer in layer.buffers}
    names |= {f"{layer.name}.{buffer.name}" for buffer in layer.buffers}
    return not names.isdisjoint(plan.exposed)


def _reads_a_part(layer: Layer, plan: Plan) -> bool:
    """Return whether another axis cuts what ``layer`` multiplies its weight by."""
    return any(
        cut.dim == layer.feature_dim(array)
        for array in layer.arguments[:1]
        for cut in plan.cuts_of(array)
    )
