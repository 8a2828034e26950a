"""Norms by mean and variance of one sample, whose positions may be cut over ranks.

Statistics are taken in two passes, the sum and then the sum of squared differences from the mean,
which loses no digits (Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
1983). Ranks add up both; the gradients go back by the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from workbench.layers.batch_norm import batch_axes, channels_that_are_positions
from workbench.layers.carrier import Carrier, Declared, Forward, Seat, passed
from workbench.layers.gather import Together, all_reduce_sum, split
from workbench.layers.precision import exactly
from workbench.plan import LayerPlan
from workbench.traced import Label, Layer, Phase, Refusal, Sums, Traced
from workbench.windows import Run

_LOCAL_RESPONSE = (nn.LocalResponseNorm, nn.CrossMapLRN2d)


class _PerShape:
    """What is worked out once for each shape of share that a layer is given."""

    def __init__(self, seat: Seat, dims: Callable[[int], Sequence[int]]) -> None:
        self._seat, self._dims = seat, dims
        self._made: dict[tuple[int, ...], tuple[Together, tuple[Run, ...]]] = {}

    def __call__(self, x: Tensor) -> tuple[Together, tuple[Run, ...]]:
        """Return the sums over the dims of the norm, and what this rank owns of the whole array."""
        key = tuple(x.shape[1:])
        if key not in self._made:
            planned = self._seat.call(x) if self._seat.calls else _whole(x)
            shape = planned.layer.input_shape
            ranges = self._seat.ranges(shape, planned.input)
            self._made[key] = (Together(self._seat, planned, self._dims(x.dim())), ranges)
        return self._made[key]


def _whole(x: Tensor) -> LayerPlan:
    """Return a plan of a call that nobody planned, inside of a layer that runs on whole arrays."""
    return LayerPlan(Layer("", "", tuple(x.shape), tuple(x.shape)))


def _mean_and_variance(
    x: Tensor, dims: list[int], count: int, together: Together, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` without its mean, the mean, and the biased variance over ``dims``, kept as 1."""
    total = together.sum(x.sum(dims, keepdim=True), f"{name}: sum", f"{name}: gradient of sum")
    mean = total / count
    centred = x - mean
    squares = together.sum(
        centred.square().sum(dims, keepdim=True),
        f"{name}: squares",
        f"{name}: gradient of squares",
    )
    return centred, mean, squares / count


def _sums(
    names: Sequence[str], argument: Traced, labels: tuple[str, ...], numel: int, per_sample: bool
) -> tuple[Sums, ...]:
    """Return the all_reduces of each of ``names`` and, if a gradient flows, those of backward."""
    if not labels:
        return ()
    ways: list[tuple[str, Phase]] = [(name, "forward") for name in names]
    if argument.gradient:
        ways += [(f"gradient of {name}", "backward") for name in reversed(names)]
    return tuple(Sums(name, "all_reduce", labels, numel, phase, per_sample) for name, phase in ways)


def _labels(argument: Traced, dims: Sequence[int]) -> tuple[str, ...]:
    """Return the labels of ``dims``; dims that were flattened out of several are gathered."""
    found: list[Label] = [argument.labels[dim] for dim in dims]
    return tuple(dict.fromkeys(label for label in found if isinstance(label, str) and label))


# GroupNorm and InstanceNorm


def _declare_group_norm(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.GroupNorm)
    x = arguments[0]
    refusals = tuple(
        Refusal((label,), "GroupNorm takes statistics over channels, and those are cut")
        for label in _labels(x, (1,))
    )
    labels = _labels(x, range(2, len(x.shape)))
    sums = _sums(("sum", "squares"), x, labels, module.num_groups, True)
    return Declared(passed(x, output_shape), sums=sums, refusals=refusals)


