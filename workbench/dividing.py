"""Divide a model into the stages of a pipeline: where it is cut, and what crosses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import TYPE_CHECKING

import torch

from workbench.layers.draws import Draws
from workbench.layers.ghosts import Uncarried
from workbench.layers.stages import Stages
from workbench.layers.trace import Spec, Trace
from workbench.nearest import Undivided
from workbench.plan.stages import Call, Crossing, Source, Stage
from workbench.split_at import named
from workbench.strategies.pipeline import Fits, balance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.mesh import Mesh
    from workbench.profile import Profile
    from workbench.traced import Layer

FLOPS_PER_NUMBER = 8
"""What a number of a layer's output costs beside its FLOPs: memory, not arithmetic, limits most."""

MOST_SETS, MOST_TRIED = 2000, 32
"""So many sets of cuts are compared, and tried, where cuts one by one have been refused."""

AS_GOOD = 1.15
"""Modules further inside are cut only if that makes the slowest stage this much faster."""


@dataclass(frozen=True)
class Divided:
    """Stages, what crosses between them, and which stages need each parameter and buffer."""

    stages: tuple[Stage, ...]
    crossings: tuple[Crossing, ...]
    held: tuple[tuple[str, tuple[int, ...]], ...]


def divide(
    model: nn.Module,
    inputs: Sequence[Tensor],
    found: Profile,
    mesh: Mesh,
    chunks: int = 1,
    split_at: str = "",
    times: Mapping[Call, float] | None = None,
    room: Room | None = None,
    entries: Sequence[Call] = (),
) -> Divided:
    """Cut ``model`` into stages of about equal cost, each between two calls of modules.

    Parameters
    ----------
    chunks:
        Stages of each rank along the pipeline.
    split_at:
        Names of the modules with which stages begin, instead of the best that there are.
    times:
        Seconds of the calls of layers, to be balanced instead of what is counted.
    room:
        What a rank may keep. Where no division would do, one is made as if there were no limit.
    entries:
        The calls with which stages begin, where an earlier division has chosen them.

    Raises
    ------
    Undivided
        If there are not so many pieces.
    PlanError
        If a named module is none, or what crosses cannot be carried.
    """
    divider = _Divider(model, inputs, found, mesh, chunks, times, room)
    return divider.at(entries) if entries else divider.divide(split_at)


@dataclass(frozen=True)
class Room:
    """What a rank may keep, and of what: about, as layers that are cut keep less than that.

    Attributes
    ----------
    limit_bytes:
        For one stage.
    per_parameter:
        How often a parameter is kept: by itself, its gradient, and what the optimizer has of it.
    in_flight:
        By stage, how many micro-batches keep activations at a time.
    rows:
        Samples of a micro-batch.
    """

    limit_bytes: int
    per_parameter: int
    in_flight: tuple[int, ...]
    rows: int


