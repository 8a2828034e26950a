"""BatchNorm over a batch that is cut across ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from workbench.comm.comm import Comm
from workbench.layers.share import Share


class SynchronizedBatchNorm(nn.Module):
    """BatchNorm (Ioffe and Szegedy, 2015) by the statistics of the whole batch, on any device.

    Ranks exchange (mean, variance, count) per channel, ``2 C + 1`` numbers, and merge them pairwise
    as Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
    variances", 1979) do, which loses no digits where a difference of sums of squares would.
    Backward adds up ``2 C`` numbers. Parameters and buffers are those of the layer it stands for.
    With ``together=False``, and while the share says that the rank is alone, it is a plain
    BatchNorm over the rank's own samples.
    """

    def __init__(
        self, norm: _BatchNorm, comm: Comm, share: Share, name: str, together: bool = True
    ) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.comm, self.share, self.name, self.together = comm, share, name, together
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` (samples, C, ...) normalised per channel over all ranks' samples.

        Raises
        ------
        ValueError
            If all ranks together have one number per channel, as torch's own does.
        """
        if not self.training and self.running_mean is not None:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.share.alone or not self.together:
            return self._by_own_samples(input)
        mean, variance, count = self._whole_batch(input)
        if count == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training; the whole batch has 1"
            )
        if self.training:
            self._track(mean, variance, count)
        result: Tensor = _Normalize.apply(
            input, self.weight, self.bias, mean, variance, count, self.eps, self
        )
        return result

    def _by_own_samples(self, x: Tensor) -> Tensor:
        mean, variance = (self.running_mean, self.running_var) if self.training else (None, None)
        if mean is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return nn.functional.batch_norm(
            x, mean, variance, self.weight, self.bias, True, self._rate(), self.eps
        )

    def _rate(self) -> float:
        """Return what the newest statistics count for in the running ones."""
        if self.momentum is not None:
            return float(self.momentum)
        return 1.0 / float(self.num_batches_tracked or 1)  # a cumulative average

    def _whole_batch(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return mean and biased variance per channel, shape (C,), and over how many numbers."""
        channels = x.shape[1]
        with torch.no_grad():
            counted = float(x.numel() // channels) if self.share.rows else 0.0
            mean, variance = _mean_and_variance(x)
            mine = torch.cat((mean, variance, mean.new_tensor([counted])))
            parts = self.comm.all_gather(mine, name=f"{self.name}: mean and variance")
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
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self._rate()
        unbiased = variance * (count / (count - 1)) if count > 1 else variance
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


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
        layer: SynchronizedBatchNorm,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps, ctx.layer = count, eps, layer
        ctx.has_bias = bias is not None
        return nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        layer: SynchronizedBatchNorm = ctx.layer
        grad = grads[0].contiguous()
        inverse = (variance + ctx.eps).rsqrt()
        grad_weight, grad_bias = _sums(grad, x, mean, variance, ctx.eps)
        sums = torch.cat((grad_weight, grad_bias))
        if not layer.share.rows:
            sums.zero_()
        layer.comm.all_reduce(sums, name=f"{layer.name}: their gradients")
        along_x, along_one = sums.chunk(2)
        # d x = w / s * (d y - mean(d y) - xhat * mean(d y * xhat)), as one affine map per channel.
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * along_x / ctx.count
        offset = -scale * along_one / ctx.count - slope * mean
        if layer.share.rows:
            grad_x = _affine(x, slope, offset).add_(_affine(grad, scale, None))
        else:  # a stand-in is not in the statistics
            grad_x = torch.zeros_like(x)
        return (
            grad_x,
            grad_weight if weight is not None else None,
            grad_bias if ctx.has_bias else None,
            *(None,) * 5,
        )


def _affine(x: Tensor, slope: Tensor, offset: Tensor | None) -> Tensor:
    """Return ``slope * x + offset`` per channel, by the kernel that takes a third of the time."""
    zeros, ones = torch.zeros_like(slope), torch.ones_like(slope)
    return nn.functional.batch_norm(x, zeros, ones, slope, offset, eps=0.0)


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel, shape (C,), by the corrected two-pass algorithm.

    (Chan, Golub and LeVeque, 1983, eq. 1.7.) In torch's batch-norm kernels, since
    ``torch.var_mean`` over these dims takes twelve times as long on a CPU.
    """
    count = x.numel() // x.shape[1]
    mean = x.sum([d for d in range(x.dim()) if d != 1]) / count
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    centred = nn.functional.batch_norm(x, mean, ones, eps=0.0)
    squares, rest = _sums(centred, centred, zeros, ones, 0.0)
    return mean, (squares - rest.square() / count) / count


def _sums(
    grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return per channel the sums of ``grad * (x - mean) / sqrt(variance + eps)`` and of ``grad``.

    They are what the backward pass of an inference-mode BatchNorm computes, in one pass over the
    data.
    """
    _, of_products, of_grad = torch.ops.aten.native_batch_norm_backward(
        grad, x, torch.ones_like(mean), mean, variance, None, None, False, eps, [False, True, True]
    )
    return of_products, of_grad
