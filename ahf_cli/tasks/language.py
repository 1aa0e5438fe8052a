"""Prediction of the next character: the text of Debian's package bible-kjv-text, and transformers for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahf_cli.errors import InputError
from ahf_cli.optim.rows import Layout
from ahf_cli.tasks.initial import drawn_matrices

if TYPE_CHECKING:
    from ahf_cli.tasks.datasets import Arrays

STEPS = 128
"""characters of an input"""
FILE = "bible.data"
MAGIC = b"\x1f\x9d"
"""first bytes of the output of the Unix program `compress`"""
CLEAR, NARROW = 256, 9
"""the code that empties the table, and the bits of the first codes"""
DEVIATION = 0.02
HEAD = 32
"""width of one attention head"""


def read_bible(folder: Path) -> Arrays:
    """Return windows of 128 characters (N, 128) as symbols, and each character's next one, (N, 128).

    Windows follow each other in the text without overlap.  The last twentieth of them is the test set.  The
    symbols number the characters of the whole text in the order of their codes.
    """
    path = folder / FILE
    content = path.read_bytes()
    start = content.find(MAGIC)
    if start < 0:
        raise InputError(f"{path} must hold the output of compress, which starts with {MAGIC.hex()}")
    return windows(uncompressed(content[start:]), STEPS)


def windows(text: bytes, steps: int) -> Arrays:
    """Return the training and test windows of a text; see `read_bible`."""
    _, symbols = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    count = (len(symbols) - 1) // steps
    x = symbols[: count * steps].reshape(count, steps).astype(np.int64)
    y = symbols[1 : count * steps + 1].reshape(count, steps).astype(np.int64)
    cut = count * 19 // 20
    return x[:cut], y[:cut], x[cut:], y[cut:]


def uncompressed(packed: bytes) -> bytes:
    """Return the content of a file of the Unix program `compress` (Welch 1984; ncompress 5).

    Codes of w bits fill groups of w bytes, low bits first.  A new w or an emptied table starts a new group.
    """
    most = packed[2] & 31
    letters = [bytes((n,)) for n in range(256)]
    table, width, at = [*letters, b""], NARROW, 3
    before, found = b"", []
    while at < len(packed):
        group = packed[at : at + width]
        bits, at = int.from_bytes(group, "little"), at + width
        for _ in range(8 * len(group) // width):
            code, bits = bits & ((1 << width) - 1), bits >> width
            if code == CLEAR:
                table, width = letters.copy(), NARROW  # the next code fills place 256 with an unused word
                break
            if code > len(table) or (code == len(table) and not before):
                raise InputError(f"code {code} of a compressed text must be ≤ {len(table)}, its known words")
            word = table[code] if code < len(table) else before + before[:1]
            found.append(word)
            if before and len(table) < 1 << most:
                table.append(before + word[:1])
            before = word
            if len(table) >= 1 << width and width < most:
                width += 1
                break
    return b"".join(found)


class AttentionBlock(nn.Module):
    """Causal self-attention and two dense layers, each after a layer normalisation and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)  # queries, keys and values
        self.mix = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape; the mask (T, T) is −∞ at later positions, else 0."""
        q, k, v = self.ask(self.first(x)).unflatten(-1, (3, -1, HEAD)).movedim(-2, -4).unbind(-2)
        # A softmax of its own: fused attention has no second derivative.
        weights = torch.softmax(q @ k.mT / math.sqrt(HEAD) + mask, dim=-1)
        x = x + self.mix((weights @ v).transpose(-3, -2).flatten(-2))
        deep: Tensor = self.narrow(nn.functional.gelu(self.widen(self.second(x))))
        return x + deep


class Transformer(nn.Module):
    """A causal transformer with normalisation first; symbols (N, T) → logits of the next ones (N, T, C).

    Embedding and learned positions – blocks – layer normalisation – linear layer.  Output t depends on the
    inputs up to t alone.
    """

    def __init__(self, symbols: int, steps: int, width: int, layers: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(symbols, width)
        self.position = nn.Embedding(steps, width)
        self.blocks = nn.ModuleList(AttentionBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, symbols)
        self.register_buffer("mask", torch.full((steps, steps), -math.inf).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map symbols to logits."""
        h = self.symbol(x) + self.position.weight
        for block in self.blocks:
            h = block(h, self.mask)
        logits: Tensor = self.output(self.norm(h))
        return logits


def transformer_weights(layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
    """Draw matrices from N(0, 0.02²), by 1/√(2 layers) less where a branch ends (Radford et al. 2019).

    Biases are 0, and vectors named in `ones` are 1; → (P,) float32.
    """

    def draw(rng: np.random.Generator, shape: torch.Size) -> NDArray[np.float64]:
        return DEVIATION * rng.standard_normal(shape.numel())

    weights = drawn_matrices(layout, seed, ones, draw)
    ends = ("mix.weight", "narrow.weight")
    branches = sum(name.endswith(ends) for name in layout.names)  # two in each layer
    for name, piece in zip(layout.names, layout.split(weights[None]), strict=True):
        if name.endswith(ends):
            piece /= math.sqrt(branches)  # a view into the weights
    return weights


def _transformer(width: int, layers: int) -> Callable[[tuple[int, ...], int], nn.Module]:
    def make(shape: tuple[int, ...], outputs: int) -> nn.Module:
        (steps,) = shape
        return Transformer(outputs, steps, width, layers)

    make.__doc__ = f"A causal transformer of {layers} layers, {width} wide, with heads of {HEAD}."
    return make


transformer_128 = _transformer(128, 4)
transformer_64 = _transformer(64, 2)
transformer_32 = _transformer(32, 2)
