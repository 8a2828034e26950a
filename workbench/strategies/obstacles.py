"""What stands in the way of a cut: code that mixes positions or writes to parameters, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from workbench.errors import PlanError
from workbench.mesh import Mesh
from workbench.plan import Plan
from workbench.strategies.nearest import replicas
from workbench.traced import Flat, Write


class Obstacle(PlanError):
    """A layer or code that needs all positions; the sentence does not say yet what works.

    ``instead`` is a strategy that does without the cut.
    """

    def __init__(self, sentence: str, instead: str) -> None:
        super().__init__(sentence)
        self.instead = instead


@contextmanager
def advised(start: Plan, attempt: Callable[[Plan], object]) -> Iterator[None]:
    """Let an obstacle be told with what works: ``fallback="gather"``, or another strategy.

    Whether the first does, ``attempt`` says: it makes a plan from its first lines, such as
    ``start``, or raises PlanError.
    """
    try:
        yield
    except Obstacle as obstacle:
        if start.option("fallback", "refuse") != "gather" and _helps(attempt, start):
            raise PlanError(
                f'{obstacle} Or give fallback="gather", which runs that layer on the whole array '
                "on every rank."
            ) from None
        raise PlanError(f"{obstacle} Use {obstacle.instead}.") from None


def _helps(attempt: Callable[[Plan], object], start: Plan) -> bool:
    others = (each for each in start.options if each[0] != "fallback")
    try:
        attempt(replace(start, options=(*others, ("fallback", "gather"))))
    except PlanError:
        return False
    return True


def check_mixes(plan: Plan, labels: set[str]) -> None:
    """Refuse code that mixes positions of a dim that is to be cut.

    Where it only concerns a flattened dim, that can still be gathered.
    """
    for mix in plan.mixes:
        touched = {
            part
            for label in mix.labels
            for part in ([name for name, _ in label.parts] if isinstance(label, Flat) else [label])
        }
        hit = touched & labels
        only_flat = all(isinstance(label, Flat) for label in mix.labels if _carries(label, labels))
        if hit and not only_flat:  # a flattened dim can still be gathered where it is made
            where = f"Layer {mix.layer!r} ({mix.kind})" if mix.layer else f"{mix.kind}.forward"
            advice = f" {mix.advice[0].upper()}{mix.advice[1:]}." if mix.advice else ""
            if mix.random:
                raise PlanError(f"{plan.mesh}: {where} draws {mix.operation}.{advice}")
            raise Obstacle(
                f"{plan.mesh} cuts {_dims(hit)} of the input, and {where} mixes its positions: "
                f"{mix.operation}.{advice}",
                replicas(plan, "spatial"),
            )


def check_writes(plan: Plan, written: Iterable[Write]) -> None:
    """Refuse code that writes to parameters of which a rank has a share, or writes other numbers.

    Elsewhere such parameters stay whole, and every rank writes the same.
    """
    for write in written:
        where = f"layer {write.layer!r} ({write.kind})" if write.layer else f"{write.kind}.forward"
        does = "replaces it" if write.operation == "replaced" else f"calls {write.operation} on it"
        if write.differs and plan.mesh.size > 1:
            raise PlanError(
                f"{plan.mesh}: {where} changes parameter {write.name!r} by hand ({does}) with "
                "numbers that it draws or works out from samples, and ranks would get different "
                "ones; use serial."
            )
        if plan.mesh.degree("sharded") > 1 and (stage := plan.option("stage", "3")) != "1":
            raise PlanError(
                f"{plan.mesh} with stage={stage} gives ranks shares of the parameters, and "
                f"{where} changes {write.name!r} by hand ({does}), which would change a copy; use "
                f"stage=1, or data={plan.mesh.size}."
            )


def check_layers(plan: Plan, labels: set[str]) -> None:
    """Refuse layers that cannot do what is asked, and grids of which one dim goes on alone."""
    for planned in plan.layers:
        layer = planned.layer
        if layer.role == "opaque":
            continue
        for refusal in layer.refusals:
            if set(refusal.labels) & labels:
                raise Obstacle(
                    f"{plan.mesh} cuts {_dims(set(refusal.labels) & labels)} of the input, and "
                    f"layer {layer.name!r}: {refusal.reason}.",
                    replicas(plan, "spatial"),
                )
        for array in (*layer.arguments, *layer.results):
            carried = {
                label for label in labels if any(_carries(own, {label}) for own in array.labels)
            }
            if carried and carried != labels:
                raise PlanError(
                    f"{plan.mesh} cuts {_dims(labels)}, and at layer {layer.name!r} only "
                    f"{_dims(carried)} is left to cut; use {_in_a_row(plan)}, which cuts one dim."
                )


def check_calls(plan: Plan) -> None:
    """Refuse a layer called on arrays of different sizes whose shares look alike."""
    seen: dict[tuple[str, int, tuple[int, ...]], tuple[int, ...]] = {}
    for planned in plan.layers:
        if not planned.input or not planned.layer.arguments:
            continue
        shape = planned.layer.input_shape
        cuts = plan.cuts_of(planned.layer.arguments[0])
        for rank in range(plan.mesh.size if cuts else 0):
            local = tuple(stop - start for start, stop in plan.share(shape, cuts, rank))
            other = seen.setdefault((planned.layer.name, rank, local[1:]), shape)
            if other[1:] != shape[1:]:
                raise PlanError(
                    f"{plan.mesh}: layer {planned.layer.name!r} is called on arrays of shape "
                    f"{other} and {shape}, and rank {rank} could not tell its shares of them "
                    f"apart. Use two layers, or another number of ranks."
                )


def _in_a_row(plan: Plan) -> Mesh:
    return plan.mesh.with_degree("spatial", plan.mesh.degree("spatial"))


def _carries(label: object, labels: set[str]) -> bool:
    if isinstance(label, Flat):
        return any(name in labels for name, _ in label.parts)
    return label in labels


def _dims(labels: set[str]) -> str:
    numbers = sorted(label.removeprefix("dim") for label in labels)
    return f"dim{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"
