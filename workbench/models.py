"""Small plain models for the catalogue: ordinary modules that know nothing of the workbench.

They run in any floating dtype and on torch's meta device, as no value decides what is computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DigitsCNN(nn.Sequential):
    """Three convolutions with pooling, then two linear layers: about 122,000 parameters.

    Takes (N, 1, 32, 32), gives (N, classes). The second and third convolutions are followed by
    BatchNorm; the first is not, because its output is the largest array of the model.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )


class DigitsMLP(nn.Sequential):
    """Two wide hidden layers: about 5 million parameters for few operations per sample.

    Takes (N, ...) with ``inputs`` values per sample, gives (N, classes).
    """

    def __init__(self, inputs: int = 32 * 32, width: int = 1792, classes: int = 10) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, classes),
        )


class ResidualBlock(nn.Module):
    """A perceptron of two layers, after a LayerNorm and added to its input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.act, self.down = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, width) with what the perceptron adds."""
        added: Tensor = self.down(self.act(self.up(self.norm(x))))
        return x + added


class ResidualMLP(nn.Sequential):
    """A chain of equal residual blocks: 8.5 million parameters, all in linear layers.

    Takes (N, inputs), gives (N, classes).
    """

    def __init__(
        self,
        inputs: int = 256,
        width: int = 512,
        hidden: int = 1024,
        blocks: int = 8,
        classes: int = 10,
    ) -> None:
        super().__init__(
            nn.Linear(inputs, width),
            *(ResidualBlock(width, hidden) for _ in range(blocks)),
            nn.LayerNorm(width),
            nn.Linear(width, classes),
        )


class DenoiseCNN(nn.Module):
    """Fully convolutional: predicts the noise of an image and subtracts it.

    Takes (N, channels, H, W) of any height and width, gives the same shape.
    """

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.noise = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return ``image`` (N, channels, H, W) without the noise that was found in it."""
        return image - self.noise(image)


class CausalAttention(nn.Module):
    """Attention in which a position sees itself and earlier ones: (N, T, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not divide into {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of ``x`` (N, T, width), heads side by side."""
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, T, width) with what attention and perceptron add."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class ByteGPT(nn.Module):
    """A small causal transformer over bytes: about 470,000 parameters.

    Takes (N, T) integers 0..255 with T at most ``length``, gives (N, T, 256): at each position the
    logits of the next byte. Its loss is :class:`workbench.losses.NextByteLoss`.
    """

    def __init__(
        self, width: int = 128, heads: int = 4, blocks: int = 2, length: int = 128
    ) -> None:
        super().__init__()
        self.byte = nn.Embedding(256, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Return logits (N, T, 256) for ``text`` (N, T)."""
        place = torch.arange(text.shape[1], device=text.device)
        x = self.byte(text) + self.position(place)
        return self.head(self.norm(self.blocks(x)))
