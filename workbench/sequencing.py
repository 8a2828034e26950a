"""Where between the layers of a model ranks may go on with some positions: found by trying."""

from __future__ import annotations

from collections.abc import Callable

from workbench.plan import Plan
from workbench.profile import Profile
from workbench.strategies import sequence, tensor
from workbench.tracking.positions import Positions

MOST_PASSES = 20


def asked(start: Plan) -> bool:
    """Return whether positions are to be cut between the layers of ``tensor``."""
    split = start.option(sequence.OPTION, "whole") == "split"
    return split and start.mesh.degree(tensor.AXIS) > 1


def cut_positions(
    start: Plan,
    found: Profile,
    compose: Callable[[Plan, Profile], Plan],
    profile: Callable[[Positions], Profile],
) -> Profile:
    """Return the profile of a model in which layers that add up leave ranks some positions.

    What needs all positions has them gathered by the layer before it, or left whole by a layer that
    adds up. ``found`` is the profile in which all have all of them.

    Raises
    ------
    PlanError
        If nothing is left to cut, or code needs all positions of what no layer has made.
    """
    if start.mesh.degree("spatial") > 1:
        raise sequence.nothing_to_cut(start, "that is not offered with spatial")
    plan = compose(start, found)
    cut, gathered = sequence.layers_to_cut(plan, tensor.AXIS), frozenset[str]()
    why = ""
    for _ in range(MOST_PASSES):
        if not cut:
            break
        positions = Positions(cut, gathered)
        found = profile(positions)
        if not positions.order:
            break
        if not positions.needs:
            return found
        need = next((each for each in positions.needs if not each.layer), positions.needs[0])
        where = f"layer {need.where!r}" if need.where else "the model's own code"
        why = f"{where} needs all of them ({need.operation})"
        made_by = frozenset(need.layer for need in positions.needs if need.layer)
        if made_by <= gathered:  # of sums in other code: then what was added stays whole
            made_by = frozenset((need.last,))
            why += " of what no layer has made; let it go through an nn.Identity() before that"
        cut, gathered = cut - made_by, gathered | (made_by - cut)
    raise sequence.nothing_to_cut(plan, why)
