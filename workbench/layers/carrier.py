"""How layers say what they need when arrays are cut, and how they are then carried out.

A *carrier* serves some kinds of layers. When a plan is made it declares, for one call of a layer,
the labels of its output and what has to be exchanged when a labelled dim is cut. When the plan is
run it builds the function that takes the place of the layer's ``forward`` on the rank's shares. The
module itself stays where it is, with its parameters, buffers, hooks and parametrizations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from workbench.comm.comm import Comm
from workbench.errors import RunError
from workbench.layers.groups import Groups
from workbench.layers.share import Share
from workbench.mesh import BATCH_AXES
from workbench.plan import Cut, LayerPlan, Plan
from workbench.traced import Flat, Label, Refusal, Sums, Traced
from workbench.windows import Run, Window

OUT = "out"
"""In the declared labels of an output: the dim counts the channels or features of this layer."""

HEADS = "heads"
"""In the declared parts of a flattened dim: counts the heads of this layer."""


@dataclass(frozen=True)
class Declared:
    """What a carrier says of one call; fields are those of :class:`workbench.traced.Layer`.

    ``labels`` are those of the first output's dims. In ``by_heads`` parameters have their names in
    the module, and the label of the heads is :data:`HEADS`.
    """

    labels: tuple[Label, ...]
    windows: tuple[tuple[int, Window], ...] = ()
    sums: tuple[Sums, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    role: str = "plain"
    groups: int = 1
    turned: bool = False
    by_heads: tuple[tuple[str, int, Flat], ...] = ()


@dataclass(frozen=True)
class Seat:
    """Where one layer of one rank sits: what the plan says of it, and whom it can talk to.

    ``calls`` are the planned calls of the layer, in order: several where a module is used more than
    once. ``number`` is that of the module in the model.
    """

    name: str
    number: int
    calls: tuple[LayerPlan, ...]
    plan: Plan
    groups: Groups
    share: Share

    @property
    def rank(self) -> int:
        """The rank's number on the mesh."""
        return self.groups.rank

    @property
    def cut_axes(self) -> tuple[str, ...]:
        """Axes that cut an input, output or parameter of the layer, those of the batch aside."""
        return tuple(
            axis
            for axis, degree in self.plan.mesh.axes
            if axis not in BATCH_AXES
            and degree > 1
            and any(
                cut.axis == axis
                for call in self.calls
                for cut in (*call.input, *(c for _, c in call.parameters), *call.output)
            )
        )

    def comm(self, *axes: str) -> Comm:
        """Return the communicator along ``axes``."""
        return self.groups.over(*axes)

    def ranges(self, shape: tuple[int, ...], cuts: tuple[Cut, ...]) -> tuple[Run, ...]:
        """Return what this rank owns along every dim; dim 0 is left whole (it counts samples)."""
        return self.plan.share(shape, [c for c in cuts if c.axis not in BATCH_AXES], self.rank)

    def call(self, x: Tensor, aside: int = 0) -> LayerPlan:
        """Return the planned call that a local input belongs to, by its shape.

        Dim 0 counts samples, and a dim that is to be left ``aside`` is the same in all calls.

        Raises
        ------
        RunError
            If none fits: the model's code does something else than when the plan was made.
        """
        for planned in self.calls:
            own = self._local(planned)
            if len(own) == x.dim() and all(
                size == x.shape[dim] for dim, size in enumerate(own) if dim not in (0, aside)
            ):
                return planned
        wanted = " or ".join(str(self._local(planned)[1:]) for planned in self.calls)
        raise RunError(
            f"Layer {self.name!r} was given {tuple(x.shape)} on rank {self.rank}, where the plan "
            f"has {wanted} after the first dim. The model's code takes another way than when the "
            'plan was made; use fallback="gather", or "serial".',
            rank=self.rank,
        )

    def _local(self, planned: LayerPlan) -> tuple[int, ...]:
        ranges = self.ranges(planned.layer.input_shape, planned.input)
        return tuple(stop - start for start, stop in ranges)


Forward = Callable[..., Any]


@dataclass(frozen=True)
class Carrier:
    """Serves the layers of some ``kinds`` (torch's own classes).

    Attributes
    ----------
    declare:
        ``(module, arguments, output_shape) -> Declared``, for one call on whole arrays.
    build:
        ``(module, seat) -> forward``, which takes and gives the rank's shares; None leaves the
        module's own. Called once per rank for every layer that a plan may concern.
    like:
        Whether a class that is none of torch's computes what this carrier serves.
    """

    kinds: tuple[type[nn.Module], ...]
    declare: Callable[[nn.Module, tuple[Traced, ...], tuple[int, ...]], Declared]
    build: Callable[[nn.Module, Seat], Forward | None]
    like: Callable[[type[nn.Module]], bool] | None = None

    def serves(self, module: nn.Module) -> bool:
        """Return whether ``module`` is a layer that this carrier knows."""
        return any(computes_as(module, kind) for kind in self.kinds) or (
            self.like is not None and self.like(type(module))
        )


def computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether ``module`` is of ``kind`` and has that kind's forward, not a user's own."""
    return isinstance(module, kind) and all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


def passed(argument: Traced, output_shape: tuple[int, ...]) -> tuple[Label, ...]:
    """Return the labels of an output whose dims go with those of ``argument``, where sizes agree.

    Dims of another size lose their label; a carrier with windows gives those itself.
    """
    if len(argument.shape) != len(output_shape):
        return ("",) * len(output_shape)
    return tuple(
        label if size == given else ""
        for label, size, given in zip(argument.labels, output_shape, argument.shape, strict=True)
    )


def empty_like_output(x: Tensor, shape: tuple[int, ...], *connected: Tensor | None) -> Tensor:
    """Return an output without entries that backward still passes through, to ``x`` and others.

    A rank that owns nothing of an output must go backward with the others, who wait for it.
    """
    total = x.sum() * 0
    for tensor in connected:
        if tensor is not None and tensor.requires_grad:
            total = total + tensor.sum() * 0
    result: Tensor = total.expand(shape)
    return result
