"""From a model to its layers: shapes, FLOPs, bytes, labels, found without computing.

The model runs once on torch's meta device, where tensors have a shape but no memory. A model that
cannot (its code looks at values) runs once on zeros instead. Labels are carried along, through
layers by what their carriers declare and through all other code as it is watched.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from workbench.layers.ghosts import on_meta
from workbench.traced import Adapted, Layer, Mix, Traced, Write
from workbench.tracking.calls import Calls
from workbench.tracking.kernels import Kernels
from workbench.tracking.operation import tags_of
from workbench.tracking.reads import Reads
from workbench.tracking.shares import Pass, other_sizes, output_event, spec_of
from workbench.tracking.tags import Merged, as_labels
from workbench.tracking.watch import Literals, Watch, set_tags, tensors_in
from workbench.tracking.writes import Writes

__all__ = ["Profile", "profile", "tensors_in"]


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
    inputs, outputs:
        The tensors given to the model and all tensors in its output, with their labels.
    mixes:
        Code outside of layers that mixes positions of labelled dims, each place once. What follows
        from a mix is not reported on top of it, so another may come to light when the profile is
        made again with that layer in ``opaque``.
    units:
        Into how many pieces code takes features apart, by their label, such as heads.
    adapted:
        Numbers that modules keep of such pieces.
    exposed:
        Parameters and buffers that code reads where no layer that holds them is called.
    written:
        Parameters that code writes to.
    """

    layers: tuple[Layer, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    plain: bool = True
    inputs: tuple[Traced, ...] = ()
    outputs: tuple[Traced, ...] = ()
    mixes: tuple[Mix, ...] = ()
    units: tuple[tuple[str, int], ...] = ()
    adapted: tuple[Adapted, ...] = ()
    exposed: tuple[str, ...] = ()
    written: tuple[Write, ...] = ()


def profile(
    model: nn.Module,
    *inputs: Tensor,
    dims: tuple[int, ...] | None = None,
    opaque: frozenset[str] = frozenset(),
    features: bool = False,
) -> Profile:
    """Profile ``model`` on inputs that may lie on the meta device (only shape and dtype are used).

    The model itself is not changed and no parameter is copied. BatchNorm counts as it is set:
    training or not. Inputs that require grad count as such.

    Parameters
    ----------
    dims:
        Dims of the first input to label ``"dim2"``, ``"dim3"``, ...; all from 2 on if None. Those
        of further inputs with as many dims get the same labels where they have the same size.
    opaque:
        Names of modules to take as one layer each, which is carried out on whole arrays.
    features:
        Whether to watch what code does where features or channels, which layers make, are cut.

    Raises
    ------
    PlanError
        If the model does not accept inputs of these shapes; names the layer.
    """
    tensors = tuple(torch.empty_like(x, device="meta") for x in inputs)
    try:
        return _run(on_meta(model), inputs, tensors, dims, opaque, features)
    except Exception:
        # The model looks at values, or is at fault: zeros on the CPU tell which.
        tensors = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in inputs)
        return _run(copy.deepcopy(model).cpu(), inputs, tensors, dims, opaque, features)


def _run(
    model: nn.Module,
    given: Sequence[Tensor],
    inputs: tuple[Tensor, ...],
    dims: tuple[int, ...] | None,
    opaque: frozenset[str],
    features: bool,
) -> Profile:
    for x, asked in zip(inputs, given, strict=True):
        x.requires_grad_(asked.requires_grad)
    labels = _label(inputs, dims)
    watch = Watch(labels)
    calls = Calls(model, watch, opaque)
    reads = Reads(model, calls.running)
    kernels = Kernels(watch, calls)
    writes = Writes(model, inputs, watch.where)
    specs = [spec_of(x, tags_of) for x in inputs]
    traced = tuple(_traced(x) for x in inputs)
    # Gradients are asked for to see where they flow; what they would need is not kept.
    nothing = torch.empty(0)
    forget = torch.autograd.graph.saved_tensors_hooks(lambda _: nothing, lambda x: x)

    def note(saved: Tensor) -> Tensor:
        calls.save(saved)
        return nothing

    noting = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
    try:
        with (
            calls.hooked(),
            torch.enable_grad(),
            noting,
            watch,
            writes,
            kernels,
            reads,
            Literals(watch),
        ):
            output = model(*inputs)
    except Exception as error:
        raise calls.refusal(error, inputs) from error
    outputs = tensors_in(output)
    for x in outputs:
        for tag in tags_of(x):
            if isinstance(tag, Merged):
                watch.report_origin(tag)
    watch.report_twice()
    watch.events.append(output_event(output, tags_of))
    layers = calls.layers([x.grad_fn for x in outputs])
    mixes = list(watch.mixes)
    adapted = _adapted(model, watch) if features else ()
    if features:
        labels = (*labels, *watch.names.introduced)
    if labels:
        with torch.enable_grad(), forget:
            first = Pass(
                model,
                specs,
                calls.names,
                calls.returned,
                watch.events,
                mixes,
                labels,
                watch.names,
                adapted,
            )
            mixes += other_sizes(first)
    names = watch.names
    return Profile(
        layers,
        tuple(tuple(x.shape) for x in outputs),
        isinstance(output, Tensor),
        traced,
        tuple(
            replace(t, labels=tuple(names.canonical(label) for label in t.labels))
            for t in map(_traced, outputs)
        ),
        tuple(dict.fromkeys(replace(mix, labels=names.all(mix.labels)) for mix in mixes)),
        names.units,
        adapted,
        reads.exposed({layer.name for layer in layers if layer.arguments}),
        writes.found(),
    )


def _adapted(model: nn.Module, watch: Watch) -> tuple[Adapted, ...]:
    """Return the numbers of modules that say into how many pieces features are taken apart."""
    modules = dict(model.named_modules())
    found = {}
    for module, label, size, count in watch.apart:
        for attribute, value in vars(modules[module]).items():
            if type(value) is int and value in (size, count) and size != count:
                name = watch.names.find(label)
                found[module, attribute] = Adapted(module, attribute, name, value)
    return tuple(found.values())


def _label(inputs: Sequence[Tensor], dims: tuple[int, ...] | None) -> tuple[str, ...]:
    """Tag the inputs, and return the labels that they have."""
    if not inputs:
        return ()
    first = inputs[0]
    last = first.dim()
    chosen = [d for d in range(last) if (d >= 2 if dims is None else d in dims or d - last in dims)]
    for x in inputs:
        if x.dim() == first.dim():
            set_tags(
                x,
                tuple(
                    f"dim{d}" if d in chosen and size == first.shape[d] else ""
                    for d, size in enumerate(x.shape)
                ),
            )
    return tuple(f"dim{d}" for d in chosen)


def _traced(x: Tensor) -> Traced:
    return Traced(tuple(x.shape), as_labels(tags_of(x), x.shape), x.element_size(), x.requires_grad)
