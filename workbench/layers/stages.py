"""A model that is run stage by stage: what a stage is sent, and what it makes once more itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils import _pytree as pytree

from workbench.errors import RunError
from workbench.layers.ghosts import META, Ghost, Made, Uncarried, modes
from workbench.layers.trace import Record, Spec, all_tensors
from workbench.plan.stages import Call, Source

Receive = Callable[[Source, Spec], Tensor]
Shape = tuple[int, ...]
Own = Callable[[Source, Shape], Shape]
"""Given the shape of the whole of something: that of the rank's share."""


class _Done(BaseException):
    """The next stage begins here."""


class Stages:
    """A model that can be run stage by stage; modules get a ``forward`` that knows of the stages.

    Parameters
    ----------
    entries:
        The call with which each stage after the first one begins.
    device:
        Where the stages compute.
    own:
        What shape shares have; those of the whole if left out.

    Attributes
    ----------
    real:
        Whether the pass has come to the stage that is run.
    captured:
        What the last pass has in its hands of what was wanted of it.
    drawn:
        How often code has drawn random numbers; who watches that counts here.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: Mapping[Call, Record],
        entries: Sequence[Call],
        device: torch.device,
        own: Own = lambda source, whole: whole,
    ) -> None:
        self.model, self.calls, self.entries, self.device = model, calls, tuple(entries), device
        self.own = own
        self.begins = [-1, *(calls[entry].enter for entry in entries)]
        self._stage_at = {entry: number for number, entry in enumerate(entries, start=1)}
        self.ends = [*self.begins[1:], 10**9]
        self.stage, self.samples, self.real = 0, 1, True
        self.drawn = 0
        self.modes = modes()
        self.receive: Receive = _nobody
        self.wanted: frozenset[Source] = frozenset()
        self._wanted_of: set[Call] = set()
        self.captured: dict[Source, Tensor] = {}
        self._received: dict[Source, Tensor] = {}
        # The last stage whose code has written to memory of ghosts; which is kept, to be known.
        self._written: dict[int, tuple[int, UntypedStorage]] = {}
        self._moment = -1
        self._counts: dict[str, int] = {}
        called = {call.module for call in calls}
        for name, module in list(model.named_modules()):
            if name in called:
                module.forward = self._around(name, module.forward)

    def stage_of(self, source: Source) -> int:
        """Return the stage that has ``source``."""
        if source.end == "argument":
            return self.entries.index(source.call)
        moment = self.calls[source.call].exit
        return max(n for n, begin in enumerate(self.begins) if begin < moment)

    def run(
        self,
        stage: int,
        inputs: Sequence[Tensor],
        receive: Receive,
        wanted: frozenset[Source] = frozenset(),
    ) -> Any:
        """Run one stage; returns the model's output for the last one, None for others."""
        self.stage, self.real, self.samples = stage, stage == 0, len(inputs[0])
        self.receive, self.wanted = receive, wanted
        self._wanted_of = {source.call for source in wanted}
        self.captured, self._received, self._counts = {}, {}, {}
        self._written, self._moment, self.drawn = {}, -1, 0
        self.modes = modes()
        try:
            return self.model(*inputs)
        except _Done:
            return None

    def materialized(self, value: Any) -> Any:
        """Return ``value`` with every ghost in it replaced by the real tensor."""
        return pytree.tree_map_only(Ghost, self._real, value)

    def _real(self, ghost: Ghost) -> Tensor:
        """Return a ghost's real tensor: received, or made of such by what code has done."""
        waiting = [ghost]
        while waiting:
            last = waiting[-1]
            needed: list[Ghost] = []
            if last.found is None and not self._is_sent(last):
                given = self._making(last).given
                needed = [x for x, _ in given if isinstance(x, Ghost) and x.found is None]
            if needed:
                waiting += needed
                continue
            waiting.pop()
            if last.found is None:
                with torch._C.DisableTorchFunction():  # nobody takes it for what model code does
                    real = self._received_of(last) if self._is_sent(last) else self._remade(last)
                    last.found = real, real._version
        assert ghost.found is not None
        return ghost.found[0]

    def _is_sent(self, ghost: Ghost) -> bool:
        """Return whether a stage has what this ghost stands for when it sends it."""
        if ghost.source is None or ghost.spec is None or not ghost.spec.size.counts:
            return False
        # What is sent is what the stage has at its end.
        written, _ = self._written.get(ghost.memory._cdata, (-1, None))
        return written <= self.stage_of(ghost.source)

    def _received_of(self, ghost: Ghost) -> Tensor:
        source, spec = ghost.source, ghost.spec
        assert source is not None
        assert spec is not None
        if source not in self._received:
            self._received[source] = self.receive(source, spec)
        return self._received[source]

    def _making(self, ghost: Ghost) -> Made:
        """Return how a ghost was made, if that can be done once more."""
        why = "computed between two modules"
        if ghost.memory._cdata in self._written:
            why = "written to between two modules"
        elif ghost.drawn:
            why = "drawn at random between two modules"
        elif ghost.made is not None:
            return ghost.made
        raise Uncarried(
            f"a value of shape {tuple(ghost.shape)} that stage {self.stage} needs is {why}"
        )

    def _remade(self, ghost: Ghost) -> Tensor:
        """Compute what code has computed between modules of earlier stages."""
        made = self._making(ghost)
        if made.values is None:
            for x, version in made.given:
                now = x.found if isinstance(x, Ghost) else None
                if x._version != version or (now is not None and now[0]._version != now[1]):
                    raise Uncarried(
                        f"a value of shape {tuple(ghost.shape)} that stage {self.stage} needs is "
                        "made between two modules of what is written to afterwards"
                    )
            if modes()[1:] != self.modes[1:]:
                raise Uncarried(
                    f"a value of shape {tuple(ghost.shape)} is made outside of an autocast that "
                    "needs it"
                )
            args, kwargs = pytree.tree_map_only(Ghost, self._real, made.arguments)
            with torch.set_grad_enabled(self.modes[0]):
                made.values = all_tensors(made.func(*args, **kwargs))
        return made.values[ghost.place]

    def note_write(self, x: Tensor) -> None:
        """Note that code between modules of earlier stages has written to a tensor."""
        if not isinstance(x, Ghost):
            raise Uncarried(
                f"an array of shape {tuple(x.shape)} is filled between two modules with what only "
                "earlier stages have"
            )
        now = max(n for n, begin in enumerate(self.begins) if begin <= self._moment)
        self._written[x.memory._cdata] = (now, x.memory)

    def _around(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(name, self._counts.get(name, 0))
            self._counts[name] = call.number + 1
            record = self.calls.get(call)
            if record is None:
                raise RunError(
                    f"Module {name!r} is called more often than when the plan was made; the "
                    "model's code takes another way. Use data or tensor."
                )
            number = self._stage_at.get(call)
            if number is not None:
                if number == self.stage + 1:
                    self._capture(call, "argument", (args, kwargs))
                    raise _Done
                _name_arguments(call, record, (args, kwargs))
                if number == self.stage:
                    self.real = True
            self._moment = record.enter
            if not self.real and record.exit < self.begins[self.stage]:
                self._moment = record.exit
                if record.writes:
                    given = all_tensors((args, kwargs))
                    for x in (given[place] for place in record.writes):
                        if isinstance(x, Ghost):
                            self.note_write(x)
                for inner in record.inside:
                    self._counts[inner] = self._counts.get(inner, 0) + 1
                return self._stand_in(call, record)
            if self.real and (kwargs or any(type(x) is not Tensor for x in args)):
                args, kwargs = self.materialized((args, kwargs))
            result = own(*args, **kwargs)
            self._moment = record.exit
            if self.real:
                self._capture(call, "result", result)
            return result

        return forward

    def _stand_in(self, call: Call, record: Record) -> Any:
        """Return ghosts for what a call of an earlier stage returns."""
        if record.result is Tensor:
            return self._ghost(record.results[0], Source(call, "result"))
        leaves, tree = pytree.tree_flatten(record.result)
        specs, place = iter(record.results), 0
        for index, leaf in enumerate(leaves):
            if leaf is Tensor:
                leaves[index] = self._ghost(next(specs), Source(call, "result", place))
                place += 1
        return pytree.tree_unflatten(leaves, tree)

    def _ghost(self, spec: Spec, source: Source) -> Ghost:
        own = self.own(source, spec.size.of(self.samples))
        shape = torch.empty(own, dtype=spec.dtype, device=META)
        found = Ghost.of(shape, self, source)
        found.spec = spec
        return found

    def _capture(self, call: Call, end: Any, value: Any) -> None:
        if call not in self._wanted_of:
            return
        for place, x in enumerate(all_tensors(value)):
            source = Source(call, end, place)
            if source in self.wanted:
                self.captured[source] = self._real(x) if isinstance(x, Ghost) else x


def _name_arguments(call: Call, record: Record, given: Any) -> None:
    """Let ghosts that enter a stage be known by that, if by nothing else."""
    for place, (x, spec) in enumerate(zip(all_tensors(given), record.arguments, strict=True)):
        if isinstance(x, Ghost) and x.source is None:
            x.source, x.spec = Source(call, "argument", place), spec


def _nobody(source: Source, spec: Spec) -> Tensor:
    raise RunError(f"The first stage receives nothing, and was asked for the {source}.")
