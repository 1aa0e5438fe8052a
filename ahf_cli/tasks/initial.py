"""Initial weights: functions of a layout and a seed, drawn by NumPy and so equal on every device."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahf_cli.optim.rows import Layout

Initial = Callable[[Layout, int, Collection[str]], Tensor]
"""(layout, training seed, names of the scales of normalisation layers) ↦ weights, (P,) float32."""
INCOMING = 15
"""Number of non-zero incoming weights of a unit (Martens 2010)."""


def glorot_uniform(layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
    """Draw weights uniform in ±√(6/(fan_in + fan_out)) (Glorot and Bengio 2010), biases 0; → (P,) float32.

    Vectors named in `ones`, the scales of normalisation layers, are 1.  The result depends on the arguments
    alone and is equal on every device, because NumPy draws the random numbers.
    """
    return drawn_matrices(layout, seed, ones, _uniform)


def sparse(layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
    """Draw 15 incoming weights of each unit from N(0, 1), all others and biases 0; → (P,) float32.

    A unit with fewer than 15 inputs has all of them (Martens 2010).  Vectors named in `ones` are 1.
    """

    def draw(rng: np.random.Generator, shape: torch.Size) -> NDArray[np.float64]:
        weights = np.zeros((shape[0], shape[1:].numel()))
        chosen = rng.random(weights.shape).argsort(axis=1)[:, :INCOMING]
        np.put_along_axis(weights, chosen, rng.standard_normal(chosen.shape), axis=1)
        return weights

    return drawn_matrices(layout, seed, ones, draw)


def orthogonal(layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
    """Draw each square matrix uniform among the orthogonal ones, others by Glorot, biases 0; → (P,) float32.

    A recurrent network then keeps the length of a hidden state, up to its inputs and the slope of tanh (Saxe
    et al. 2014).  Vectors named in `ones` are 1.
    """

    def draw(rng: np.random.Generator, shape: torch.Size) -> NDArray[np.float64]:
        if len(shape) != 2 or shape[0] != shape[1]:
            return _uniform(rng, shape)
        q, r = np.linalg.qr(rng.standard_normal(tuple(shape)))
        return q * np.sign(np.diag(r))  # without these signs Q is not uniform

    return drawn_matrices(layout, seed, ones, draw)


def _uniform(rng: np.random.Generator, shape: torch.Size) -> NDArray[np.float64]:
    bound = np.sqrt(6 / ((shape[0] + shape[1]) * int(np.prod(shape[2:]))))
    return rng.uniform(-bound, bound, shape.numel())


def drawn_matrices(
    layout: Layout, seed: int, ones: Collection[str],
    draw: Callable[[np.random.Generator, torch.Size], NDArray[np.float64]],
) -> Tensor:  # fmt: skip
    """Return drawn matrices and kernels; vectors are 1 where named in `ones`, else 0."""
    rng = np.random.default_rng([seed, 0])
    pieces = [
        draw(rng, shape).ravel() if len(shape) > 1 else np.full(shape.numel(), float(name in ones))
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    ]
    return torch.from_numpy(np.concatenate(pieces)).float()
