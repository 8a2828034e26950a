"""From a model to its layers: shapes, FLOPs, bytes, labels, found without computing.

The model runs once on torch's meta device, where tensors have a shape but no memory. A model that
cannot (its code looks at values) runs once on zeros instead. Labels are carried along, through
layers by what their carriers declare and through all other code as it is watched.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.generators import set_aside
from workbench.layers.trace import on_meta
from workbench.nested import tensors_in
from workbench.plan.stages import Source
from workbench.traced import (
    POSITIONS,
    Adapted,
    Flat,
    Layer,
    Meeting,
    Mix,
    Resized,
    Traced,
    Write,
    lead,
)
from workbench.tracking.calls import Calls
from workbench.tracking.dtypes import Dtypes
from workbench.tracking.kernels import Kernels
from workbench.tracking.operation import set_tags, tags_of, traced
from workbench.tracking.positions import Met, Positions
from workbench.tracking.reads import Reads
from workbench.tracking.shares import Pass, other_sizes, output_event, spec_of
from workbench.tracking.sizes import Noting
from workbench.tracking.tags import Merged, Names
from workbench.tracking.watch import Literals, Watch
from workbench.tracking.writes import Writes
from workbench.trials import SAMPLES


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
    resized:
        Modules whose code gives sizes of whole arrays, which are others on a share.
    parted:
        Layers whose features code takes apart into several things, such as queries, keys and
        values: of what sizes these may be, equal ones first.
    exposed:
        Parameters and buffers that code reads where no layer that holds them is called.
    written:
        Parameters that code writes to.
    meetings:
        Code in which arrays meet of which one has its positions cut.
    passed:
        What modules that are no part of a layer were given and have returned, as far as it has
        labels: where a pipeline may cut.
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
    resized: tuple[Resized, ...] = ()
    parted: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = ()
    written: tuple[Write, ...] = ()
    meetings: tuple[Meeting, ...] = ()
    passed: tuple[tuple[Source, Traced], ...] = ()


def profile(
    model: nn.Module,
    *inputs: Tensor,
    dims: tuple[int, ...] | None = None,
    opaque: frozenset[str] = frozenset(),
    features: bool = False,
    positions: Positions | None = None,
) -> Profile:
    """Profile ``model`` on inputs that may lie on the meta device (only shape and dtype are used).

    The model itself is not changed and no parameter is copied. BatchNorm counts as it is set:
    training or not. Inputs that require grad count as such.

    Parameters
    ----------
    dims:
        Dims of the input with most dims to label ``"dim2"``, ``"dim3"``, ...; all from 2 on if
        None. Those of others with as many dims get the same labels where they have the same size,
        and dim 0, which counts samples, gets its label in all.
    opaque:
        Names of modules to take as one layer each, which is carried out on whole arrays.
    features:
        Whether to watch what code does where features or channels, which layers make, are cut.
    positions:
        Layers that leave ranks some positions only; takes what needed all of them.

    Raises
    ------
    PlanError
        If the model does not accept inputs of these shapes; names the layer.
    """
    positions = Positions() if positions is None else positions
    found = _once(model, inputs, dims, opaque, features, {}, positions)
    ways = dict(found.parted) if features else {}
    while fused := {name: sizes[0] for name, sizes in ways.items() if sizes}:
        again = _once(model, inputs, dims, opaque, features, fused, positions)
        bad = [name for name in fused if not _stays_apart(again, name)]
        if not bad:
            return again
        ways |= {name: ways[name][1:] for name in bad}
    return found


def outputs_of(
    model: nn.Module, sample_shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]
) -> Any:
    """Return what a model gives for :data:`workbench.trials.SAMPLES` samples, as it is set.

    Where the model can, that is on the meta device, without computing. ``sample_shapes`` and
    ``dtypes`` (numpy's names) are those of its inputs.

    Raises
    ------
    PlanError
        If the model does not take so few samples.
    """
    kinds = [getattr(torch, dtype) for dtype in dtypes]
    few = [
        torch.zeros((SAMPLES, *shape), dtype=kind)
        for shape, kind in zip(sample_shapes, kinds, strict=True)
    ]
    with torch.no_grad():
        try:
            return on_meta(model)(*(torch.empty_like(x, device="meta") for x in few))
        except Exception:  # it looks at values
            pass
        try:
            with set_aside(0):
                return copy.deepcopy(model).cpu()(*few)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise PlanError(
                f"The model takes whole batches and not {SAMPLES} samples, with which its loss is "
                f"tried: {reason}"
            ) from error


def _once(
    model: nn.Module,
    inputs: Sequence[Tensor],
    dims: tuple[int, ...] | None,
    opaque: frozenset[str],
    features: bool,
    fused: Mapping[str, Sequence[int]],
    positions: Positions,
) -> Profile:
    tensors = tuple(torch.empty_like(x, device="meta") for x in inputs)
    try:
        return _run(on_meta(model), inputs, tensors, dims, opaque, features, fused, positions)
    except Exception:
        # The model looks at values, or is at fault: zeros on the CPU tell which.
        tensors = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in inputs)
        own = copy.deepcopy(model).cpu()
        return _run(own, inputs, tensors, dims, opaque, features, fused, positions)


def _stays_apart(found: Profile, name: str) -> bool:
    """Return whether code treats alike all features of each thing that a layer makes.

    Things of several sizes have to be made of as many pieces, such as heads.
    """
    mixed = {label for mix in found.mixes for label in mix.labels}
    made = [layer.results[0].labels[-1] for layer in found.layers if layer.name == name]
    units = dict(found.units)
    return bool(made) and all(
        isinstance(label, Flat)
        and mixed.isdisjoint(part for part, _ in label.parts)
        and not (
            label.beside and any(size % units.get(part, size + 1) for part, size in label.parts)
        )
        for label in made
    )


def _things(layers: Sequence[Layer], names: Names) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return of what sizes the things may be that code takes from a layer, equal ones first."""
    totals = {layer.name: layer.output_shape[-1] for layer in layers if layer.role == "linear"}
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for label, edges in names.edges.items():
        total, count = totals.get(label.removeprefix("out:"), 0), names.parted.get(label, 1)
        equal = (total // count,) * count
        ends = sorted({0, total, *edges})
        sizes = tuple(stop - start for start, stop in pairwise(ends))
        ways = [way for way in (equal, sizes) if len(way) > 1 and sum(way) == total]
        found[label.removeprefix("out:")] = tuple(dict.fromkeys(ways))
    return found


def _run(
    model: nn.Module,
    given: Sequence[Tensor],
    inputs: tuple[Tensor, ...],
    dims: tuple[int, ...] | None,
    opaque: frozenset[str],
    features: bool,
    fused: Mapping[str, Sequence[int]],
    positions: Positions,
) -> Profile:
    positions.forget()
    for x, asked in zip(inputs, given, strict=True):
        x.requires_grad_(asked.requires_grad)
    labels = _label(inputs, dims)
    watch = Watch(labels, type(model).__name__, positions)
    calls = Calls(model, watch, opaque, fused)
    reads = Reads(model, calls.running)
    kernels = Kernels(watch, calls)
    writes = Writes(model, inputs, watch.where)
    specs = [spec_of(x, tags_of) for x in inputs]
    given_to = tuple(traced(x) for x in inputs)
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
            Dtypes(),
            Literals(watch),
            Noting(calls.current),
            Met(positions, calls.here),
        ):
            output = model(*inputs)
    except PlanError:
        raise
    except Exception as error:
        raise calls.refusal(error, inputs) from error
    outputs = tensors_in(output)
    positions.need(outputs, "", "the output of the model")
    for x in outputs:
        watch.check_backward(x)
        for tag in tags_of(x):
            if isinstance(tag, Merged):
                watch.report_origin(tag)
    watch.report_twice()
    watch.events.append(output_event(output, tags_of))
    layers = calls.layers([x.grad_fn for x in outputs])
    mixes = list(watch.mixes)
    adapted = _adapted(model, watch) if features else ()
    resized: tuple[Resized, ...] = ()
    if features:
        labels = (*labels, *watch.names.introduced, *((POSITIONS,) if positions.cut else ()))
    if labels:
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
            calls.sizes,
            positions=positions,
        )
        with torch.enable_grad(), forget:
            more, resized = other_sizes(first)
            if more and adapted:  # code may rather go on with the numbers of the whole
                other, sizes = other_sizes(replace(first, adapted=(), places=set()))
                if _concerned(other) < _concerned(more):
                    more, resized, adapted = other, sizes, ()
        mixes += more
        for mix in more:
            positions.missed(mix)
    names = watch.names
    return Profile(
        layers,
        tuple(tuple(x.shape) for x in outputs),
        isinstance(output, Tensor),
        given_to,
        tuple(
            replace(t, labels=tuple(names.canonical(label) for label in t.labels))
            for t in map(traced, outputs)
        ),
        tuple(dict.fromkeys(replace(mix, labels=names.all(mix.labels)) for mix in mixes)),
        names.units,
        adapted,
        reads.exposed({layer.name for layer in layers if layer.arguments}),
        resized,
        tuple(_things(layers, names).items()),
        writes.found(),
        positions.meetings,
        calls.passed.found(names.canonical),
    )


def _concerned(mixes: Sequence[Mix]) -> int:
    """Return the number of labels that code mixes."""
    return len({label for mix in mixes for label in mix.labels})


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
    first = lead(inputs)
    last = first.dim()
    chosen = [d for d in range(last) if (d >= 2 if dims is None else d in dims or d - last in dims)]
    for x in inputs:
        alike = chosen if x.dim() == last else [d for d in chosen if d == 0]
        set_tags(
            x,
            tuple(
                f"dim{d}" if d in alike and size == first.shape[d] else ""
                for d, size in enumerate(x.shape)
            ),
        )
    return tuple(f"dim{d}" for d in chosen)
