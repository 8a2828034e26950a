"""A rank's part of a pipeline: the actions of a schedule, and what travels between stages."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import RunError
from workbench.generators import Moment
from workbench.layers.groups import Groups
from workbench.layers.recomputing import Repeats
from workbench.layers.stages import Stages
from workbench.layers.trace import Record, Spec
from workbench.layers.weight_gradients import WeightGradients
from workbench.plan import Plan
from workbench.plan.memory import TOGETHER
from workbench.plan.stages import Call, Crossing, Source
from workbench.schedules import SCHEDULES, Action
from workbench.strategies.pipeline import AXIS

Key = tuple[int, int, bool]
"""A message: number of the crossing, micro-batch, and whether it is the gradient that goes back."""

Finish = Callable[[int, Any], list[Tensor]]
"""Given a micro-batch and the model's output: what backward begins with."""


@dataclass
class _Kept:
    """What a stage keeps of a micro-batch from its forward to its backward pass."""

    sent: dict[int, Tensor] = field(default_factory=dict)
    leaves: dict[int, Tensor] = field(default_factory=dict)
    ends: list[Tensor] = field(default_factory=list)
    late: WeightGradients.Queue = field(default_factory=list)
    then: Moment | None = None


class Pipeline:
    """Runs the stages of one rank, as the plan's schedule says.

    Parameters
    ----------
    calls:
        Those of the model's modules, as traced before it was made parallel.
    weights:
        Where layers leave the gradients of their weights.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        groups: Groups,
        calls: Mapping[Call, Record],
        weights: WeightGradients,
        device: torch.device,
    ) -> None:
        self.plan, self.comm, self.device = plan, groups.over(AXIS), device
        self.weights = weights
        entries = [stage.entry for stage in plan.stages if stage.entry is not None]
        self.rank = groups.rank
        self.shapes: dict[tuple[Source, tuple[int, ...]], tuple[int, ...]] = {}
        self.stages = Stages(model, calls, entries, device, self._own)
        self.ranks, self.last = plan.mesh.degree(AXIS), len(plan.stages) - 1
        self.place = plan.mesh.place(groups.rank, AXIS)
        schedule = SCHEDULES[plan.option("schedule", "1f1b")]
        chunks = len(plan.stages) // self.ranks
        self.lists = schedule.actions(self.ranks, chunks, plan.batch.accumulate)
        # The proof of a comparison runs the same plan in float64.
        real = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.real = next(real, torch.get_default_dtype())
        again = plan.option("recompute", "no") == "yes"
        self.repeats = Repeats(model, device) if again else None
        self.wanted = [
            frozenset(c.source for c in plan.crossings if c.start == stage.number)
            for stage in plan.stages
        ]
        self.numbers = {(c.source, c.stop): n for n, c in enumerate(plan.crossings)}
        # Gradients of weights that wait for those of more micro-batches, by stage.
        self.late: dict[int, WeightGradients.Queue] = {stage.number: [] for stage in plan.stages}
        self.waiting: Counter[int] = Counter()
        self.counts = True
        drop_what_others_have(model, plan, groups.rank)

    def run(
        self,
        inputs: Mapping[int, Sequence[Tensor]],
        begin: Callable[[int], bool],
        finish: Finish,
    ) -> None:
        """Go forward and backward with the inputs of all micro-batches, by their number.

        ``begin`` is told which is next, and says whether its gradients count. Some of the gradients
        of weights are left, see :meth:`work_off`.
        """
        self.inputs, self.begin, self.finish = inputs, begin, finish
        self.kept: dict[tuple[int, int], _Kept] = {}
        self.arrived: dict[Key, Tensor] = {}
        self.coming = {
            peer: deque(key for to, key in self._posts(peer) if to == self.place)
            for peer in range(self.ranks)
            if peer != self.place
        }
        do = {
            "forward": self._forward,
            "backward": self._backward,
            "input": self._backward,
            "weight": self._weight,
        }
        for action in self._actions(self.place):
            self.counts = begin(action.micro)
            do[action.kind](action)
        self.comm.settle()

    def work_off(self) -> None:
        """Work out the gradients of weights that are left, of micro-batches that all count."""
        for late in self.late.values():
            self.weights.work_off(late)
        self.waiting.clear()

    def _actions(self, place: int) -> Iterator[Action]:
        return (action for action in self.lists[place] if action.micro in self.inputs)

    def _posts(self, place: int) -> Iterator[tuple[int, Key]]:
        """Yield all messages that the rank at ``place`` sends, in order, each with its receiver."""
        for action in self._actions(place):
            for number, crossing in enumerate(self.plan.crossings):
                here, there = crossing.start % self.ranks, crossing.stop % self.ranks
                if here == there:
                    continue
                if action.kind == "forward" and crossing.start == action.stage:
                    yield there, (number, action.micro, False)
                back = action.kind in ("backward", "input") and crossing.stop == action.stage
                if back and crossing.gradient:
                    yield here, (number, action.micro, True)

    def _post(self, key: Key, tensor: Tensor) -> None:
        crossing = self.plan.crossings[key[0]]
        to = (crossing.start if key[2] else crossing.stop) % self.ranks
        name = crossing.gradient_name if key[2] else crossing.name
        if to == self.place:
            self.arrived[key] = tensor
        else:
            self.comm.post(tensor.contiguous(), to, name=name)

    def _take(self, key: Key) -> Tensor:
        """Return a message; those that its sender has sent before it are put aside."""
        crossing = self.plan.crossings[key[0]]
        source = (crossing.stop if key[2] else crossing.start) % self.ranks
        while key not in self.arrived:
            following = self.coming[source].popleft()
            number, micro, back = following
            found = self.plan.crossings[number]
            shape = self._own(found.source, found.size.of(len(self.inputs[micro][0])))
            dtype: torch.dtype = getattr(torch, found.dtype)
            if dtype.is_floating_point and not self.plan.low:
                dtype = self.real
            room = torch.empty(shape, dtype=dtype, device=self.device)
            name = found.gradient_name if back else found.name
            self.arrived[following] = self.comm.take(room, source, name=name)
        return self.arrived.pop(key)

    def _forward(self, action: Action) -> None:
        kept = self.kept[action.stage, action.micro] = _Kept()
        if self.repeats is None or action.stage == self.last:
            captured = self._compute(action, kept)
        else:
            with self.repeats.first() as kept.then:
                captured = self._compute(action, kept)
        for number, crossing in enumerate(self.plan.crossings):
            if crossing.start == action.stage:
                sent = captured[crossing.source]
                self._check(action.micro, crossing, sent)
                self._post((number, action.micro, False), sent.detach())
                if crossing.gradient:
                    kept.sent[number] = sent

    def _own(self, source: Source, whole: tuple[int, ...]) -> tuple[int, ...]:
        own = self.shapes.get((source, whole))
        if own is None:
            own = self.shapes[source, whole] = self.plan.passed_shape(source, whole, self.rank)
        return own

    def _check(self, micro: int, crossing: Crossing, sent: Tensor) -> None:
        """Check that the next stage gets what it makes room for."""
        planned = self._own(crossing.source, crossing.size.of(len(self.inputs[micro][0])))
        if tuple(sent.shape) != planned:
            raise RunError(
                f"Stage {crossing.stop} gets the {crossing.source} with shape {tuple(sent.shape)} "
                f"of rank {self.rank}, where the plan has {planned}. Let that array not be made of "
                "numbers that code gives, or cut the model elsewhere (split_at).",
                rank=self.rank,
            )

    def _compute(self, action: Action, kept: _Kept) -> dict[Source, Tensor]:
        """Run the stage; what it receives, or has received before, are the leaves of its graph."""

        def receive(source: Source, spec: Spec) -> Tensor:
            number = self.numbers[source, action.stage]
            leaf = kept.leaves.get(number)
            if leaf is None:
                leaf = self._take((number, action.micro, False))
                kept.leaves[number] = leaf.requires_grad_(spec.gradient)
            # Code may write into what it is given, but not into a leaf.
            return leaf.clone() if leaf.requires_grad else leaf

        given, wanted = self.inputs[action.micro], self.wanted[action.stage]
        output = self.stages.run(action.stage, given, receive, wanted)
        if action.stage == self.last:
            kept.ends = self.finish(action.micro, output)
        return self.stages.captured

    def _backward(self, action: Action) -> None:
        kept = self.kept[action.stage, action.micro]
        if kept.then is not None:
            self._compute_again(action, kept, kept.then)
        ends: list[Tensor] = []
        grads: list[Tensor] = []
        for end in kept.ends:
            ends.append(end)
            grads.append(torch.ones_like(end) if end.dim() == 0 else torch.zeros_like(end))
        for number, sent in kept.sent.items():
            grad = self._take((number, action.micro, True))
            if sent.requires_grad:
                ends.append(sent)
                grads.append(grad)
        late = kept.late if action.kind == "input" else self.late[action.stage]
        with self.weights.collecting(late if action.kind == "input" or self.counts else None):
            if ends:
                torch.autograd.backward(ends, grads)
        for number, leaf in kept.leaves.items():
            if self.plan.crossings[number].gradient:
                grad = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
                self._post((number, action.micro, True), grad)
        if action.kind == "backward":
            del self.kept[action.stage, action.micro]
            self.waiting[action.stage] += self.counts
            if self.counts and self.waiting[action.stage] == TOGETHER:
                self.weights.work_off(late)
                self.waiting[action.stage] = 0
        else:
            kept.sent, kept.leaves, kept.ends = {}, {}, []

    def _weight(self, action: Action) -> None:
        self.weights.work_off(self.kept.pop((action.stage, action.micro)).late)

    def _compute_again(self, action: Action, kept: _Kept, then: Moment) -> None:
        """Recompute activations (Chen et al., 2016) as they were the first time."""
        assert self.repeats is not None
        with self.repeats.again(then):
            captured = self._compute(action, kept)
        for number in kept.sent:
            kept.sent[number] = captured[self.plan.crossings[number].source]


def drop_what_others_have(model: nn.Module, plan: Plan, rank: int) -> None:
    """Let go of the parameters of layers that are on other ranks; their names and shapes stay."""
    mine = {id(p) for name, p in model.named_parameters() if plan.holds(name, rank)}
    gone: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for attribute, held in list(module._parameters.items()):
            if held is not None and id(held) not in mine:
                empty = nn.Parameter(torch.empty_like(held, device="meta"), requires_grad=False)
                module._parameters[attribute] = gone.setdefault(id(held), empty)
