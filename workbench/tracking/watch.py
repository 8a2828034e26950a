"""A pass watched operation by operation: FLOPs, where labels go, and what mixes their positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from workbench.errors import PlanError
from workbench.nested import tensors_in
from workbench.traced import POSITIONS, Label, Mix
from workbench.tracking import attention, layout  # noqa: F401 - register their rules
from workbench.tracking.arithmetic import RANDOM, pointwise, random
from workbench.tracking.operation import (
    EVEN_SAFE,
    RULES,
    Operation,
    everything,
    set_tags,
    tags_of,
)
from workbench.tracking.positions import Positions
from workbench.tracking.tags import Even, Names, Tag, Tags, labels_in, labels_of, lost

Array = tuple[tuple[int, ...], Tags]
"""Shape and tags."""

# Numbers that say where or how many, and so follow the shapes that are compared by themselves.
_PLACES = {"dim", "dim0", "dim1", "start_dim", "end_dim", "split_size", "N", "C", "HxW", "group"}
_PLACES |= {"groups", "end", "length", "k", "chunks", "steps", "storage_offset", "high", "low"}

_MEET = "every position meets every other"


@dataclass(frozen=True, slots=True)
class Event:
    """One operation, or one call of a layer that is not watched inside, of a pass.

    ``said`` is its name for users, ``numbers`` are those among its arguments that are no sizes;
    None if they need not be compared. ``even`` says that it does not care how long a dim of equal
    entries is.
    """

    name: str
    layer: str
    kind: str
    said: str = ""
    numbers: tuple[object, ...] | None = ()
    arguments: tuple[Array, ...] = ()
    results: tuple[Array, ...] = ()
    even: bool = False


class Watch(TorchDispatchMode):
    """Watches a pass; labels are kept on the tensors themselves.

    Attributes
    ----------
    flops:
        FLOPs so far.
    blind:
        Above 0 while inside a layer that answers for itself.
    where:
        Name and class of the module whose ``forward`` runs.
    running:
        The operation that has begun and not ended, which is the one that failed if one did.
    positions:
        Which layers leave ranks some positions, and what has needed all.
    """

    def __init__(
        self,
        inputs: Iterable[Label] = (),
        model: str = "",
        positions: Positions | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.positions = Positions() if positions is None else positions
        self.operands: Sequence[Tensor] = ()
        self.names = Names()
        self.mixes: list[Mix] = []
        self.events: list[Event] = []
        self.flops = 0
        self.blind = 0
        self.where: Callable[[], tuple[str, str]] = lambda: ("", "")
        self.running: Any = None
        self.apart: list[tuple[str, str, int, int]] = []
        self.made: dict[int, list[Tensor]] = {}  # by storage, to recognize what is saved
        self.inputs = tuple(inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        for tensor in tensors_in([args, kwargs]):
            self.check_backward(tensor)
        self.running = func
        result = func(*args, **kwargs)
        self.running = None
        for tensor in tensors_in(result):
            self.made.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        if not self.blind:
            self._watch(func, args, kwargs, result)
        return result

    def report(
        self, labels: Sequence[Label], operation: str, advice: str, random: bool = False
    ) -> Mix:
        """Note that code mixes ``labels``, if it does so to any, and return what was noted."""
        layer, kind = self.where()
        mix = Mix(layer, kind, operation, tuple(labels), advice, random)
        if labels and mix not in self.mixes:
            self.mixes.append(mix)
        if POSITIONS in labels:
            self.positions.need(self.operands, layer, operation)
        return mix

    def check_backward(self, x: Tensor) -> None:
        """Report ``x`` as mixed if an ``autograd.Function`` of the user's has made it.

        Its backward may add up over dims that its forward does not. Such a function leaves no call
        that could be seen, only its place in the graph; so the whole model is said to do it.
        """
        made_by = getattr(x.grad_fn, "_forward_cls", None)
        if made_by is None or made_by.__module__.startswith(("torch.", "workbench.")):
            return
        labels = self.names.all(labels_in(tags_of(x)))
        what = f"{made_by.__name__}, an autograd.Function of its own, whose backward is not watched"
        mix = Mix("", self.model, what, labels, "write it with operations of torch")
        if labels and mix not in self.mixes:
            self.mixes.append(mix)

    def report_twice(self) -> None:
        """Report dims of one array whose labels have turned out to be the same afterwards."""
        for event in self.events:
            for _, tags in event.results:
                if twice := self.names.twice(tags):
                    what = f"{event.said}, in which {_MEET}"
                    self.mixes.append(Mix(event.layer, event.kind, what, twice))

    def report_origin(self, tag: Tag) -> None:
        """Report merged dims that reach a place where they have to be something in their own."""
        origin = getattr(tag, "origin", None)
        if origin is not None:
            labels = self.names.all(labels_of(tag))
            mix = Mix(origin.layer, origin.kind, origin.operation, labels, origin.advice)
            if labels and mix not in self.mixes:
                self.mixes.append(mix)

    def _watch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name.partition("::")[2]
        if name.endswith("_") and not name.endswith("__"):
            name = name[:-1]
        given = _bound(func, args, kwargs)
        tensors, results = tensors_in(given), tensors_in(result)
        op = Operation(name, given, tensors, results, self.names, self.report)
        before = [tags_of(t) for t in tensors]
        self.operands = tensors
        found = self._rule(func, op)
        for label, size, count in self.names.splits:
            self.apart.append((self.where()[0], label, size, count))
        self.names.splits.clear()
        for tensor, tags in zip(results, found, strict=True):
            if twice := self.names.twice(tuple(tags)):
                op.mix(twice, f"{op.said}, in which {_MEET}")
                hit = {*twice}
                tags = [
                    lost(tag) if hit & {*self.names.all(labels_of(tag))} else tag for tag in tags
                ]
            self._tag(op, tensor, tuple(tags))
        if name in ("detach", "alias"):
            return  # torch adds them as it likes
        even = name in EVEN_SAFE or torch.Tag.pointwise in func.tags
        layer, kind = self.where()
        self.events.append(
            Event(
                name,
                layer,
                kind,
                op.said,
                _numbers(func, name, given, before),
                tuple((tuple(t.shape), b) for t, b in zip(tensors, before, strict=True)),
                tuple((tuple(t.shape), tags_of(t)) for t in results),
                even,
            )
        )

    def _rule(self, func: Any, op: Operation) -> Sequence[Sequence[Tag]]:
        if op.name in RANDOM and op.given.get("training", op.given.get("train")) is not False:
            return random(op, self.inputs)
        if op.given.get("dropout_p"):
            random(op, self.inputs)
        ours = func.namespace == "aten"
        apply = RULES.get(op.name) if ours else None
        if apply is None:
            apply = pointwise if ours and torch.Tag.pointwise in func.tags else everything
        if apply is pointwise and not op.results:
            apply = everything  # torch.equal
        found: Any = apply(op)
        if not op.results:
            return []
        return found if found and isinstance(found[0], list) else [found] * len(op.results)

    def _tag(self, op: Operation, tensor: Tensor, tags: Tags) -> None:
        """Tag a result. Where it was written into, other arrays may see the same memory."""
        if len(tags) != tensor.dim():
            tags = ("",) * tensor.dim()
        if any(tensor is t for t in op.tensors):
            old = tags_of(tensor)
            if tensor._is_view() or getattr(tensor, "_workbench_viewed", False):
                hit = labels_in(t for t, before in zip(tags, old, strict=True) if t != before)
                if hit:
                    what = f"{op.said}, written into a part of an array that is not cut"
                    op.mix(hit, what, advice="use torch.cat, or start with torch.zeros_like")
            if tensor._is_view():
                tags = _uneven(tags)
                set_tags(_root(tensor), _uneven(tags_of(_root(tensor))))
        elif op.name in (*_VIEWS, "alias") and op.tensors:
            _root(op.first)._workbench_viewed = True  # type: ignore[attr-defined]
            self.positions.view(tensor, op.first)
        set_tags(tensor, tags)


class Literals(TorchFunctionMode):
    """Notes numbers of which code makes arrays: on the meta device they leave no other trace."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _MAKERS and not self.watch.blind:
            given = [*args, *(kwargs or {}).values()]
            numbers = tuple(n for value in given for n in _numbers_in(value))
            name = func.__name__
            event = Event(name, *self.watch.where(), said=f"torch.{name}", numbers=numbers)
            self.watch.events.append(event)
        if func in _LEAVERS and not self.watch.blind:
            hit = labels_in(tag for x in tensors_in(args) for tag in tags_of(x))
            self.watch.report(self.watch.names.all(hit), f"Tensor.{func.__name__}", "")
        if func is Tensor.register_hook and not self.watch.blind:
            hit = labels_in(tags_of(args[0]))
            what = "Tensor.register_hook, whose hook sees a share of the gradient"
            self.watch.report(self.watch.names.all(hit), what, "")
        if func in _BACKWARD:
            layer, kind = self.watch.where()
            raise PlanError(
                f"{f'Layer {layer!r} ({kind})' if layer else f'{kind}.forward'} asks for gradients "
                f"({_BACKWARD[func]}), and a model is planned without working out any; write the "
                "derivative out as a formula, or take it in the loss."
            )
        return func(*args, **(kwargs or {}))


_MAKERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor}

_BACKWARD = {
    torch.autograd.grad: "torch.autograd.grad",
    torch.autograd.backward: "torch.autograd.backward",
    Tensor.backward: "Tensor.backward",
}

_LEAVERS = {Tensor.numpy, Tensor.tolist, Tensor.__array__}
"""After these torch does not see what becomes of the values."""


def _numbers_in(value: Any) -> list[object]:
    if isinstance(value, bool | int | float | complex | np.number):
        return [value]
    if isinstance(value, np.ndarray):
        value = value.flatten()[:1000].tolist()
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers_in(item)]
    return []


_VIEWS = {"view", "slice", "select", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze"}
_VIEWS |= {"split", "split_with_sizes", "unbind", "as_strided", "diagonal", "_reshape_alias"}
_VIEWS |= {"unfold", "narrow", "chunk"}


def _root(tensor: Tensor) -> Tensor:
    return tensor._base if tensor._base is not None else tensor


def _uneven(tags: Tags) -> Tags:
    return tuple("" if isinstance(tag, Even) else tag for tag in tags)


@lru_cache(maxsize=4096)
def _is_composite(func: Any) -> bool:
    """Return whether ``func`` is made of others, and comes here whole in inference mode only."""
    return isinstance(
        func, torch._ops.OpOverload
    ) and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    )


