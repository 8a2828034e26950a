"""Layers of every kind, cut in space, equal the serial ones: outputs, gradients, bytes.

``prove`` counts the cases, and the end of the test run prints how many there were.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from operator_cases import LAYERS, cases, prove
from torch import Tensor, nn

from workbench.errors import PlanError
from workbench.verify import verify

EXAMPLES = {
    "convolution": 560,
    "transposed convolution": 310,
    "pooling": 310,
    "adaptive pooling": 250,
    "resampling": 260,
    "padding": 250,
    "norm": 300,
}
QUIETLY = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


def takes(layer: nn.Module, x: Tensor) -> bool:
    """Return whether torch itself takes this: kernels may be larger than the padded input."""
    try:
        layer(x)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_cut_in_space_equals_serial(kind: str) -> None:
    @settings(
        max_examples=EXAMPLES[kind],
        deadline=None,
        suppress_health_check=QUIETLY,
        phases=(Phase.explicit, Phase.generate),
    )
    @given(cases(kind))
    def check(case: tuple[nn.Module, Tensor, str, dict[str, Any]]) -> None:
        layer, x, strategy, options = case
        if takes(layer, x):
            prove(layer, x, strategy=strategy, **options)
        else:
            with pytest.raises(PlanError):
                verify(layer, x, strategy=strategy, **options)

    check()
