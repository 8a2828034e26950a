"""How replicas along the axis data agree: by gradients, compressed or not, or by weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from workbench.errors import PlanError
from workbench.plan import Bucket, Collective, Plan
from workbench.plan.replicas import PLACE_BYTES, averaging_of, compression_of
from workbench.traced import Array

AXIS = "data"
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "compression": ("none", "bf16", "powersgd", "topk"),
    "powersgd_rank": (),
    "topk_ratio": (),
    "sync_every": (),
    "outer": ("none", "nesterov"),
    "outer_lr": (),
    "outer_momentum": (),
}
RUNNING = ("running_mean", "running_var")
"""Buffers that are averaged as parameters are: the running statistics of norms."""


def check(plan: Plan) -> Plan:
    """Return ``plan`` with what its options say of replicas; PlanError if they contradict."""
    options = dict(plan.options)
    compression, averaging = compression_of(options), averaging_of(options)
    asked = "" if compression.kind == "none" else f"compression={compression.kind!r}"
    if averaging is not None:
        asked = f"sync_every={averaging.every}"
    if not asked:
        return plan
    if plan.mesh.degree(AXIS) == 1:
        if plan.mesh.degree("sharded") > 1:
            raise PlanError(
                f"{asked} is for what replicas of the axis data send, and {plan.mesh} has none; "
                f"use data={plan.mesh.degree('sharded')}, or data=2,{plan.mesh}."
            )
        return plan
    if averaging is None:
        return replace(plan, compression=compression)
    if plan.mesh.degree("sharded") > 1 and plan.option("stage", "3") == "1":
        raise PlanError(
            f"{asked} with {plan.mesh} and stage=1: every rank would have to average parameters "
            "of which it updates a share; use stage=2, or stage=3."
        )
    if "batch_norm" not in options:  # statistics of the whole batch would travel at every step
        plan = replace(plan, options=(*plan.options, ("batch_norm", "local")))
    return replace(plan, averaging=averaging)


def without_data(plan: Plan, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the axes over which gradients are added up at every step."""
    return tuple(axis for axis in axes if axis != AXIS) if plan.averaging else axes


def gradient_collectives(
    plan: Plan, number: int, bucket: Bucket, itemsize: int
) -> Iterator[Collective]:
    """Yield what it takes to add up the gradients of a bucket."""
    name = f"gradients, bucket {number}"

    def collective(
        axes: tuple[str, ...], operation: str, itemsize: int, name: str = name, part: str = ""
    ) -> Collective:
        return Collective(
            name,
            operation,  # type: ignore[arg-type]
            axes,
            0,
            itemsize,
            "backward",
            arrays=bucket.names,
            places=bucket.places,
            part=part,
        )

    kind = plan.compression.kind if AXIS in bucket.axes else "none"
    others = tuple(axis for axis in bucket.axes if axis != AXIS)
    if kind == "none":
        if bucket.axes:  # else no other rank has a gradient of these
            yield collective(bucket.axes, "all_reduce", itemsize)
        return
    if others:
        yield collective(others, "all_reduce", itemsize)
    along = (AXIS,)
    if kind == "bf16":
        yield collective(along, "all_reduce", 2, f"{name}, in bf16")
    elif kind == "powersgd":
        yield collective(along, "all_reduce", itemsize, f"{name}, first factors", "left")
        yield collective(along, "all_reduce", itemsize, f"{name}, second factors", "right")
    else:
        yield collective(along, "all_gather", itemsize, f"{name}, largest", "largest")
        yield collective(along, "all_gather", PLACE_BYTES, f"{name}, their places", "largest")


def averaged(plan: Plan) -> tuple[Bucket, ...]:
    """Return what replicas average: parameters, bucket by bucket, then running statistics."""
    if plan.averaging is None:
        return ()
    found = [replace(bucket, axes=(AXIS,)) for bucket in plan.buckets]
    by_places: dict[tuple[int, ...], list[str]] = {}
    for array in plan.buffers:
        if array.name.rpartition(".")[2] in RUNNING:
            holders = plan.holders(array.name)
            places = holders if len(holders) < plan.mesh.degree("pipeline") else ()
            by_places.setdefault(places, []).append(array.name)
    found += [Bucket(tuple(names), (AXIS,), places) for places, names in by_places.items()]
    return tuple(found)


def averaging_collectives(plan: Plan) -> Iterator[Collective]:
    """Yield what is sent after every so many steps."""
    arrays: dict[str, Array] = {array.name: array for array in (*plan.buffers, *plan.arrays)}
    for number, bucket in enumerate(plan.averaged):
        yield Collective(
            f"average, bucket {number}",
            "all_reduce",
            bucket.axes,
            0,
            plan.kept_itemsize(arrays[bucket.names[0]]),
            "average",
            arrays=bucket.names,
            places=bucket.places,
        )


def note(plan: Plan) -> str:
    """Return what the plan does otherwise than the serial run."""
    found = plan.compression
    if plan.averaging is not None:
        every = plan.averaging.every
        when = "after every step" if every == 1 else f"after every {every} steps"
        outer = plan.averaging
        return (
            f"sync_every={every}: replicas make steps of their own on their samples, and average "
            f"parameters and running statistics {when} and at the end"
            + (
                f', as proposals to an outer optimizer (outer="nesterov", lr {outer.lr:g}, '
                f"momentum {outer.momentum:g}: DiLoCo)"
                if outer.nesterov
                else ", weighted by samples"
            )
            + "; the state of the optimizer stays each replica's own, and only the record of the "
            "step travels at every step. Not equal to the serial run, by design"
        )
    how = {
        "bf16": "gradients travel in bfloat16 and are added up in float32",
        "powersgd": f"of each matrix of gradients two factors of {found.rank} columns travel, and "
        "what they miss is added at the next step",
        "topk": f"the largest {found.ratio:.3g} of the gradients of a bucket travel with their "
        "places, and the rest is added at the next step",
    }[found.kind]
    return f"compression {found.kind}: {how}. Not equal to the serial run, by design"
