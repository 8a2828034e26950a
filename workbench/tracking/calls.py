"""Calls of modules in a watched pass: what each was given, what it declares, what it returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.nested import tensors_in
from workbench.traced import Array, Flat, Layer, Sums, Traced
from workbench.tracking.agreeing import settled
from workbench.tracking.faults import refusal
from workbench.tracking.graph import nodes_of, reached
from workbench.tracking.operation import set_tags, tags_of, traced
from workbench.tracking.passed import Passed
from workbench.tracking.positions import gathering, goes_by_position
from workbench.tracking.reads import arrays_by_owner, tied, unseen
from workbench.tracking.saved import Saved, as_results
from workbench.tracking.shares import call_event, spec_of
from workbench.tracking.sizes import CallSizes
from workbench.tracking.tags import Merged, Tag, Tags, fused, labels_in
from workbench.tracking.watch import Watch

if TYPE_CHECKING:
    from workbench.layers.carrier import Carrier, Declared
    from workbench.plan.stages import Call


@dataclass
class _Open:
    """A call that has not returned yet."""

    module: nn.Module
    called: Call
    args: Sequence[Any]
    flops: int
    inside: int = 0
    arguments: tuple[Traced, ...] = ()
    carrier: Carrier | None = None
    opaque: bool = False
    inner: Carrier | None = None
    sizes: CallSizes = field(default_factory=CallSizes)
    sums: list[Sums] = field(default_factory=list)


@dataclass
class _Found:
    """A layer, and the nodes of the autograd graph of its results, which hold no tensors."""

    layer: Layer
    nodes: tuple[list[Any], ...]


class Calls:
    """Records the calls of a model's modules, through hooks on every one.

    Attributes
    ----------
    names:
        Names of the modules; one that stands in several places has the first.
    saved:
        What is kept for the backward pass.
    returned:
        For each layer that answers for itself what its calls returned, in order.
    sizes:
        For each other module the sizes that its code gives, call by call.
    passed:
        What modules are given and return.

    Parameters
    ----------
    fused:
        Layers that make several things at once, such as queries, keys and values: their sizes.
    """

    def __init__(
        self,
        model: nn.Module,
        watch: Watch,
        opaque: frozenset[str],
        fused: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.model, self.watch, self.opaque = model, watch, opaque
        self.fused, self.positions = fused or {}, watch.positions
        self.sizes: dict[nn.Module, list[CallSizes]] = {}
        self.names = {module: name for name, module in model.named_modules()}
        self.returned: dict[nn.Module, list[Any]] = {}
        self._arrays = arrays_by_owner(model)
        self._tied = tied(model)
        self._found: list[_Found] = []
        self.saved = Saved(watch.made, model.parameters())
        self._open: list[_Open] = []
        self.passed = Passed()
        for module in self.names:
            _carrier_of(module)  # what it imports and tries is none of the model's faults
        watch.where = self._where

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Have every module tell of its calls."""
        # A user's own hooks run outside: before ours on the way in, after ours on the way out.
        enter, leave = unseen(self._enter), unseen(self._leave)
        hooks = [
            hook
            for module in self.names
            for hook in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True, prepend=True),
            )
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def save(self, tensor: Tensor) -> None:
        """Note that ``tensor`` is kept for the backward pass, by the layer before or this one."""
        inside = any(call.opaque or call.carrier for call in self._open)
        self.saved.note(tensor, len(self._found) - (not inside))

    def layers(self, outputs: Sequence[Any]) -> tuple[Layer, ...]:
        """Return all layers, with the names of labels that all agree on in the end.

        ``outputs`` are the nodes of the model's outputs: gradients flow where those are reached.
        """
        found_by = reached(outputs)
        names = self.watch.names
        kept = self.saved.of_layers(len(self._found), traced)
        found = [
            settled(
                replace(each.layer, saved=as_results(own, each.layer.results), saved_too=too),
                names,
                [not found_by.isdisjoint(nodes) for nodes in each.nodes],
            )
            for each, (own, too) in zip(self._found, kept, strict=True)
        ]
        return (*found, *self._functional(found))

    def running(self) -> Iterator[str]:
        """Return the layers whose calls have begun and not ended, by name."""
        return (self.names[call.module] or type(call.module).__name__ for call in self._open)

    def current(self) -> CallSizes | None:
        """Return where to note the sizes that code gives now; None inside of layers."""
        return self._open[-1].sizes if self._open and not self.watch.blind else None

    def here(self) -> tuple[str, CallSizes] | None:
        """Return the module whose code runs, and what is noted of its call; None in layers."""
        current = self.current()
        return None if current is None else (self.names[self._open[-1].module], current)

    def _where(self) -> tuple[str, str]:
        module = self._open[-1].module if self._open else self.model
        return self.names[module], type(module).__name__

    def _enter(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        called = self.passed.begin(self.names[module])
        if not self.watch.blind:
            self.passed.note(called, "argument", (args, kwargs))
        call = _Open(module, called, [*args, kwargs], self.watch.flops)
        if self._open:
            self._open[-1].sizes.inside.append(self.names[module])
        given = tensors_in(call.args)
        if not self.watch.blind:
            call.opaque = self.names[module] in self.opaque
            call.carrier = None if call.opaque else _carrier_of(module)
        elif any(other.opaque for other in self._open):
            call.inner = _carrier_of(module)
        if call.opaque or call.carrier:
            for x in given:
                for tag in tags_of(x):
                    if isinstance(tag, Merged):
                        self.watch.report_origin(tag)
            self.watch.events.append(call_event(module, *self._where(), call.args, tags_of))
            self.watch.blind += 1
        call.arguments = tuple(traced(x) for x in given)
        self._open.append(call)

    def _leave(
        self, module: nn.Module, _args: Sequence[Any], _kwargs: dict[str, Any], output: Any
    ) -> Any:
        call = self._open.pop()
        while call.module is not module:  # one that raised, and somebody caught it
            self.watch.blind -= bool(call.opaque or call.carrier)
            call = self._open.pop()
        flops = self.watch.flops - call.flops
        if self._open:
            self._open[-1].inside += flops
        if call.opaque or call.carrier:
            self.watch.blind -= 1
        else:
            self.sizes.setdefault(module, []).append(call.sizes)
        declared = self._answer(call, output)
        is_leaf = next(module.children(), None) is None
        replaced = None if self.watch.blind else self._of_positions(call, output)
        output = output if replaced is None else replaced
        if not self.watch.blind:
            self.passed.note(call.called, "result", output)
        if (call.opaque or call.carrier) and self.watch.inputs:
            self.returned.setdefault(module, []).append(spec_of(output, tags_of))
        if enclosing := [other for other in self._open if other.opaque]:
            if call.inner is not None and tensors_in(output):
                enclosing[0].sums += self._over_batch(call, tensors_in(output)[0])
            return replaced
        own = self._arrays.get(self.names[module], ())
        if call.opaque or call.carrier or is_leaf or own or flops > call.inside:
            self._add(call, output, own, flops - call.inside, declared)
        return replaced

    def _of_positions(self, call: _Open, output: Any) -> Any:
        """Tag what a module returns of which ranks have some positions, or all of them again.

        Returns another output if what it was given is one and the same array.
        """
        outs, name, positions = tensors_in(output), self.names[call.module], self.positions
        if not outs:
            return None
        replaced = None
        if name in positions.gathered:
            if outs[0] is output and any(output is x for x in tensors_in(call.args)):
                self.watch.blind += 1
                replaced = output = output.view_as(output)
                self.watch.blind -= 1
                set_tags(output, tags_of(outs[0]))
                outs = [output]
            given = traced(outs[0])
            positions.made(name, outs[0])
            made = traced(outs[0])
            if not (call.opaque or call.carrier) and next(call.module.children(), None) is not None:
                self._found.append(
                    _Found(
                        gathering(name, call.module, given, made), (nodes_of(outs[0], call.args),)
                    )
                )
            positions.results.setdefault(call.module, []).append(spec_of(output, tags_of))
        else:
            positions.made(name, outs[0])
        return replaced

    def _over_batch(self, call: _Open, output: Tensor) -> list[Sums]:
        """Return what a layer inside one that runs whole still exchanges over the batch."""
        assert call.inner is not None
        said = call.inner.declare(call.module, call.arguments, tuple(output.shape))
        name = self.names[call.module]
        return [
            replace(sums, name=f"{name}, {sums.name}", labels=())
            for sums in said.sums
            if sums.over_batch
        ]

    def _answer(self, call: _Open, output: Any) -> Declared | None:
        """Tag what a layer returns that answers for itself."""
        outs = tensors_in(output)
        if call.opaque:
            self.positions.need(tensors_in(call.args), self.names[call.module], "a whole layer")
            for x in outs:
                set_tags(x, _as_first(call.arguments, x))
        if call.carrier is None or not outs:
            return None
        first, *others = outs
        self.watch.blind += 1  # what a carrier works out is no code of the model
        try:
            said = call.carrier.declare(call.module, call.arguments, tuple(first.shape))
        finally:
            self.watch.blind -= 1
        self._check_others(call, said)
        if not goes_by_position(said, call.arguments):
            kind = type(call.module).__name__
            self.positions.need(tensors_in(call.args), self.names[call.module], kind)
        own = f"out:{self.names[call.module] or type(call.module).__name__}"
        self.watch.names.introduce(own)
        made: Tag = own
        if said.role == "linear" and first.dim():
            made = fused(own, self.fused.get(own.removeprefix("out:"), ()))
        tags: Tags = tuple(made if label == "out" else label for label in said.labels)
        set_tags(first, tags if len(tags) == first.dim() else ("",) * first.dim())
        for x in others:
            set_tags(x, tags_of(first) if x.shape == first.shape else ("",) * x.dim())
        return said

    def _check_others(self, call: _Open, said: Declared) -> None:
        """Report labelled arrays, other than the first, of which a layer has not spoken."""
        spoken = {label for refusal in said.refusals for label in refusal.labels}
        more = labels_in(label for array in call.arguments[1:] for label in array.labels)
        if unspoken := [label for label in more if label not in spoken]:
            kind = type(call.module).__name__
            self.watch.report(unspoken, f"{kind} of a second array that is cut", "")

    def _add(
        self,
        call: _Open,
        output: Any,
        parameters: tuple[Array, ...],
        flops: int,
        said: Declared | None,
    ) -> None:
        module, outs = call.module, tensors_in(output)
        inside = list(module.modules()) if call.opaque else [module]
        if call.opaque:
            flops += call.inside
            parameters = tuple(a for m in inside for a in self._arrays.get(self.names[m], ()))
        layer = Layer(
            name=self.names[module] or type(module).__name__,
            kind=type(module).__name__,
            input_shape=call.arguments[0].shape if call.arguments else (),
            output_shape=tuple(outs[0].shape) if outs else (),
            parameters=parameters,
            buffers=tuple(
                Array(name, tuple(b.shape), b.element_size(), trainable=False)
                for name, b in module.named_buffers(recurse=call.opaque)
            ),
            forward_flops=flops,
            itemsize=outs[0].element_size() if outs else 4,
            batch_statistics=any(uses_batch_statistics(m) for m in inside),
            arguments=call.arguments,
            results=tuple(traced(x) for x in outs),
            sums=tuple(call.sums),
            role="opaque" if call.opaque else "plain",
            tied=() if call.opaque else self._tied.get(module, ()),
            watched=not (call.opaque or call.carrier or self.watch.blind),
        )
        if said is not None:
            layer = replace(
                layer,
                windows=said.windows,
                sums=said.sums,
                refusals=said.refusals,
                role=said.role,  # type: ignore[arg-type]
                groups=said.groups,
                turned=said.turned,
                by_heads=_by_heads(layer, said, self.names[module]),
            )
        # The weights of attention may be a view of what gives the output: only the view is theirs.
        nodes = tuple(nodes_of(x, call.args)[: None if n == 0 else 1] for n, x in enumerate(outs))
        self._found.append(_Found(layer, nodes))

    def _functional(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return parameters whose module was never called: code elsewhere reads them directly."""
        seen = {p.name for layer in layers for p in layer.parameters}
        kinds = {name: type(module).__name__ for module, name in self.names.items()}
        found = []
        for owner, arrays in self._arrays.items():
            unseen = tuple(a for a in arrays if a.name not in seen)
            if unseen:
                found.append(Layer(owner, kinds[owner], (), (), parameters=unseen))
        return found

    def refusal(self, error: Exception, inputs: Sequence[Tensor]) -> PlanError:
        """Return the sentence that names the layer in which ``error`` was raised."""
        if not self._open:
            return refusal(error, inputs)
        call = self._open[-1]
        shapes = [array.shape for array in call.arguments]
        return refusal(error, inputs, self.names[call.module], call.module, shapes)


def uses_batch_statistics(module: nn.Module) -> bool:
    """Return whether ``module`` normalises by the statistics of the batch, as set now."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (
        module.training or module.running_mean is None
    )


def _carrier_of(module: nn.Module) -> Carrier | None:
    from workbench.layers.carriers import carrier_of

    return carrier_of(module)


def _as_first(arguments: Sequence[Traced], x: Tensor) -> Tags:
    """Return the labels of the first argument, if all dims that count positions keep their size."""
    none = ("",) * x.dim()
    if not arguments or len(arguments[0].shape) != x.dim():
        return none
    found: list[Tag] = []
    for label, size, own in zip(arguments[0].labels, arguments[0].shape, x.shape, strict=True):
        if label and size != own and not str(label).startswith("out:"):
            return none
        found.append(label if isinstance(label, str) and size == own else "")
    return tuple(found)


def _by_heads(layer: Layer, said: Declared, name: str) -> tuple[tuple[str, int, Flat], ...]:
    """Return the parameters that heads cut, by their names in the model, with the heads' label."""
    return tuple(
        (
            f"{name}.{attribute}".lstrip("."),
            dim,
            Flat(tuple((layer.heads if part == "heads" else part, n) for part, n in flat.parts)),
        )
        for attribute, dim, flat in said.by_heads
    )
