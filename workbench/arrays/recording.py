"""A model, or any code on tensors, recorded as the operations that it comes to.

The code runs once on the meta device, where tensors have a shape but no memory, and every operation
that torch carries out on what comes from the inputs is noted. What does not come from them, such as
parameters and weights worked out of others, is a constant, kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.arrays.network import Network, Node, Ref, linked
from workbench.arrays.spelling import spell
from workbench.errors import PlanError


def record(code: Callable[..., Any], inputs: Sequence[Tensor], name: str) -> Network:
    """Return what ``code(*inputs)`` comes to; inputs lie on the meta device.

    Raises
    ------
    PlanError
        If it looks at values, writes into arrays, draws random numbers, or gives other than one
        tensor.
    """
    recorder = _Recorder(name, inputs)
    try:
        with ExitStack() as stack:
            if isinstance(code, nn.Module):
                stack.enter_context(recorder.naming(code))
            stack.enter_context(torch.no_grad())
            stack.enter_context(recorder)
            stack.enter_context(_SpelledOut())
            # A copy at the end, to find what is returned whatever object stands for it.
            torch.func.functionalize(lambda *x: recorder.result(code(*x)).clone())(*inputs)
    except PlanError:
        raise
    except Exception as error:
        if "meta" in str(error).lower():
            raise PlanError(
                f"{recorder.here()} looks at the values of its arrays to decide what to compute, "
                f"so that it cannot be laid out before it runs ({_first_line(error)}); use "
                'strategy="data", which calls the model as it is.'
            ) from error
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise PlanError(
            f"{name} does not take arrays of {shapes}: {_first_line(error)}."
        ) from error
    return recorder.network()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


_OWN = torch.library.Library("workbench", "DEF")  # kept: its operations live as long as it does
_OWN.define("linear(Tensor x, Tensor weight) -> Tensor")


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("...k,nk->...n", x, weight)


_OWN.impl("linear", _linear, "CompositeExplicitAutograd")


class _SpelledOut(torch.overrides.TorchFunctionMode):
    """Says in other words what torch would say in a way that hides which entry needs which.

    A linear layer flattens all dims but the last; circular padding writes into an empty array.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.pad:
            mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
            if mode == "circular":
                return _wrapped(args[0], args[1] if len(args) > 1 else kwargs["pad"])
        if func is torch.nn.functional.linear:
            x, weight, bias = (*args, *kwargs.values(), None)[:3]
            made = torch.ops.workbench.linear(x, weight)
            return made if bias is None else made + bias
        if func in _PRODUCTS and args[0].dim() > 2 and len(args) == 2 and args[1].dim() == 2:
            return torch.ops.workbench.linear(args[0], args[1].t())
        return func(*args, **kwargs)