def _build_group_norm(module: nn.Module, seat: Seat) -> Forward | None:
    assert isinstance(module, nn.GroupNorm)
    if not seat.cut_axes:
        return None
    own: Forward = module.forward
    per_shape = _PerShape(seat, lambda dims: range(2, dims))

    def forward(input: Tensor) -> Tensor:
        together, _ = per_shape(input)
        if together.comm.size == 1:
            return _plain(input, own)
        x, channels = exactly(input), input.shape[1]
        shape = (x.shape[0], module.num_groups, channels // module.num_groups, *x.shape[2:])
        groups = x.reshape(shape)
        count = shape[2] * together.count
        dims = list(range(2, groups.dim()))
        total = groups.sum(dims)
        total = all_reduce_sum(
            total, together.comm, f"{seat.name}: sum", f"{seat.name}: gradient of sum"
        )
        ones = (*total.shape, *(1 for _ in dims))
        centred = groups - (total / count).view(ones)
        squares = all_reduce_sum(
            centred.square().sum(dims),
            together.comm,
            f"{seat.name}: squares",
            f"{seat.name}: gradient of squares",
        )
        scaled = centred * (squares / count + module.eps).rsqrt().view(ones)
        return _affine(scaled.reshape(x.shape), module.weight, module.bias).to(input.dtype)

    return forward


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift each channel (dim 1)."""
    shape = (1, -1, *(1 for _ in range(x.dim() - 2)))
    if weight is not None:
        x = x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _declare_instance_norm(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, _InstanceNorm)
    x = arguments[0]
    unbatched = len(x.shape) == module._get_no_batch_dim()
    channel = 0 if unbatched else 1
    channels = x.shape[channel]
    own_statistics = module.training or module.running_mean is None
    sums: tuple[Sums, ...] = ()
    if own_statistics:
        labels = _labels(x, range(channel + 1, len(x.shape)))
        sums = _sums(("sum", "squares"), x, labels, channels, not unbatched)
    if module.training and module.running_mean is not None and not unbatched:
        numel = 2 * channels + 1
        sums += (Sums("running statistics", "all_reduce", (), numel, "forward", over_batch=True),)
    refusals = channels_that_are_positions(module, x, channel)
    return Declared(passed(x, output_shape), sums=sums, refusals=refusals)


def _build_instance_norm(module: nn.Module, seat: Seat) -> Forward | None:
    """Return a forward by the statistics of whole samples, or None if nothing is cut.

    Running statistics are the mean of those of the samples, over the ranks of the data axis too.
    """
    assert isinstance(module, _InstanceNorm)
    replicas = batch_axes(seat.plan)
    if not seat.cut_axes and not (replicas and module.track_running_stats):
        return None
    own: Forward = module.forward
    no_batch = module._get_no_batch_dim()
    per_shape = _PerShape(seat, lambda dims: range(1 if dims == no_batch else 2, dims))

    def forward(input: Tensor) -> Tensor:
        tracking = module.training and module.running_mean is not None
        unbatched = input.dim() == no_batch
        over = replicas if tracking and not unbatched else ()
        if not module.training and module.running_mean is not None:
            return _plain(input, own)
        together, _ = per_shape(input)
        if together.comm.size == 1 and not over:
            return _plain(input, own)
        x = exactly(input.unsqueeze(0) if unbatched else input)
        dims = list(range(2, x.dim()))
        centred, mean, variance = _mean_and_variance(x, dims, together.count, together, seat.name)
        if tracking:
            _track(mean, variance, together.count, over)
        scaled = centred * (variance + module.eps).rsqrt()
        result = _affine(scaled, module.weight, module.bias).to(input.dtype)
        return result.squeeze(0) if unbatched else result

    @torch.no_grad()
    def _track(mean: Tensor, variance: Tensor, count: int, over: tuple[str, ...]) -> None:
        assert module.running_mean is not None
        assert module.running_var is not None
        rows, channels = mean.shape[:2]
        unbiased = variance * (count / max(1, count - 1))
        both = torch.cat((mean.view(rows, channels), unbiased.view(rows, channels)), 1)
        counted = torch.cat((both.sum(0), both.new_tensor([float(rows)])))
        if over:
            if not seat.share.rows:  # a stand-in
                counted.zero_()
            seat.comm(*over).all_reduce(counted, name=f"{seat.name}: running statistics")
        means, variances = (counted[:-1] / counted[-1]).chunk(2)
        momentum = 0.0 if module.momentum is None else module.momentum
        module.running_mean.lerp_(means.to(module.running_mean.dtype), momentum)
        module.running_var.lerp_(variances.to(module.running_var.dtype), momentum)

    return forward


def _plain(x: Tensor, own: Forward) -> Tensor:
    """Return what the module's own forward gives."""
    result: Tensor = own(x)
    return result


# LayerNorm and RMSNorm


def _declare_last_dims(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    x = arguments[0]
    first = len(x.shape) - len(module.normalized_shape)
    labels = _labels(x, range(first, len(x.shape)))
    names = ("sum", "squares") if isinstance(module, nn.LayerNorm) else ("squares",)
    per_sample = first > 0
    sums = _sums(names, x, labels, prod(x.shape[1:first]), per_sample)
    return Declared(passed(x, output_shape), sums=sums)


def _build_last_dims(module: nn.Module, seat: Seat) -> Forward | None:
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    if not seat.cut_axes:
        return None
    own: Forward = module.forward
    number = len(module.normalized_shape)
    per_shape = _PerShape(seat, lambda dims: range(dims - number, dims))

    def forward(input: Tensor) -> Tensor:
        together, ranges = per_shape(input)
        if together.comm.size == 1:
            return _plain(input, own)
        dims, dtype = list(range(input.dim() - number, input.dim())), input.dtype
        input = exactly(input)
        if isinstance(module, nn.LayerNorm):
            scaled, _, variance = _mean_and_variance(
                input, dims, together.count, together, seat.name
            )
            scaled = scaled * (variance + module.eps).rsqrt()
        else:
            squares = together.sum(
                input.square().sum(dims, keepdim=True),
                f"{seat.name}: squares",
                f"{seat.name}: gradient of squares",
            )
            eps = torch.finfo(input.dtype).eps if module.eps is None else module.eps
            scaled = input * (squares / together.count + eps).rsqrt()

        def mine(parameter: Tensor) -> Tensor:
            if parameter.shape == input.shape[-number:]:
                return parameter
            return split(parameter, ranges[-number:], range(number))

        weight = module.weight
        if weight is not None:
            scaled = scaled * mine(weight)
        bias = getattr(module, "bias", None)
        return (scaled if bias is None else scaled + mine(bias)).to(dtype)

    return forward


# Across channels


def _declare_local_response(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    x = arguments[0]
    reason = f"{type(module).__name__} looks at neighbouring channels, and those are cut"
    refusals = tuple(Refusal((label,), reason) for label in _labels(x, (1,)))
    return Declared(passed(x, output_shape), refusals=refusals)


def _as_it_is(module: nn.Module, seat: Seat) -> None:
    return None


CARRIERS = (
    Carrier((nn.GroupNorm,), _declare_group_norm, _build_group_norm),
    Carrier(
        (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        _declare_instance_norm,
        _build_instance_norm,
    ),
    Carrier((nn.LayerNorm, nn.RMSNorm), _declare_last_dims, _build_last_dims),
    Carrier(_LOCAL_RESPONSE, _declare_local_response, _as_it_is),
)
