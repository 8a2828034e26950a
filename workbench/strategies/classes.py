"""Cross-entropy of classes that ranks have shares of (Shoeybi et al., 2019, section 3).

Instead of all outputs, two numbers of each row travel, or three: the largest of them, the sum of
their exponentials, and what the row's own class has; with smoothed labels the sum of all.
"""

from __future__ import annotations

from collections.abc import Set
from math import prod

from workbench.plan import Collective, Plan
from workbench.traced import Label


def of_loss(plan: Plan, axis: str, layer: str, kept: Set[Label]) -> list[Collective]:
    """Return what the loss costs whose classes ``layer`` makes, if those stay cut."""
    if not plan.class_label or plan.class_label not in kept:
        return []
    output = plan.outputs[0]
    classes = output.shape[plan.loss_dim] * plan.batch.size
    cuts = [cut for cut in plan.cuts_of(output) if cut.axis != axis]
    ranges = (plan.share(output.shape, cuts, rank) for rank in range(plan.ranks))
    rows = [prod(stop - start for start, stop in each) // classes for each in ranges]
    smooth = plan.option("smoothed_labels", "no") == "yes"
    return [
        Collective(
            f"{layer}: {what} of classes",
            "all_reduce",
            (axis,),
            max(rows) * each,
            max(4, output.itemsize),  # it is computed in float32 at least
            "forward",
            by_rank=tuple(own * each for own in rows),
            per_sample=True,
        )
        for what, each in (("largest", 1), ("sums", 3 if smooth else 2))
    ]
