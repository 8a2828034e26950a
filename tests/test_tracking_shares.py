"""What the profile lets pass gives the same numbers on shares; nothing else is promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.mesh import balanced
from workbench.profile import Profile, profile

SHAPE = (2, 4, 6, 9)


@pytest.fixture(autouse=True)
def _no_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.tracking.calls._carrier_of", lambda _: None)


class Code(nn.Module):
    """A user's code, with some parameters at hand."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(1)

        def array(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.scale, self.channels = array(4, 1, 1), array(4)
        self.filters, self.rows, self.columns = array(5, 4), array(6, 1), array(9)
        self.square, self.kernel, self.position = array(9, 9), array(4, 4, 3, 3), array(4, 6, 9)
        self.table = array(10, 3)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def written_in_part(x: Tensor, where: tuple[Any, ...], value: Any) -> Tensor:
    y = torch.zeros_like(x)
    y[where] = value
    return y


def zeros_written(x: Tensor, where: tuple[Any, ...], value: Any) -> Tensor:
    y = torch.zeros(2, 4, x.shape[2], x.shape[3], dtype=x.dtype)
    y[where] = value
    return y


def filled(x: Tensor, fill: Callable[[Tensor], Any]) -> Tensor:
    y = torch.empty_like(x)
    fill(y)
    return y * x


KEPT: dict[str, Callable[[Any, Tensor], Any]] = {
    "relu": lambda m, x: F.relu(x),
    "in place": lambda m, x: (x * 2).relu_().add_(1).mul_(m.scale),
    "scale": lambda m, x: x * m.scale + 1,
    "hardswish, silu, gelu, mish": lambda m, x: F.mish(F.gelu(F.silu(F.hardswish(x)))),
    "prelu": lambda m, x: F.prelu(x, m.channels),
    "where": lambda m, x: torch.where(x > 0, x, 0.1 * x),
    "clamp and cast": lambda m, x: x.clamp(-1, 1).float().double().contiguous().clone(),
    "channel mean": lambda m, x: x.mean(1),
    "channel max": lambda m, x: x.max(1),
    "channel gate": lambda m, x: torch.cat([x.mean(1, True), x.amax(1, keepdim=True)], 1),
    "channel softmax": lambda m, x: F.softmax(x, 1),
    "channel norm": lambda m, x: F.normalize(x, dim=1),
    "channel std, var": lambda m, x: x.std(1) + x.var(1, keepdim=True)[:, 0],
    "cumsum and sort": lambda m, x: x.cumsum(1).sort(1).values,
    "topk": lambda m, x: x.topk(2, 1).values,
    "flip and roll": lambda m, x: x.flip(1).roll(1, 1),
    "chunk": lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(),
    "glu": lambda m, x: F.glu(x, 1),
    "split": lambda m, x: x.split([1, 3], 1),
    "unbind": lambda m, x: x.unbind(1)[2],
    "select and slice": lambda m, x: x[:, 0] + x[:, 1:3].sum(1),
    "full slices": lambda m, x: x[:, ::2, :, :],
    "fancy index": lambda m, x: x[:, [2, 0, 1]],
    "index select": lambda m, x: x.index_select(1, torch.tensor([1, 1, 3])),
    "permute": lambda m, x: x.permute(0, 2, 3, 1),
    "transpose": lambda m, x: x.transpose(1, 3).transpose(2, 1),
    "channels last": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (4,), m.channels),
    "linear on channels": lambda m, x: F.linear(x.permute(0, 2, 3, 1), m.filters),
    "matmul on channels": lambda m, x: (x.movedim(1, 3) @ m.filters.t()).movedim(3, 1),
    "einsum": lambda m, x: torch.einsum("nchw,dc->ndhw", x, m.filters),
    "one by one": lambda m, x: torch.matmul(m.filters, x.flatten(2)).view(2, 5, *x.shape[2:]),
    "tokens": lambda m, x: F.relu(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape),
    "unsqueeze and squeeze": lambda m, x: x.unsqueeze(1).squeeze(1)[:, :1].squeeze(1),
    "groups": lambda m, x: x.view(2, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "group sums": lambda m, x: x.view(2, 2, 2, *x.shape[2:]).sum(2),
    "batch merged": lambda m, x: x.reshape(-1, *x.shape[2:]) * 2,
    "stack": lambda m, x: torch.stack([x, x + 1], 2).sum(2),
    "cat": lambda m, x: torch.cat([x, x[:, :2]], 1),
    "constants": lambda m, x: x + torch.ones(x.shape[2], x.shape[3], dtype=x.dtype) * 3,
    "zero pad channels": lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "no pad": lambda m, x: F.pad(x, (0, 0, 0, 0)),
    "zeros cat": lambda m, x: torch.cat([x, torch.zeros(2, 1, *x.shape[2:]).double()], 1),
    "expand": lambda m, x: x * m.scale.expand_as(x),
    "repeat": lambda m, x: x.repeat(1, 2, 1, 1),
    "embedding": lambda m, x: F.embedding(x[:, 0].abs().long(), m.table),
    "written": lambda m, x: written_in_part(x, (slice(None), 0), 1.0),
    "filled": lambda m, x: filled(x, lambda y: y.fill_(2)),
    "copied": lambda m, x: filled(x, lambda y: y.copy_(x)),
    "tuple and dict": lambda m, x: ({"a": x, "b": [x.sum(1)]}, x[:, 0]),
    "complex": lambda m, x: torch.complex(x, x).abs(),
    "in place without tags": lambda m, x: F.mish(x * 2, inplace=True).abs_().gt_(0.5),
    "addcmul and lerp": lambda m, x: torch.lerp(torch.addcmul(x, x, x), x, 0.3),
    "no grad": lambda m, x: x * x.detach(),
    "whole": lambda m, x: m.filters.sum(0),
    "checkpoint": lambda m, x: torch.utils.checkpoint.checkpoint(F.relu, x, use_reentrant=False),
    "logsumexp": lambda m, x: x.logsumexp(1) - x.prod(1) + x.any(1),
}

MIXED: dict[str, Callable[[Any, Tensor], Any]] = {
    "mean": lambda m, x: x.mean((2, 3)),
    "mean of all": lambda m, x: x - x.mean(),
    "functional pool": lambda m, x: x * F.adaptive_avg_pool2d(x, 1),
    "max": lambda m, x: x.amax((2, 3)),
    "softmax": lambda m, x: x.flatten(2).softmax(2),
    "conv": lambda m, x: F.conv2d(x, m.kernel, padding=1),
    "max pool": lambda m, x: F.max_pool2d(x, 3, 1, 1),
    "avg pool": lambda m, x: F.avg_pool2d(x, 3, 1, 1),
    "interpolate": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pad": lambda m, x: F.pad(x, (1, 1, 1, 1)),
    "reflect": lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "circular": lambda m, x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "instance norm": lambda m, x: F.instance_norm(x),
    "batch norm": lambda m, x: F.batch_norm(x, None, None, training=True),
    "group norm": lambda m, x: F.group_norm(x, 2),
    "layer norm": lambda m, x: F.layer_norm(x, x.shape[2:]),
    "flip": lambda m, x: x.flip(2, 3),
    "roll": lambda m, x: x.roll((1, 1), (2, 3)),
    "cumsum": lambda m, x: x.cumsum(2).cumsum(3),
    "flatten": lambda m, x: x.flatten(1),
    "flatten and multiply": lambda m, x: x.flatten(1) @ m.position.flatten()[:, None],
    "position": lambda m, x: x + m.position,
    "rows and columns": lambda m, x: x + m.rows + m.columns,
    "part of positions": lambda m, x: x + m.position[:, : x.shape[2], : x.shape[3]],
    "grid": lambda m, x: (
        x + torch.linspace(0, 1, x.shape[2])[:, None] + torch.linspace(0, 1, x.shape[3])
    ),
    "arange": lambda m, x: x + torch.arange(x.shape[2])[:, None] * torch.arange(x.shape[3]),
    "sum of arange": lambda m, x: x * torch.arange(x.shape[2]).sum() * torch.ones(x.shape[3]).sum(),
    "number of rows": lambda m, x: x / x.shape[2] * x.shape[3],
    "numel": lambda m, x: x * (1.0 / x.numel()),
    "half the rows": lambda m, x: x[:, :, : x.shape[2] // 2, : x.shape[3] // 2],
    "first row": lambda m, x: x[:, :, 0, 0],
    "step": lambda m, x: x[:, :, ::2, ::2],
    "differences": lambda m, x: x.diff(dim=2).diff(dim=3),
    "rows and columns swapped": lambda m, x: x[..., :6] + x[..., :6].transpose(2, 3),
    "gram": lambda m, x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "pairs of positions": lambda m, x: x[:, 0, :, None, :, None] - x[:, 0, None, :, None, :],
    "rows by rows": lambda m, x: ((x @ x.transpose(2, 3)), x.transpose(2, 3) @ x),
    "last dim": lambda m, x: (x @ m.square).transpose(2, 3) @ torch.ones(6, 2).double(),
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x, x) + x.mean(3, True),
    "dropout": lambda m, x: F.dropout(x),
    "noise": lambda m, x: x + 0.1 * torch.randn_like(x),
    "drop path": lambda m, x: x * torch.rand(2, 1, 1, 1).round(),
    "squeeze": lambda m, x: x[:, :1].squeeze(),
    "unfold": lambda m, x: F.unfold(x, 3),
    "patches": lambda m, x: x.unfold(2, 2, 2).unfold(3, 3, 3),
    "space to depth": lambda m, x: F.pixel_unshuffle(x, 3) if x.shape[2] % 3 == 0 else x,
    "split rows": lambda m, x: x.view(2, 4, 2, 3, 3, 3).sum((3, 5)),
    "hard coded": lambda m, x: x.view(2, 4, 54).view(2, 4, 6, 9) * 1,
    "hard coded, batch gives": lambda m, x: x.reshape(-1, 4, 6, 9) * 1,
    "hard coded expand": lambda m, x: x * m.scale.expand(4, 6, 9),
    "cat rows": lambda m, x: torch.cat([torch.cat([x, x], 2)] * 2, 3),
    "cat whole": lambda m, x: torch.cat([x, m.position.expand(2, 4, 6, 9)], 1),
    "split rows in two": lambda m, x: [part.chunk(3, 3)[1] for part in x.chunk(2, 2)],
    "boolean": lambda m, x: x[x > 0],
    "written rows": lambda m, x: written_in_part(x, (..., 0, 0), 1.0),
    "zeros with one row": lambda m, x: x + zeros_written(x, (..., 0, 0), 1.0),
    "zeros written": lambda m, x: zeros_written(x, (slice(None), 0), x[:, 0]),
    "sorted": lambda m, x: x.sort(2).values.sort(3).values,
    "argmax": lambda m, x: x.flatten(1).argmax(1),
    "norm": lambda m, x: x / x.norm(),
    "equal": lambda m, x: x if torch.equal(x, x) else -x,
    "numpy": lambda m, x: x * x.detach().numpy().mean(),
    "list": lambda m, x: x * sum(x.tolist()[0][0][0]),
    "counted": lambda m, x: (x > 0).sum((2, 3)),
    "triangle": lambda m, x: x.tril(),
    "checked": lambda m, x: x * checked(x),
    "another way": lambda m, x: x.relu() if x.shape[2] > 5 and x.shape[3] > 5 else x.sigmoid(),
    "full of sizes": lambda m, x: x * torch.full((1,), x.shape[2] + x.shape[3]),
    "ones summed": lambda m, x: x * torch.ones_like(x[:1, :1]).sum((2, 3), True),
    "constants averaged": lambda m, x: x + torch.ones(x.shape[2:]).double().sum(),
    "new tensor": lambda m, x: x * x.new_tensor([x.shape[2] * x.shape[3]]),
    "shape as array": lambda m, x: x * torch.tensor(x.shape[2:]).sum(),
}


def checked(x: Tensor) -> int:
    assert x.shape[2:] == (6, 9)
    return 2


def found(name: str, code: Callable[[Any, Tensor], Any]) -> tuple[Code, Tensor, Profile]:
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Code(code)
    return model, x, profile(model, x.requires_grad_())


@pytest.mark.parametrize("name", KEPT)
def test_code_that_treats_positions_alike_is_let_pass(name: str) -> None:
    model, x, seen = found(name, KEPT[name])
    assert seen.mixes == ()
    whole = tensors_of(model(x))
    for dim in (2, 3):
        for parts in (2, 4, 7):
            shares = [run(model, x, dim, parts, index) for index in range(parts)]
            for number, (array, traced) in enumerate(zip(whole, seen.outputs, strict=True)):
                mine = [share[number] for share in shares if share is not None]
                at = traced.dim_of(f"dim{dim}")
                if at is None:
                    assert all(torch.equal(each, array) for each in mine)
                else:
                    torch.testing.assert_close(torch.cat(mine, at), array, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MIXED)
def test_code_that_mixes_positions_is_reported_for_every_dim(name: str) -> None:
    _, _, seen = found(name, MIXED[name])
    labels = {label for mix in seen.mixes for label in mix.labels}
    assert labels >= {"dim2", "dim3"}
    assert all(mix.layer == "" and mix.kind == "Code" and mix.operation for mix in seen.mixes)


def run(model: nn.Module, x: Tensor, dim: int, parts: int, index: int) -> list[Tensor] | None:
    start, stop = balanced(x.shape[dim], parts, index)
    return tensors_of(model(x.narrow(dim, start, stop - start))) if start < stop else None


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in tensors_of(item)]
