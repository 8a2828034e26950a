"""Pipeline schedules: in which order each rank works on its stages and the micro-batches.

A schedule is a list of actions for each rank, done in order, each as soon as what it needs of the
neighbouring stages is there. In every schedule each stage takes the micro-batches in ascending
order, forward and backward, so that all of them add up gradients in the same order.

Pure: imports nothing of torch, dask or the UI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from math import isclose
from typing import Literal

Kind = Literal["forward", "backward", "input", "weight"]
"""A "backward" is done at once or in halves: the gradient of the stage's inputs, for which the
stage before waits, and that of its weights, for which nobody waits."""


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work. Stages count from 0, and stage ``s`` lives on rank ``s % ranks``."""

    kind: Kind
    stage: int
    micro: int


Lists = tuple[tuple[Action, ...], ...]
Actions = Sequence[Sequence[Action]]
"""The list of each rank: what a schedule returns, and what the functions below take."""

Timeline = tuple[tuple[tuple[float, float, Action], ...], ...]
"""For each rank, in order: when an action starts and stops, in seconds, and the action."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A way to order the work of a pipeline.

    Attributes
    ----------
    name, title, summary:
        As it is written in a strategy, as it is shown, and what it does, with the paper.
    splits_backward, chunked:
        Whether the halves of a backward are actions of their own, and whether each rank has two
        or more chunks of layers instead of exactly one.
    order:
        The actions of one rank, given the rank, all ranks, the chunks and the micro-batches.
    """

    name: str
    title: str
    summary: str
    splits_backward: bool
    chunked: bool
    order: Callable[[int, int, int, int], Iterator[Action]]

    def allows(self, chunks: int) -> bool:
        """Return whether each rank may have that many chunks of layers."""
        return chunks >= 2 if self.chunked else chunks == 1

    def actions(self, ranks: int, chunks: int, micro_batches: int) -> Lists:
        """Return the actions of each rank, in order."""
        if ranks < 1 or micro_batches < 1:
            raise ValueError(f"no pipeline of {ranks} ranks and {micro_batches} micro-batches")
        if not self.allows(chunks):
            wanted = "two or more chunks" if self.chunked else "one chunk"
            raise ValueError(f"{self.title} needs {wanted} per rank; got {chunks}")
        return tuple(tuple(self.order(r, ranks, chunks, micro_batches)) for r in range(ranks))

    def bubble(self, ranks: int, chunks: int, micro_batches: int) -> tuple[float, str]:
        """Return the idle share of the time with equal stages, and the formula that gives it.

        A third each of a stage's time counts as forward, gradients of inputs and gradients of
        weights. The formulas are those of Narayanan et al. (2021, section 2.2) for chunks and of
        Qi et al. (2024, section 2) for ZB-H1. They hold for whole rounds, of as many micro-batches
        as ranks; else the share is that of the lists of actions.
        """
        one = [1.0] * (ranks * chunks)
        found = bubble(timeline(self.actions(ranks, chunks, micro_batches), one, one, one))
        times = 3 if self.splits_backward else chunks
        if not isclose(found, ideal_bubble(ranks, micro_batches, times)):
            return found, "counted from its actions"
        return found, f"(p - 1) / ({f'{times} m' if times > 1 else 'm'} + p - 1)"


def _all(kind: Kind, stage: int, micros: int) -> list[Action]:
    return [Action(kind, stage, micro) for micro in range(micros)]


def _alternate(fore: Sequence[Action], back: Sequence[Action], warm_up: int) -> Iterator[Action]:
    """Yield ``warm_up`` forwards, then one forward and one backward in turn, then the rest."""
    yield from fore[:warm_up]
    for index, backward in enumerate(back, start=warm_up):
        yield from fore[index : index + 1]
        yield backward


def _gpipe(rank: int, ranks: int, chunks: int, micros: int) -> Iterator[Action]:
    return _alternate(_all("forward", rank, micros), _all("backward", rank, micros), micros)


