"""Graph mode: torch's operators, and whole models, on dask arrays of any size.

``conv2d``, ``max_pool2d``, ``layer_norm``, ``gelu`` and the others take torch's arguments and give
lazy dask arrays with the numbers that torch gives for whole arrays, however the dims are cut in
chunks. :func:`operator` makes one of any function on tensors. ``workbench.apply`` runs a whole
model, and :func:`explain` says how it would.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

ELEMENTWISE = (
    *("relu", "relu6", "gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "softplus"),
    *("softsign", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink"),
    *("tanhshrink", "logsigmoid", "threshold", "prelu", "glu"),
)
WINDOWED = (
    *("conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("interpolate", "pad", "pixel_shuffle", "pixel_unshuffle"),
)
ALONG = (
    *("linear", "softmax", "log_softmax", "normalize"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm"),
)
OF_TORCH = ("matmul", "sigmoid", "tanh")
__all__ = ["explain", "operator", *sorted((*ELEMENTWISE, *WINDOWED, *ALONG, *OF_TORCH))]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "explain":
        return import_module("workbench.arrays.explaining").explain
    operators = import_module("workbench.arrays.operators")
    return operators.operator if name == "operator" else operators.OPERATORS[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