class _Divider:
    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        found: Profile,
        mesh: Mesh,
        chunks: int,
        times: Mapping[Call, float] | None,
        room: Room | None,
    ) -> None:
        self.times, self.room = times, room
        self.model, self.inputs, self.layers, self.mesh = model, inputs, found.layers, mesh
        self.exposed = found.exposed
        self.ranks = mesh.degree("pipeline")
        self.count = self.ranks * chunks
        self.trace = Trace(model, inputs)
        self.calls = self.trace.calls
        self.places = self._places()
        called = [
            (layer, place)
            for layer, place in zip(self.layers, self.places, strict=True)
            if place is not None and place.module and (_computes(layer) or not self._around(place))
        ]
        self.costs = [(self.calls[place].enter, _cost(layer)) for layer, place in called]
        self.times_ns = [
            (self.calls[place].enter, round(1e9 * (times or {}).get(place, 0.0)))
            for _, place in called
        ]
        rows = room.rows if room else 1
        self.parameters = [(self.calls[p].enter, layer.parameter_bytes) for layer, p in called]
        self.saved = [(self.calls[p].enter, self._saved(layer, rows)) for layer, p in called]

    def _around(self, place: Call) -> bool:
        """Return whether other modules are called inside of a call."""
        return bool(self.calls[place].inside)

    def divide(self, split_at: str) -> Divided:
        if split_at:
            return self.at(named(self, split_at))
        return self.best({})

    def best(self, refused: Mapping[Call, str]) -> Divided:
        """Return the best division of which all can be carried, without the entries refused."""
        bad = dict(refused)
        while True:
            try:
                entries = self._balanced(bad)
            except Undivided:
                for others in self._together(refused) if len(bad) > len(refused) else ():
                    with suppress(Uncarried):
                        return self.at(others)
                raise
            try:
                return self.at(entries)
            except Uncarried as error:
                bad[entries[error.stage - 1]] = str(error)

    def _together(self, refused: Mapping[Call, str]) -> list[tuple[Call, ...]]:
        """Return sets of entries, the best first: where one can be may hang on where others are."""
        usable = [call for call in self.candidates() if call not in refused]
        if self.count < 3 or comb(len(usable), self.count - 1) > MOST_SETS:
            return []
        sets = combinations(usable, self.count - 1)
        return sorted(sets, key=lambda entries: max(self._pieces(entries, self.costs)))[:MOST_TRIED]

    def _places(self) -> list[Call | None]:
        """Return the call that each layer of the profile is; None for one that is never called."""
        counts: dict[str, int] = {}
        names = {call.module for call in self.calls}
        found: list[Call | None] = []
        for layer in self.layers:
            name = layer.name if layer.name in names else ""
            found.append(Call(name, counts.get(name, 0)) if layer.arguments else None)
            counts[name] = counts.get(name, 0) + bool(layer.arguments)
        return found

    def candidates(self) -> list[Call]:
        """Return the calls at which a stage may begin: of several at one place the outermost.

        Before and after each there is a layer, and no layer is cut inside.
        """
        records = [self.calls[place] for place in self.places if place and place.module]
        whole = [r for r in records if not any(r.enter < o.enter < r.exit for o in records)]
        moments = sorted(record.enter for record in whole)
        found: dict[int, Call] = {}
        for call, record in self.calls.items():
            inside = any(layer.enter < record.enter < layer.exit for layer in whole)
            before = sum(moment < record.enter for moment in moments)
            if call.module and not inside and 0 < before < len(moments):
                found.setdefault(before, call)
        return [found[before] for before in sorted(found)]

    def _balanced(self, refused: Mapping[Call, str], limited: bool = True) -> list[Call]:
        """Return the entries that make the slowest stage fastest, not far inside of modules."""
        candidates = self.candidates()
        usable = [call for call in candidates if call not in refused]
        most = len(usable) + 1
        if most < self.count:
            why = next((why for why in refused.values() if why), "")
            raise Undivided(
                f"{self.mesh} asks for {self.count} stages, and the model can be cut into {most} "
                f"at most{f', since elsewhere {why}' if why else ''}",
                self.ranks,
                self.count // self.ranks,
                most,
            )
        slowest: dict[int, tuple[int, list[Call]]] = {}
        for depth in sorted({call.module.count(".") for call in usable}):
            shallow = [call for call in usable if call.module.count(".") <= depth]
            if len(shallow) >= self.count - 1:
                pieces = self._pieces(shallow, self.times_ns if self.times else self.costs)
                chosen = balance(pieces, self.count, self._fits(shallow) if limited else None)
                if chosen is None:
                    continue
                bounds = [0, *chosen, len(pieces)]
                worst = max(sum(pieces[a:b]) for a, b in pairwise(bounds))
                slowest[depth] = worst, [shallow[cut - 1] for cut in chosen]
        if not slowest:
            return self._balanced(refused, limited=False)
        fastest = min(worst for worst, _ in slowest.values())
        return next(entries for worst, entries in slowest.values() if worst <= AS_GOOD * fastest)

    def _pieces(self, candidates: Sequence[Call], costs: Sequence[tuple[int, int]]) -> list[int]:
        """Return what lies before, between and after the candidates costs."""
        edges = [-1, *(self.calls[call].enter for call in candidates), 10**9]
        return [
            sum(cost for moment, cost in costs if first <= moment < last)
            for first, last in pairwise(edges)
        ]

    def _fits(self, candidates: Sequence[Call]) -> Fits | None:
        """Return what tells whether a stage may have the pieces between two candidates."""
        room = self.room
        if room is None:
            return None
        parameters = self._pieces(candidates, self.parameters)
        saved = self._pieces(candidates, self.saved)

        def fits(part: int, begin: int, end: int) -> bool:
            kept = room.per_parameter * sum(parameters[begin:end])
            return kept + room.in_flight[part] * sum(saved[begin:end]) <= room.limit_bytes

        return fits

    def _saved(self, layer: Layer, rows: int) -> int:
        """Return the bytes that a layer keeps for the backward pass of a micro-batch."""
        batch = len(self.inputs[0])
        return sum(
            array.numel * array.itemsize * (rows if array.shape[:1] == (batch,) else batch) // batch
            for array in layer.saved
        )

    def at(self, entries: Sequence[Call]) -> Divided:
        """Run every stage without computing, to see what it needs of earlier ones."""
        device = self.trace.device
        stages = Stages(self.trace.copy(self.model), self.calls, entries, device)
        crossings: list[Crossing] = []
        inputs = [torch.zeros_like(x, device=device) for x in self.inputs]

        def receive(source: Source, spec: Spec) -> Tensor:
            crossings.append(
                Crossing(
                    source,
                    stages.stage_of(source),
                    stages.stage,
                    spec.size,
                    str(spec.dtype).removeprefix("torch."),
                    spec.dtype.itemsize,
                    spec.gradient,
                )
            )
            made = torch.zeros(spec.size.of(len(inputs[0])), dtype=spec.dtype, device=device)
            return made.requires_grad_(spec.gradient).clone()

        for number in reversed(range(self.count)):
            wanted = frozenset(c.source for c in crossings if c.start == number)
            try:
                with torch.enable_grad(), Draws(stages):
                    stages.run(number, inputs, receive, wanted)
            except Uncarried as error:
                error.stage = max(1, number)
                raise
            if missing := wanted - set(stages.captured):
                lost = Uncarried(f"the {next(iter(missing))} is not at hand where it is needed")
                lost.stage = number + 1
                raise lost
        crossings.sort(key=lambda c: (c.stop, c.start))
        return Divided(self._stages(stages), tuple(crossings), tuple(self._held(stages)))

    def _span(self, stages: Stages, place: Call) -> range:
        """Return the stages through which a call goes."""
        record = self.calls[place]
        first, last = (
            max(n for n, begin in enumerate(stages.begins) if begin <= moment)
            for moment in (record.enter, record.exit)
        )
        return range(first, last + 1)

    def _stages(self, stages: Stages) -> tuple[Stage, ...]:
        found = []
        pieces = self._pieces(stages.entries, self.costs)
        times_ns = self._pieces(stages.entries, self.times_ns)
        for number, cost in enumerate(pieces):
            mine = tuple(
                index
                for index, place in enumerate(self.places)
                if place is not None and place.module and number in self._span(stages, place)
            )
            entry = stages.entries[number - 1] if number else None
            cost_s = times_ns[number] / 1e9 if self.times else None
            found.append(Stage(number, entry, mine, cost, cost_s))
        return tuple(found)

    def _held(self, stages: Stages) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Say which ranks along the pipeline need which parameter or buffer.

        What code outside of modules reads all of them have.
        """
        everywhere = tuple(range(self.ranks))
        by_layer: dict[str, set[int]] = {}
        for layer, place in zip(self.layers, self.places, strict=True):
            if place is not None:
                ranks = {number % self.ranks for number in self._span(stages, place)}
                by_layer.setdefault(layer.name, set()).update(ranks)
        arrays: dict[str, set[int]] = {}
        for layer in self.layers:
            name = layer.name
            while name and name not in by_layer:
                name = name.rpartition(".")[0]
            needed = by_layer.get(name, set(everywhere))
            prefix = layer.name if layer.name in by_layer or layer.parameters else ""
            state = [array.name for array in (*layer.parameters, *layer.tied)]
            state += [f"{prefix}.{buffer.name}".lstrip(".") for buffer in layer.buffers]
            for each in state:
                arrays.setdefault(each, set()).update(needed)
        for name, ranks in arrays.items():
            yield name, (everywhere if name in self.exposed else tuple(sorted(ranks)))


def _computes(layer: Layer) -> bool:
    """Return whether a layer does anything by itself, other than to make whole what is inside."""
    return bool(layer.forward_flops or layer.parameters)


def _cost(layer: Layer) -> int:
    return layer.forward_flops + FLOPS_PER_NUMBER * sum(r.numel for r in layer.results)