def _1f1b(rank: int, ranks: int, chunks: int, micros: int) -> Iterator[Action]:
    fore, back = _all("forward", rank, micros), _all("backward", rank, micros)
    return _alternate(fore, back, ranks - 1 - rank)


def _interleaved(rank: int, ranks: int, chunks: int, micros: int) -> Iterator[Action]:
    """Take the micro-batches in rounds of as many as there are ranks, each through all chunks.

    The paper wants whole rounds. A last round that is short is ordered as if it were whole, and
    what it lacks is left out. That is safe: no micro-batch waits for the results of another.
    """
    fore, back = [], []
    for first, chunk in product(range(0, micros, ranks), range(chunks)):
        for micro in range(first, first + ranks):
            fore.append(Action("forward", chunk * ranks + rank, micro))
            back.append(Action("backward", (chunks - 1 - chunk) * ranks + rank, micro))
    warm_up = 2 * (ranks - 1 - rank) + (chunks - 1) * ranks
    return (action for action in _alternate(fore, back, warm_up) if action.micro < micros)


def _zb_h1(rank: int, ranks: int, chunks: int, micros: int) -> Iterator[Action]:
    """Take forwards and input halves as 1F1B does, and weight halves ``rank`` steps later.

    So rank ``r`` of ``p`` keeps ``p - r`` micro-batches whole, as 1F1B does, and of ``r`` more
    what the weight halves need (the paper, section 2.1): at most ``p`` on every rank.
    """
    inputs = _all("input", rank, micros)
    for action in _alternate(_all("forward", rank, micros), inputs, ranks - 1 - rank):
        yield action
        if action.kind == "input" and action.micro >= rank:
            yield Action("weight", rank, action.micro - rank)
    yield from _all("weight", rank, micros)[max(0, micros - rank) :]


_GPIPE = """All forwards, then all backwards: every micro-batch is in memory at once. Huang et al.,
"GPipe: Efficient training of giant neural networks using pipeline parallelism", 2019."""
_1F1B = """One forward, one backward in turn: as fast as GPipe, with at most as many micro-batches
in memory as there are ranks. Narayanan et al., "Memory-efficient pipeline-parallel DNN training"
(PipeDream-Flush), 2021."""
_INTERLEAVED = """Each rank has several chunks of layers: less idle time, more messages and memory.
Narayanan et al., "Efficient large-scale language model training on GPU clusters using
Megatron-LM", 2021."""
_ZB_H1 = """1F1B with each backward in halves: the gradients of the weights, for which no other rank
waits, fill idle time at the end. Qi et al., "Zero bubble (almost) pipeline parallelism", 2024."""

SCHEDULES: Mapping[str, Schedule] = {
    name: Schedule(name, title, " ".join(summary.split()), halves, chunked, order)
    for name, title, summary, halves, chunked, order in (
        ("gpipe", "GPipe", _GPIPE, False, False, _gpipe),
        ("1f1b", "1F1B", _1F1B, False, False, _1f1b),
        ("interleaved", "Interleaved 1F1B", _INTERLEAVED, False, True, _interleaved),
        ("zb-h1", "Zero bubble (ZB-H1)", _ZB_H1, True, False, _zb_h1),
    )
}

_Part = tuple[str, int, int]  # what an action gets done: kind, stage and micro-batch


def _parts(action: Action) -> tuple[_Part, ...]:
    kinds = ("input", "weight") if action.kind == "backward" else (action.kind,)
    return tuple((kind, action.stage, action.micro) for kind in kinds)


def _needs(action: Action, stages: int) -> tuple[_Part, ...]:
    """Return what must be done before ``action`` may start."""
    stage, micro = action.stage, action.micro
    if action.kind == "forward":
        return (("forward", stage - 1, micro),) if stage else ()
    if action.kind == "weight":
        return (("input", stage, micro),)
    after = (("input", stage + 1, micro),) if stage + 1 < stages else ()
    return (("forward", stage, micro), *after)