@lru_cache(maxsize=4096)
def _schema(func: Any) -> tuple[tuple[str, str, Any], ...]:
    return tuple(
        (a.name, str(a.type), a.default_value if a.has_default_value() else None)
        for a in func._schema.arguments
    )


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for place, (name, _, default) in enumerate(_schema(func)):
        if place < len(args):
            found[name] = args[place]
        else:
            found[name] = kwargs.get(name, default)
    return found


def _numbers(
    func: Any, name: str, given: dict[str, Any], tags: list[Tags]
) -> tuple[object, ...] | None:
    """Return the numbers among the arguments that are no sizes, dims or strides."""
    if name == "slice":
        dim = given["dim"] % len(tags[0])
        size = given["self"].shape[dim]
        if tags[0][dim]:
            return None
        return tuple(
            min(int(n), size) if n is not None else None for n in (given["start"], given["end"])
        )
    if name == "lift_fresh" and given["self"].device.type != "meta":  # torch.tensor(numbers)
        return tuple(given["self"].flatten()[:1000].tolist())
    found: list[object] = []
    for key, kind, _ in _schema(func):
        value = given[key]
        if isinstance(value, bool | int | float | complex):
            is_place = kind in ("int", "Optional[int]") and key in _PLACES
            if not is_place and not (name == "arange" and key == "end"):
                found.append(value)
        elif key == "shifts":
            found.extend(value)
    return tuple(found)
