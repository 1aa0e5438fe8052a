"""Small networks of 14 kinds, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, CLASSES, LENGTH, WIDTH = 12, 3, 5, 4
IMAGE, SEQUENCE, TOKENS = (1, 6, 6), (LENGTH, WIDTH), (LENGTH,)


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return inputs and classes; for the shape of a sentence, inputs are token numbers."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(CLASSES, (BATCH,), generator=generator)
    if shape == TOKENS:
        return torch.randint(10, (BATCH, *shape), generator=generator), y
    return torch.randn(BATCH, *shape, generator=generator, dtype=dtype), y


def convolutional(*between: nn.Module) -> nn.Module:
    """Two convolutions with more layers between them; (N, 1, 6, 6) → (N, 3)."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), *between, nn.Conv2d(4, 4, 2), nn.Tanh(), nn.Flatten(),
        nn.Linear(36, CLASSES),
    )  # fmt: skip


class Attention(nn.Module):
    """Self-attention by PyTorch's function; (N, L, W) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(seen[:, 0].mean(1))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """A layer on sequences, the mean over the sequence, a linear layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        features = inner[0] if isinstance(inner, tuple) else inner
        return self.out(features.mean(1))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A bag of words whose embedding and output layer share one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10, WIDTH), nn.Linear(WIDTH, 10, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(ids).mean(1)))[:, :CLASSES]  # type: ignore[no-any-return]


def spectral() -> nn.Module:
    flat = nn.utils.parametrizations.spectral_norm(nn.Linear(36, 4))
    return nn.Sequential(nn.Flatten(), flat, nn.Tanh(), nn.Linear(4, CLASSES))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (convolutional, IMAGE),
    "depthwise": (lambda: convolutional(nn.Conv2d(4, 4, 3, padding=1, groups=4)), IMAGE),
    "batch_norm": (lambda: convolutional(nn.BatchNorm2d(4)), IMAGE),
    "group_norm": (lambda: convolutional(nn.GroupNorm(2, 4)), IMAGE),
    "spectral_norm": (spectral, IMAGE),
    "dropout": (lambda: convolutional(nn.Dropout(0.5)), IMAGE),
    "layer_norm": (lambda: Pooled(nn.LayerNorm(WIDTH)), SEQUENCE),
    "attention": (Attention, SEQUENCE),
    "multihead": (lambda: Pooled(nn.MultiheadAttention(WIDTH, 2, batch_first=True)), SEQUENCE),
    "transformer": (
        lambda: Pooled(nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)),
        SEQUENCE,
    ),
    "lstm": (lambda: Pooled(nn.LSTM(WIDTH, WIDTH, batch_first=True)), SEQUENCE),
    "gru": (lambda: Pooled(nn.GRU(WIDTH, WIDTH, batch_first=True)), SEQUENCE),
    "embedding": (lambda: Pooled(nn.Embedding(10, WIDTH)), TOKENS),
    "tied": (Tied, TOKENS),
}