def _say(kind: str, stage: int, micro: int) -> str:
    half = f"{kind} half of the backward" if kind in ("input", "weight") else kind
    return f"{half} of micro-batch {micro} on stage {stage}"


def _execute(actions: Actions, stages: int, seconds: Callable[[Action], float]) -> Timeline:
    """Let each rank do its list in order; raise ValueError if that comes to a halt."""
    done: dict[_Part, float] = {}
    times: list[list[tuple[float, float, Action]]] = [[] for _ in actions]
    before = -1
    while before != len(done):
        before = len(done)
        for own, mine in zip(actions, times, strict=True):
            for action in own[len(mine) :]:
                needs = _needs(action, stages)
                if not all(need in done for need in needs):
                    break
                start = max((mine[-1][1] if mine else 0.0, *(done[need] for need in needs)))
                mine.append((start, start + seconds(action), action))
                done.update(dict.fromkeys(_parts(action), mine[-1][1]))
    for rank, (own, mine) in enumerate(zip(actions, times, strict=True)):
        if len(mine) < len(own):
            need = next(need for need in _needs(own[len(mine)], stages) if need not in done)
            raise ValueError(f"deadlock: rank {rank} waits for ever for the {_say(*need)}")
    return tuple(map(tuple, times))


def check(actions: Actions, stages: int, micro_batches: int) -> None:
    """Raise ValueError if the lists are not a schedule of all stages and micro-batches.

    Each stage does forward and backward of each micro-batch once, in this order, on its own rank,
    and the ranks never all wait for each other.
    """
    missing = set(product(("forward", "input", "weight"), range(stages), range(micro_batches)))
    known = set(missing)
    for rank, action in ((rank, action) for rank, own in enumerate(actions) for action in own):
        this = _say(action.kind, action.stage, action.micro)
        for part in _parts(action):
            if part not in known:
                raise ValueError(f"rank {rank} has the {this}, which there is not")
            if action.stage % len(actions) != rank:
                raise ValueError(f"rank {rank} has the {this}, which is not its stage")
            if part not in missing:
                raise ValueError(f"rank {rank} has the {this} twice")
            missing.remove(part)
        for need in _needs(action, stages):
            if need[1] == action.stage and need in missing:
                raise ValueError(f"rank {rank} has the {this} without its {need[0]} before it")
    if missing:
        raise ValueError(f"no rank has the {_say(*min(missing))}")
    _execute(actions, stages, lambda action: 0.0)


def timeline(
    actions: Actions,
    forward_s: Sequence[float],
    input_s: Sequence[float],
    weight_s: Sequence[float],
) -> Timeline:
    """Return when each action runs if it starts as early as it can and transfers take no time.

    The sequences are the seconds of each stage; a whole backward takes those of both halves.
    """
    seconds = {"forward": forward_s, "input": input_s, "weight": weight_s}
    return _execute(
        actions, len(forward_s), lambda a: sum(seconds[kind][a.stage] for kind, _, _ in _parts(a))
    )


def bubble(times: Timeline) -> float:
    """Return the idle share of the ranks' time between the first start and the last stop."""
    runs = [(start, stop) for own in times for start, stop, _ in own]
    whole = len(times) * (max(stop for _, stop in runs) - min(start for start, _ in runs))
    return (whole - sum(stop - start for start, stop in runs)) / whole if whole else 0.0


def ideal_bubble(ranks: int, micro_batches: int, times: int = 1) -> float:
    """Return what :func:`bubble` is with equal stages and whole rounds.

    ``times`` is the number of chunks of a rank, or 3 for ZB-H1.
    """
    return (ranks - 1) / (times * micro_batches + ranks - 1)


def most_in_flight(actions: Actions) -> tuple[int, ...]:
    """Return how many forwards each rank has done at most whose backward is not all done."""
    step = {"forward": 1, "input": 0, "weight": -1, "backward": -1}
    return tuple(max(accumulate(step[a.kind] for a in own), default=0) for own in actions)
