"""BatchNorm over a batch that is cut across ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from workbench.comm.comm import Comm
from workbench.layers.carrier import Carrier, Declared, Seat, passed
from workbench.layers.precision import exactly
from workbench.mesh import BATCH_AXES
from workbench.plan import LayerPlan, Plan
from workbench.traced import Refusal, Sums, Traced


class SynchronizedBatchNorm:
    """BatchNorm (Ioffe and Szegedy, 2015) by the statistics of the whole batch, on any device.

    Ranks exchange (mean, variance, count) per channel, ``2 C + 1`` numbers, and merge them pairwise
    as Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
    variances", 1979) do, which loses no digits where a difference of sums of squares would.
    Backward adds up ``2 C`` numbers. Parameters and buffers are those of the module, read at each
    call; ``C`` is what a rank has of the channels.

    Attributes
    ----------
    axes:
        Along which each planned call takes its statistics together, those that cut the batch alone
        for a layer inside of one that runs on whole arrays; none of them: by its own.
    """

    def __init__(self, norm: _BatchNorm, seat: Seat) -> None:
        self.norm, self.seat, self.name, self.share = norm, seat, seat.name, seat.share
        inside = (batch_axes(seat.plan),)
        self.axes = tuple(self._axes(planned) for planned in seat.calls) or inside

    def _axes(self, planned: LayerPlan) -> tuple[str, ...]:
        """Return the axes whose ranks have other numbers of the same channels."""
        cutting = {cut.axis for cut in planned.input if cut.dim != 1 and cut.axis not in BATCH_AXES}
        return (*batch_axes(self.seat.plan), *sorted(cutting))

    def __call__(self, input: Tensor) -> Tensor:
        """Return ``input`` (samples, C, ...) normalised per channel over all ranks' samples.

        Raises
        ------
        ValueError
            If all ranks together have one number per channel, as torch's own does.
        """
        norm = self.norm
        if not norm.training and norm.running_mean is not None:
            return nn.functional.batch_norm(
                input, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        axes = self._axes_now(input)
        if not axes:
            return self._by_own_samples(input)
        comm = self.seat.comm(*axes)
        # A stand-in counts for nothing, unless all ranks of the statistics have one.
        counts = self.share.rows > 0 or not {*BATCH_AXES} & {*axes}
        mean, variance, count = self._whole_batch(input, comm, counts)
        if count == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training; the whole batch has 1"
            )
        if norm.training:
            self._track(mean, variance, count)
        result: Tensor = _Normalize.apply(
            input, norm.weight, norm.bias, mean, variance, count, norm.eps, comm, self.name, counts
        )
        return result

    def _axes_now(self, x: Tensor) -> tuple[str, ...]:
        if len(set(self.axes)) == 1:
            return self.axes[0]
        return self._axes(self.seat.call(x))

    def _by_own_samples(self, x: Tensor) -> Tensor:
        norm = self.norm
        tracks = norm.training and norm.running_mean is not None
        mean, variance = (norm.running_mean, norm.running_var) if tracks else (None, None)
        if tracks and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return nn.functional.batch_norm(
            x, mean, variance, norm.weight, norm.bias, True, self._rate(), norm.eps
        )

    def _rate(self) -> float:
        """Return what the newest statistics count for in the running ones."""
        if self.norm.momentum is not None:
            return float(self.norm.momentum)
        return 1.0 / float(self.norm.num_batches_tracked or 1)  # a cumulative average

    def _whole_batch(self, x: Tensor, comm: Comm, counts: bool) -> tuple[Tensor, Tensor, float]:
        """Return mean and biased variance per channel, shape (C,), and over how many numbers."""
        channels = x.shape[1]
        with torch.no_grad():
            counted = float(x.numel() // channels) if counts else 0.0
            mean, variance = _mean_and_variance(x)
            mine = torch.cat((mean, variance, mean.new_tensor([counted])))
            parts = comm.all_gather(mine, name=f"{self.name}: mean and variance")
            total = 0.0
            mean, squares = torch.zeros_like(mean), torch.zeros_like(mean)
            for part in parts:
                count = float(part[-1])
                if not count:
                    continue
                total += count
                delta = part[:channels] - mean
                mean = mean + delta * (count / total)
                squares = (
                    squares
                    + part[channels:-1] * count
                    + delta.square() * (count * (total - count) / total)
                )
        return mean, squares / total, total

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        norm = self.norm
        if norm.running_mean is None or norm.running_var is None:
            return
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        momentum = self._rate()
        unbiased = variance * (count / (count - 1)) if count > 1 else variance
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)


class _Normalize(torch.autograd.Function):
    """Normalise by given statistics; backward treats them as functions of every rank's input."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: float,
        eps: float,
        comm: Comm,
        name: str,
        counts: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps, ctx.comm, ctx.name, ctx.counts = count, eps, comm, name, counts
        ctx.has_bias = bias is not None
        return nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        dtype, x = x.dtype, exactly(x)
        grad = exactly(grads[0]).contiguous()
        inverse = (variance + ctx.eps).rsqrt()
        grad_weight, grad_bias = _sums(grad, x, mean, variance, ctx.eps)
        sums = torch.cat((grad_weight, grad_bias))
        if not ctx.counts:
            sums.zero_()
        ctx.comm.all_reduce(sums, name=f"{ctx.name}: their gradients")
        along_x, along_one = sums.chunk(2)
        # d x = w / s * (d y - mean(d y) - xhat * mean(d y * xhat)), as one affine map per channel.
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * along_x / ctx.count
        offset = -scale * along_one / ctx.count - slope * mean
        if ctx.counts:
            grad_x = _affine(x, slope, offset).add_(_affine(grad, scale, None)).to(dtype)
        else:  # a stand-in is not in the statistics
            grad_x = torch.zeros_like(x, dtype=dtype)
        return (
            grad_x,
            grad_weight if weight is not None else None,
            grad_bias if ctx.has_bias else None,
            *(None,) * 7,
        )


