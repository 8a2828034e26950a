"""Sharded data parallelism: replicas that do not each keep what they can ask of each other.

Every rank takes a share of each batch, as under ``data``, but has only a share of the optimizer's
state (stage 1), of the gradients too (stage 2), or of the parameters too (stage 3): ZeRO
(Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", SC
2020), with the parameters of one layer at a time as in FSDP (Zhao et al., VLDB 2023).

Stage 3 gathers a layer's parameters before its forward pass and again before its backward pass, and
adds up its gradients so that each rank gets those of its share: three times the parameters travel,
where ``data`` moves them twice. Stage 2 keeps them from forward to backward; stage 1 adds up whole
gradients and gathers what was updated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from workbench.mesh import shares
from workbench.plan import Collective, Cut, LayerPlan, Plan
from workbench.strategies.data import cut_batch
from workbench.strategies.pipeline import stage_of
from workbench.strategies.strategy import Strategy
from workbench.traced import Array, Layer

AXIS = "sharded"
_KEEP_A_LIST = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


def cut(plan: Plan) -> Plan:
    """Cut the batch, and what of each parameter a rank keeps or updates."""
    stage = plan.option("stage", "3")
    plan = cut_batch(plan)
    cuts = dict(_cuts(plan))
    if stage == "1":
        return plan.adding(
            updates=tuple(cuts.items()),
            collectives=list(_updates(plan, cuts)),
            notes=[_note(plan, cuts, stage)],
        )
    readers = _readers(plan)
    plan = replace(
        plan,
        layers=tuple(
            replace(
                planned,
                parameters=(
                    *planned.parameters,
                    *((a.name, cuts[a.name]) for a in planned.layer.parameters if a.name in cuts),
                ),
            )
            for planned in plan.layers
        ),
    )
    collectives: list[Collective] = []
    seen: set[tuple[str, int]] = set()  # with the place on a pipeline
    for number, planned in enumerate(plan.layers):
        arrays = [array for array in readers.get(planned.layer.name, ()) if array.name in cuts]
        if arrays and planned.layer.arguments:
            place = (stage_of(plan, number) or 0) % plan.mesh.degree("pipeline")
            first = (planned.layer.name, place) not in seen
            seen.add((planned.layer.name, place))
            found = _of_layer(plan, planned, arrays, cuts, stage, first)
            collectives += [replace(moved, call=number) for moved in found]
    return plan.adding(collectives=collectives, notes=[_note(plan, cuts, stage)])


def _updates(plan: Plan, cuts: dict[str, Cut]) -> Iterator[Collective]:
    """Yield what puts updated parameters together: on a pipeline, at each place what it holds."""
    places = range(plan.mesh.degree("pipeline"))
    kept = max((plan.kept_itemsize(array) for array in plan.arrays), default=4)
    for each in places:
        arrays = [a for a in plan.arrays if a.name in cuts and each in plan.holders(a.name)]
        if arrays:
            own = [_largest(plan, arrays, cuts, rank) for rank in range(plan.ranks)]
            gathered = _collective("updated parameters", "all_gather", own, kept, "update", times=1)
            yield replace(gathered, places=(each,) if len(places) > 1 else ())


def needs_again(layer: Layer) -> bool:
    """Return whether the backward pass of a layer needs its parameters: not for a mere table."""
    return layer.role != "embedding" or layer.parametrized


def units(plan: Plan) -> dict[str, tuple[Array, ...]]:
    """Return the parameters that are gathered for each layer, by its name."""
    sharded = {
        name for planned in plan.layers for name, cut in planned.parameters if cut.axis == AXIS
    }
    found = {
        name: tuple(array for array in arrays if array.name in sharded)
        for name, arrays in _readers(plan).items()
    }
    return {name: arrays for name, arrays in found.items() if arrays}


def _readers(plan: Plan) -> dict[str, tuple[Array, ...]]:
    """Return for each layer that is called all parameters that its call reads.

    Those are its own, those tied to another layer's, and those of modules inside it that are never
    called themselves.
    """
    called = {planned.layer.name for planned in plan.layers if planned.layer.arguments}
    found: dict[str, dict[str, Array]] = {}
    for planned in plan.layers:
        layer = planned.layer
        reader = layer.name
        while reader and reader not in called:
            reader = reader.rpartition(".")[0]
        if reader:
            arrays = found.setdefault(reader, {})
            arrays.update({array.name: array for array in (*layer.parameters, *layer.tied)})
    return {name: tuple(arrays.values()) for name, arrays in found.items()}


def _cuts(plan: Plan) -> Iterator[tuple[str, Cut]]:
    """Choose the dim in which each parameter is cut: the first that nobody cuts and is long enough.

    What no call of a layer reads, what other code reads too, and what a layer keeps a list of,
    stays whole.
    """
    degree = plan.mesh.degree(AXIS)
    whole = set(plan.exposed) | {
        array.name
        for planned in plan.layers
        if planned.layer.kind in _KEEP_A_LIST
        for array in planned.layer.parameters
    }
    for array in {a.name: a for arrays in _readers(plan).values() for a in arrays}.values():
        taken = {cut.dim for cut in plan.parameter_cuts(array.name)}
        free = [d for d, n in enumerate(array.shape) if n >= degree and d not in taken]
        if free and array.name not in whole:
            yield array.name, Cut(free[0], AXIS)


def _largest(plan: Plan, arrays: Iterable[Array], cuts: dict[str, Cut], rank: int) -> int:
    """Return the numbers in the largest of the shares of ``arrays`` that ``rank`` has one of."""
    degree, total = plan.mesh.degree(AXIS), 0
    for array in arrays:
        others = [c for c in plan.parameter_cuts(array.name) if c.axis != AXIS]
        ranges = plan.share(array.shape, others, rank)
        dim, numel = cuts[array.name].dim, 1
        for d, (start, stop) in enumerate(ranges):
            numel *= shares(stop - start, degree)[0] if d == dim else stop - start
        total += numel
    return total


def _of_layer(
    plan: Plan,
    planned: LayerPlan,
    arrays: list[Array],
    cuts: dict[str, Cut],
    stage: str,
    first: bool,
) -> list[Collective]:
    """Return what one call of a layer gathers and adds up."""
    degree, name, micro = plan.mesh.degree(AXIS), planned.layer.name, plan.batch.accumulate
    own = [_largest(plan, arrays, cuts, rank) for rank in range(plan.ranks)]
    itemsize, kept = (
        max(find(array) for array in arrays)
        for find in (lambda array: array.itemsize, plan.kept_itemsize)
    )
    found = []
    if stage == "3" or first:
        times = micro if stage == "3" else 1
        found.append(
            _collective(f"{name}: parameters", "all_gather", own, itemsize, "forward", times)
        )
    gradient = any(result.gradient for result in planned.layer.results)
    if stage == "3" and gradient and needs_again(planned.layer):
        found.append(
            _collective(f"{name}: parameters again", "all_gather", own, itemsize, "backward", micro)
        )
    if gradient and any(array.trainable for array in arrays):
        whole = [degree * each for each in own]
        found.append(
            _collective(f"{name}: gradients", "reduce_scatter", whole, kept, "backward", micro)
        )
    return found


def _collective(
    name: str, operation: str, numels: list[int], itemsize: int, phase: str, times: int
) -> Collective:
    return Collective(
        name,
        operation,  # type: ignore[arg-type]
        (AXIS,),
        max(numels),
        itemsize,
        phase,  # type: ignore[arg-type]
        times=times,
        by_rank=tuple(numels),
    )


def _note(plan: Plan, cuts: dict[str, Cut], stage: str) -> str:
    whole = [array.name for array in plan.arrays if array.name not in cuts]
    kept = {
        "1": "updates a share of every parameter and has its optimizer state",
        "2": "updates a share of every parameter and has its gradients and optimizer state",
        "3": "keeps a share of every parameter, with its gradients and optimizer state",
    }[stage]
    left = f"; whole on every rank: {', '.join(whole)}" if whole else ""
    return f"stage {stage}: each rank {kept}{left}"


STRATEGY = Strategy(
    axis=AXIS,
    family="data parallel",
    title="Sharded (replicas that share parameters and state)",
    summary=(
        "Every rank takes a share of each batch and keeps a share of the optimizer state (stage "
        "1), the gradients (2) and the parameters (3), gathered layer by layer."
    ),
    cut=cut,
    options={"stage": ("3", "2", "1")},
    follows=("batch_norm",),
    remedies={
        "compute": "a larger batch, or data: a small share of it uses a core less well",
        "comm": (
            "data where memory allows, stage=1, or a larger batch: parameters travel in every step"
        ),
        "wait": "shares of equal size, or fewer other programs beside it",
        "optimizer": "a larger batch, so that an update serves more samples",
        "load": "data that lies in memory, in the dtype of the workload",
    },
)
