"""One layer cut over ranks that are threads, against the serial layer: values, gradients, bytes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.composing import compose
from workbench.layers.carrier import OUT
from workbench.layers.carriers import carrier_of
from workbench.mesh import Mesh
from workbench.plan import Batch, Plan
from workbench.planning import checked_options
from workbench.profile import Profile
from workbench.strategies.notation import parse
from workbench.traced import Array, Label, Layer, Traced
from workbench.verify import Proof, _compare


def prove_layer(
    module: nn.Module,
    *inputs: Tensor,
    spatial: int | str = 2,
    dims: tuple[int, ...] = (),
    data: int = 1,
    requires_grad: bool = True,
    **options: Any,
) -> Proof:
    """Cut ``module(*inputs)`` by what its carrier declares; raises PlanError where that refuses."""
    module = copy.deepcopy(module).double()
    values = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        output = copy.deepcopy(module)(*values)
    arguments = tuple(_traced(x, inputs[0], requires_grad) for x in values)
    carrier = carrier_of(module)
    assert carrier is not None, f"nobody carries {module}"
    said = carrier.declare(module, arguments, tuple(output.shape))
    name = type(module).__name__
    labels = tuple(f"out:{name}" if label == OUT else label for label in said.labels)
    result = Traced(tuple(output.shape), labels, 8)
    layer = Layer(
        name,
        name,
        tuple(inputs[0].shape),
        tuple(output.shape),
        tuple(Array(n, tuple(p.shape), 8, p.requires_grad) for n, p in module.named_parameters()),
        itemsize=8,
        arguments=arguments,
        results=(result,),
        windows=said.windows,
        sums=said.sums,
        refusals=said.refusals,
        role=said.role,  # type: ignore[arg-type]
        groups=said.groups,
    )
    found = Profile((layer,), (tuple(output.shape),), True, arguments, (result,))
    if dims or inputs[0].dim() == 2:  # of which nobody but its user knows that dim 1 is positions
        options["spatial_dims"] = dims or (1,)
    strategy = ",".join([f"data={data}"] * (data > 1) + [f"spatial={spatial}"])
    batch = inputs[0].shape[0]
    start = Plan(
        name,
        Batch(batch, batch),
        (),
        parse(strategy),
        options=tuple(checked_options(options).items()),
    )
    plan = compose(start, found)
    return _compare(module, values, plan, compose(replace(start, mesh=Mesh()), found), strategy)


def check_layer(module: nn.Module, *inputs: Tensor, **how: Any) -> float:
    """Return the largest difference; bytes counted must be those predicted."""
    proof = prove_layer(module, *inputs, **how)
    assert proof.sent_bytes == proof.predicted_bytes
    assert proof.max_difference is not None
    return proof.max_difference


def _traced(x: Tensor, first: Tensor, requires_grad: bool) -> Traced:
    labels: tuple[Label, ...] = ("",) * x.dim()
    if x.shape == first.shape:
        labels = tuple(f"dim{d}" if d >= min(2, x.dim() - 1) else "" for d in range(x.dim()))
    return Traced(tuple(x.shape), labels, 8, requires_grad and x.is_floating_point())