def _affine(x: Tensor, slope: Tensor, offset: Tensor | None) -> Tensor:
    """Return ``slope * x + offset`` per channel, by the kernel that takes a third of the time."""
    zeros, ones = torch.zeros_like(slope), torch.ones_like(slope)
    # Not by torch.nn.functional: some versions of that refuse eps=0.
    return torch.batch_norm(x, slope, offset, zeros, ones, False, 0.0, 0.0, False)


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel, shape (C,), by the corrected two-pass algorithm.

    (Chan, Golub and LeVeque, 1983, eq. 1.7.) In torch's batch-norm kernels, since
    ``torch.var_mean`` over these dims takes twelve times as long on a CPU.
    """
    x = exactly(x)
    count = max(1, x.numel() // x.shape[1])  # a rank may have no row
    mean = x.sum([d for d in range(x.dim()) if d != 1]) / count
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    centred = torch.batch_norm(x, None, None, mean, ones, False, 0.0, 0.0, False)
    squares, rest = _sums(centred, centred, zeros, ones, 0.0)
    return mean, (squares - rest.square() / count) / count


def _sums(
    grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return per channel the sums of ``grad * (x - mean) / sqrt(variance + eps)`` and of ``grad``.

    They are what the backward pass of an inference-mode BatchNorm computes, in one pass over the
    data. On a GPU that kernel wants statistics of a forward pass, and it divides by the number of
    samples, so there and without samples it is written out.
    """
    if x.device.type != "cpu" or not x.numel():
        return _sums_in_words(grad, x, mean, variance, eps)
    _, of_products, of_grad = torch.ops.aten.native_batch_norm_backward(
        grad, x, torch.ones_like(mean), mean, variance, None, None, False, eps, [False, True, True]
    )
    return of_products, of_grad


def _sums_in_words(
    grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    dims = [dim for dim in range(x.dim()) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    normal = (x - mean.view(shape)) * (variance + eps).rsqrt().view(shape)
    return (grad * normal).sum(dims), grad.sum(dims)


def batch_axes(plan: Plan) -> tuple[str, ...]:
    """Return the axes over which statistics of the whole batch are taken, if any."""
    together = plan.option("batch_norm", "synchronized") != "local"
    return tuple(axis for axis in BATCH_AXES if together and plan.mesh.degree(axis) > 1)


def _declare(
    module: nn.Module, arguments: tuple[Traced, ...], output_shape: tuple[int, ...]
) -> Declared:
    assert isinstance(module, _BatchNorm)
    x = arguments[0]
    labels, refusals = passed(x, output_shape), channels_that_are_positions(module, x, 1)
    if not module.training and module.running_mean is not None:
        return Declared(labels, refusals=refusals, role="channelwise")
    positions = tuple(label for label in x.labels[2:] if isinstance(label, str) and label)
    channels = x.shape[1]
    sums = [
        Sums("mean and variance", "all_gather", positions, 2 * channels + 1, "forward", False, True)
    ]
    # Not by module.weight, which may be computed anew each time it is read.
    if x.gradient or any(p.requires_grad for p in module.parameters()):
        sums.append(
            Sums("their gradients", "all_reduce", positions, 2 * channels, "backward", False, True)
        )
    return Declared(labels, sums=tuple(sums), refusals=refusals, role="channelwise")


def channels_that_are_positions(norm: _NormBase, x: Traced, dim: int) -> tuple[Refusal, ...]:
    """Refuse numbers per channel where dim ``dim``, of channels, counts the input's positions."""
    label = x.labels[dim]
    if not isinstance(label, str) or not label or label.startswith("out:"):
        return ()
    if not norm.affine and norm.running_mean is None:
        return ()
    kind = type(norm).__name__
    return (Refusal((label,), f"{kind} has numbers for each position of the dim that is cut"),)


def _build(module: nn.Module, seat: Seat) -> SynchronizedBatchNorm | None:
    assert isinstance(module, _BatchNorm)
    norm = SynchronizedBatchNorm(module, seat)
    # torch's own synchronised one refuses to train on a CPU
    return norm if any(norm.axes) or isinstance(module, nn.SyncBatchNorm) else None


CARRIERS: tuple[Carrier, ...] = (Carrier((_BatchNorm, nn.SyncBatchNorm), _declare, _build),)
