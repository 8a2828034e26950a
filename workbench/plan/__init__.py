"""The plan: what every rank holds of every array, and every collective with its bytes.

Pure: imports nothing of torch, dask or the UI.
"""

from workbench.plan.assembly import assemble, is_first, owner_of
from workbench.plan.collective import Collective
from workbench.plan.cuts import Bucket, Cut, CutLabel, runs_of
from workbench.plan.explanation import in_binary_units
from workbench.plan.plan import (
    Batch,
    LayerPlan,
    Plan,
    shares_of,
)

__all__ = [
    "Batch",
    "Bucket",
    "Collective",
    "Cut",
    "CutLabel",
    "LayerPlan",
    "Plan",
    "assemble",
    "in_binary_units",
    "is_first",
    "owner_of",
    "runs_of",
    "shares_of",
]
