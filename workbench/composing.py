"""From a model and a plan's first lines to a plan: profile it, let each axis cut what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from workbench.arranging import arranged
from workbench.errors import PlanError
from workbench.mesh import AXES, Mesh, cuts_features
from workbench.plan import LayerPlan, Plan
from workbench.strategies import STRATEGIES, pipeline, replicas, sharded, spatial, spatial_dims
from workbench.strategies.agreement import agree
from workbench.strategies.obstacles import check_writes
from workbench.traced import Flat, lead

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.profile import Profile


def trace(model: nn.Module, inputs: tuple[Tensor, ...], start: Plan) -> Profile:
    """Profile ``model``; with ``fallback="gather"`` layers that cannot be cut are kept whole."""
    from workbench.profile import profile

    cuts_inputs = start.mesh.degree(spatial_dims.AXIS) > 1
    features = bool(start.mesh.feature_axes)
    dims = (0,) if features else ()
    if cuts_inputs:
        asked_for = spatial_dims.dims_asked(start.option("spatial_dims", "largest"))
        # Of an input without images dim 1 is watched, so that a refusal can say whether it will do.
        most = lead(inputs).dim()
        dims = (*dims, *(asked_for or range(2, most) or range(1, most)))
    opaque: frozenset[str] = frozenset()
    while True:
        found = profile(model, *inputs, dims=dims, opaque=opaque, features=features)
        if not cuts_inputs or start.option("fallback", "refuse") != "gather":
            return found
        try:
            labels = {c.label for c in spatial_dims.cut_labels(replace(start, inputs=found.inputs))}
        except PlanError:
            return found  # who composes the plan says so
        if any(mix.random for mix in found.mixes):
            return found  # whole arrays would not help
        wanted = {mix.layer for mix in found.mixes if labels & _plain(mix.labels)} | {
            layer.name
            for layer in found.layers
            for refusal in layer.refusals
            if layer.role != "opaque" and labels & set(refusal.labels)
        }
        if wanted <= opaque:
            return found
        opaque |= wanted


def attempt(model: nn.Module, inputs: tuple[Tensor, ...], start: Plan) -> Plan:
    """Profile, divide and compose, to find out whether that can be done."""
    return compose(*arranged(start, model, inputs, trace(model, inputs, start), compose))


def compose(start: Plan, found: Profile) -> Plan:
    """Let every axis of the plan's mesh cut what was found, one after the other."""
    check_writes(start, found.written)
    _check_together(start.mesh)
    result = replace(
        replicas.check(start),
        layers=tuple(LayerPlan(layer) for layer in found.layers),
        inputs=found.inputs,
        outputs=found.outputs,
        mixes=found.mixes,
        units=found.units,
        adapted=found.adapted,
        exposed=tuple(dict.fromkeys((*found.exposed, *(each.name for each in found.written)))),
        resized=found.resized,
        meetings=found.meetings,
        passed=found.passed if start.stages else (),
        output_shape=found.output_shapes[0] if found.plain else (),
    )
    # Who cuts features has to know which positions ranks have.
    if start.mesh.degree(spatial_dims.AXIS) > 1:
        result = spatial.declare(result)
    # What is left of a parameter when all others have cut it is cut over the replicas.
    last = (sharded.AXIS, pipeline.AXIS)
    for axis, degree in sorted(start.mesh.axes, key=lambda each: each[0] in last):
        if degree > 1:
            result = STRATEGIES[axis].cut(result)
            if not isinstance(result, Plan):
                raise PlanError(
                    f"The cut of {axis} is to return a Plan, and returned "
                    f"{type(result).__name__}: end it with return plan."
                )
    return agree(result)


def _check_together(mesh: Mesh) -> None:
    """Check that a strategy of a user's own has the features of arrays to itself."""
    own = [axis for axis, degree in mesh.axes if degree > 1 and axis not in AXES]
    others = [
        axis
        for axis, degree in mesh.axes
        if degree > 1 and axis not in own[:1] and (cuts_features(axis) or axis == spatial_dims.AXIS)
    ]
    if own and others:
        raise PlanError(
            f"{mesh} cuts the same arrays by {own[0]} and by {others[0]}, which is not offered; "
            f"use {own[0]}={mesh.degree(own[0])} alone, or with data, sharded or pipeline."
        )


def _plain(labels: tuple[str | Flat, ...]) -> set[str]:
    return {label for label in labels if isinstance(label, str)}
