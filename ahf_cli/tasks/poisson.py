"""Equations with published results: Poisson's in two and five dimensions, and the heat equation in one.

Source of problems and points: Dangel et al. 2024.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ahf_cli.tasks.equations import Equation, Points, Term
from ahf_cli.tasks.jets import Jet


def inside(random: np.random.Generator, count: int, dimension: int) -> Points:
    """Return uniform points of the unit cube."""
    return random.uniform(size=(count, dimension))


def on_faces(random: np.random.Generator, count: int, dimension: int) -> Points:
    """Return uniform points of the faces of the unit cube."""
    x = random.uniform(size=(count, dimension))
    x[np.arange(count), random.integers(0, dimension, count)] = random.integers(0, 2, count)
    return x


def sines(x: Tensor) -> Tensor:
    """Return Π_i sin πx_i; (N, d) → (N,)."""
    return torch.sin(math.pi * x).prod(dim=-1)


def cosines(x: Tensor) -> Tensor:
    """Return Σ_i cos πx_i; (N, d) → (N,)."""
    return torch.cos(math.pi * x).sum(dim=-1)


def cooling(x: Tensor) -> Tensor:
    """Return sin(πx) exp(−π²t/4) at (x, t); (N, 2) → (N,)."""
    return torch.sin(math.pi * x[..., 0]) * torch.exp(-(math.pi**2) / 4 * x[..., 1])


def _poisson(dimension: int, solution: str, counts: tuple[int, int], fresh: bool = False) -> Equation:
    """−Δu = f in the unit cube, u given on its faces."""
    exact, factor = {"sines": (sines, dimension), "cosines": (cosines, 1)}[solution]

    def equation(u: Jet, x: Tensor) -> Tensor:
        return u.second + factor * math.pi**2 * exact(x)  # −Δu* = factor · π² u*

    def boundary(u: Jet, x: Tensor) -> Tensor:
        return u.value - exact(x)

    return Equation(
        (
            Term("equation", counts[0], lambda r, n: inside(r, n, dimension), equation),
            Term("boundary", counts[1], lambda r, n: on_faces(r, n, dimension), boundary),
        ),
        exact,
        (1.0,) * dimension,
        fresh=fresh,
    )


def poisson2d_sin() -> Equation:
    """−Δu = 2π² u*, u* = sin πx sin πy."""
    return _poisson(2, "sines", (900, 120))


def poisson2d_cos() -> Equation:
    """−Δu = π² u*, u* = cos πx + cos πy."""
    return _poisson(2, "cosines", (900, 120))


def poisson5d_cos() -> Equation:
    """−Δu = π² u*, u* = Σ cos πx_i in five dimensions, with new points at each step."""
    return _poisson(5, "cosines", (3000, 500), fresh=True)


def heat1d() -> Equation:
    """u_t = ¼ u_xx, u* = sin(πx) exp(−π²t/4), at (x, t) in the unit square."""

    def equation(u: Jet, x: Tensor) -> Tensor:
        return u.gradient[..., 1] - 0.25 * u.second

    def given(u: Jet, x: Tensor) -> Tensor:
        return u.value - cooling(x)

    def ends(random: np.random.Generator, count: int) -> Points:
        half = count // 2  # at the ends of the rod, then at time 0
        x = random.uniform(size=(count, 2))
        x[:half, 0] = random.integers(0, 2, half)
        x[half:, 1] = 0
        return x

    whole = Term("equation", 900, lambda r, n: inside(r, n, 2), equation)
    return Equation((whole, Term("boundary", 120, ends, given)), cooling, (1.0, 0.0))
