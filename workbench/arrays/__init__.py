"""Graph mode: torch's operators, and whole models, on dask arrays of any size.

``conv2d``, ``max_pool2d``, ``layer_norm``, ``gelu`` and the others take torch's arguments and give
lazy dask arrays with the numbers that torch gives for whole arrays, however the dims are cut in
chunks. :func:`operator` makes one of any function on tensors. ``workbench.apply`` runs a whole
model, and :func:`explain` says how it would.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["explain", "operator"]


def __getattr__(name: str) -> Any:
    if name == "explain":
        return import_module("workbench.arrays.application").explain
    if not name.startswith("__"):
        operators = import_module("workbench.arrays.operators")
        if name == "operator":
            return operators.operator
        if name in operators.OPERATORS:
            return operators.OPERATORS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    operators = import_module("workbench.arrays.operators")
    return sorted({*globals(), *__all__, *operators.OPERATORS})