_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def _wrapped(x: Tensor, sides: Sequence[int]) -> Tensor:
    for number in range(len(sides) // 2):
        dim, before, after = x.dim() - 1 - number, sides[2 * number], sides[2 * number + 1]
        size = x.shape[dim]
        pieces = [x.narrow(dim, size - before, before), x, x.narrow(dim, 0, after)]
        x = torch.cat([piece for piece in pieces if piece.shape[dim]], dim)
    return x


class _Recorder(TorchDispatchMode):
    def __init__(self, name: str, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.name = name
        self.nodes: list[Node] = []
        self.constants: dict[int, Tensor] = {}
        self.numbers: dict[int, int] = {}
        self.kept: list[Tensor] = []  # so that no id is used twice
        self.names: dict[int, str] = {}
        self.path: list[str] = []
        for x in inputs:
            self._note(x, Node("input", tuple(x.shape), x.dtype))
        self.inputs = tuple(range(len(inputs)))

    def here(self) -> str:
        """Return whose code is running, for the beginning of a sentence."""
        inner = self.path[-1] if self.path else ""
        return f"Layer {inner!r} of {self.name}" if inner else self.name

    def naming(self, model: nn.Module) -> ExitStack:
        """Note which module is running, until the context ends."""
        stack = ExitStack()
        self.names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        for name, module in model.named_modules():

            def enter(*_: Any, name: str = name) -> None:
                self.path.append(name)

            def leave(*_: Any) -> None:
                self.path.pop()

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        return stack

    def result(self, output: Any) -> Tensor:
        if isinstance(output, Tensor):
            return output
        kind = type(output).__name__
        raise PlanError(
            f"{self.name} returns a {kind}, and a dask array is one array; wrap it so that it "
            "returns the one tensor that you want."
        )

    def _note(self, x: Tensor, node: Node) -> int:
        self.nodes.append(node)
        self.kept.append(x)
        self.numbers[id(x)] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def _constant(self, x: Tensor) -> int:
        if id(x) not in self.numbers:
            name = self.names.get(id(x), "")
            number = self._note(x, Node("constant", tuple(x.shape), x.dtype, where=name))
            self.constants[number] = x.detach().cpu()
        return self.numbers[id(x)]

    def _traced(self, x: Any) -> bool:
        number = self.numbers.get(id(x))
        return number is not None and number not in self.constants

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(map(self._traced, given)):
            if func.namespace == "aten" and "device" in kwargs and not given:
                kwargs = {**kwargs, "device": torch.device("cpu")}
            return func(*args, **kwargs)
        self._check(func)
        on_meta = pytree.tree_map_only(Tensor, _shape_only, (args, kwargs))
        made = func(*on_meta[0], **on_meta[1])
        own = pytree.tree_map_only(Tensor, lambda t: Ref(self._number(t)), (args, kwargs))
        node = Node(
            str(func),
            (),
            torch.float32,
            tuple(own[0]),
            tuple(own[1].items()),
            self.path[-1] if self.path else "",
            tuple(tuple(t.shape) for t in given),
        )
        self._outputs(node, made, given)
        return made

    def _number(self, x: Tensor) -> int:
        return self.numbers[id(x)] if self._traced(x) else self._constant(x)

    def _check(self, func: Any) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise PlanError(
                f"{self.here()} draws random numbers ({func.overloadpacket.__name__}): chunks of "
                "one array would not go together. Call model.eval(), or leave it out."
            )
        if func._schema.is_mutable:
            raise PlanError(
                f"{self.here()} writes into an array that it has made "
                f"({func.overloadpacket.__name__}), which cannot be laid out by chunks; use "
                'torch.cat or torch.where there, or strategy="data".'
            )

    def _outputs(self, node: Node, made: Any, given: Sequence[Tensor]) -> None:
        if isinstance(made, Tensor):
            self._spelled(spell(replace(node, shape=tuple(made.shape), dtype=made.dtype)), made)
            return
        if not isinstance(made, tuple | list):
            raise PlanError(
                f"{self.here()} takes a number out of an array ({node.title}) to decide what to "
                'compute; use strategy="data", which calls the model as it is.'
            )
        for item, x in enumerate(made):
            if isinstance(x, Tensor):
                one = replace(node, shape=tuple(x.shape), dtype=x.dtype, item=item)
                self._spelled(spell(one), x)

    def _spelled(self, nodes: Sequence[Node], made: Tensor) -> None:
        """Note the operations that an operation comes to; they refer to each other from -1 back."""
        first = len(self.nodes)
        for node in nodes:
            done = node.renumbered(lambda number: first - number - 1 if number < 0 else number)
            stand_in = made if node is nodes[-1] else torch.empty(0, device="meta")
            self._note(stand_in, done)

    def network(self) -> Network:
        """Return what has been noted."""
        last = self.nodes[-1]
        if last.kind != "aten.clone":
            raise PlanError(f"The output of {self.name} does not depend on its input.")
        return linked(Network(tuple(self.nodes), self.inputs, last.refs[0], self.constants))


def _shape_only(x: Tensor) -> Tensor:
    return x if x.is_meta else torch.empty_like(x, device="meta")
