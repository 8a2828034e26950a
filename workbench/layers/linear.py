"""Linear layers and the layers that reshape for them, on arrays that are cut."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from workbench.layers.carrier import OUT, Carrier, Declared, Forward, Seat, passed
from workbench.layers.channels import is_split
from workbench.layers.gather import Together, Whole, split, split_flat
from workbench.plan import LayerPlan
from workbench.traced import Flat, Label, Refusal, Traced

Part = tuple[Label, int]


def declare_linear(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    """Say that the last dim of the output counts what the layer makes."""
    return Declared((*arguments[0].labels[:-1], OUT), role="linear")


def build_linear(module: nn.Module, seat: Seat, turned: bool = False) -> Forward | None:
    """Return a forward that knows of the calls whose inputs are cut, or None if there are none.

    A rank that has some of the features but the whole weight multiplies the columns that go with
    them, and the products are added up over the ranks. A weight that is ``turned`` has what it
    reads in dim 0.
    """
    own: Forward = module.forward
    ways: dict[int, Forward] = {}
    for planned in seat.calls:
        if planned.choice == "channels" and not is_split(planned):
            ways[id(planned)] = _by_columns(module, planned, seat, turned)
        elif planned.choice == "gather":
            ways[id(planned)] = _gathered(own, planned, seat)
    if not ways:
        return None

    def forward(input: Tensor) -> Tensor:
        result: Tensor = ways.get(id(seat.call(input)), own)(input)
        return result

    return forward


def _by_columns(
    module: nn.Module, planned: LayerPlan, seat: Seat, turned: bool = False
) -> Callable[[Tensor], Tensor]:
    last = len(planned.layer.input_shape) - 1
    together = Together(seat, planned, (last,))
    cuts = tuple(cut for cut in planned.input if cut.dim == last)
    flat = next((cut.flat for cut in cuts if cut.flat is not None), None)
    ranges = seat.ranges(planned.layer.input_shape, cuts)[last:]

    def columns(weight: Tensor) -> Tensor:
        if flat is not None:
            return split_flat(weight, 1, flat, seat.plan, seat.rank)
        return split(weight, ranges, (1,))

    def forward(input: Tensor) -> Tensor:
        weight: Tensor = module.weight  # type: ignore[assignment]
        products = nn.functional.linear(input, columns(weight.t() if turned else weight))
        name = seat.name
        result = together.sum(products, f"{name}: outputs", f"{name}: gradients of outputs")
        bias: Tensor | None = module.bias  # type: ignore[assignment]
        return result if bias is None else result + bias

    return forward


def _declare_flatten(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.Flatten)
    x = arguments[0]
    dims = max(1, len(x.shape))
    first, last = module.start_dim % dims, module.end_dim % dims
    parts: list[Part] = []
    for label, size in list(zip(x.labels, x.shape, strict=True))[first : last + 1]:
        parts += label.parts if isinstance(label, Flat) else [(label, size)]
    together = tuple((label, size) for label, size in parts if label or size > 1)
    labelled = tuple(
        dict.fromkeys(label for label, _ in together if isinstance(label, str) and label)
    )
    merged: Label = ""
    refusals: tuple[Refusal, ...] = ()
    if labelled and first == 0 < last:
        reason = (
            f"Flatten(start_dim={module.start_dim}) merges samples with positions; use a start_dim "
            "of 1 or more"
        )
        refusals = (Refusal(labelled, reason),)
    elif len(together) == 1:
        merged = together[0][0]
    elif labelled:
        merged = Flat(tuple((str(label), size) for label, size in together))
    return Declared(
        (*x.labels[:first], merged, *x.labels[last + 1 :]), refusals=refusals, role="flatten"
    )


def _build_flatten(module: nn.Module, seat: Seat) -> Forward | None:
    own: Forward = module.forward
    ways = {
        id(planned): _gathered(own, planned, seat)
        for planned in seat.calls
        if planned.choice == "gather"
    }
    if not ways:
        return None

    def forward(input: Tensor) -> Tensor:
        result: Tensor = ways.get(id(seat.call(input)), own)(input)
        return result

    return forward


def _gathered(own: Forward, planned: LayerPlan, seat: Seat) -> Callable[[Tensor], Tensor]:
    """Return a forward that first makes the input whole."""
    layer = planned.layer
    whole = Whole(
        layer.input_shape,
        planned.input,
        seat.plan,
        seat.groups,
        f"{seat.name}: whole input",
        f"{seat.name}: gradient of the whole input",
    )

    def forward(input: Tensor) -> Tensor:
        result: Tensor = own(whole(input))
        return result

    return forward


def _declare_unflatten(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.Unflatten)
    x = arguments[0]
    if isinstance(module.dim, str):  # a named tensor
        return Declared(("",) * len(output_shape))
    dim = module.dim % len(x.shape)
    made = output_shape[dim : dim + len(output_shape) - len(x.shape) + 1]
    refusals: tuple[Refusal, ...] = ()
    label = x.labels[dim]
    if isinstance(label, str) and label:  # one that was flattened is whole by now
        reason = f"Unflatten({module.dim}, {made}) takes a dim apart that is cut; leave it as one"
        refusals = (Refusal((label,), reason),)
    labels = (*x.labels[:dim], *("" for _ in made), *x.labels[dim + 1 :])
    return Declared(labels, refusals=refusals)


def _declare_identity(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    return Declared(passed(arguments[0], output_shape) if arguments else ())


def _as_it_is(module: nn.Module, seat: Seat) -> None:
    return None


CARRIERS = (
    Carrier((nn.Linear,), declare_linear, build_linear),
    Carrier((nn.Flatten,), _declare_flatten, _build_flatten),
    Carrier((nn.Unflatten,), _declare_unflatten, _as_it_is),
    Carrier((nn.Identity,), _declare_identity, _as_it_is),
)
