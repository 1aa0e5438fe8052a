"""Your own equation: Helmholtz' equation Δu + k²u = f on the unit square, with a known solution.

    ahf train lm_geodesic --plugin examples/own_equation.py --config examples/own_equation.yaml --study waves
    ahf show --plugin examples/own_equation.py waves lm_geodesic/0

Two terms give the equation inside and the boundary values; `u` has a value, a gradient and Δu.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ahf_cli import plugin
from ahf_cli.tasks.equations import Equation, Term
from ahf_cli.tasks.jets import Jet
from ahf_cli.tasks.poisson import inside, on_faces

K = 4.0


def solution(x: Tensor) -> Tensor:
    """Return sin πx₁ sin 2πx₂."""
    return torch.sin(math.pi * x[..., 0]) * torch.sin(2 * math.pi * x[..., 1])


def equation(u: Jet, x: Tensor) -> Tensor:
    """Return Δu + k²u − f; f = (k² − 5π²) u* makes u* the solution."""
    return u.second + K**2 * u.value - (K**2 - 5 * math.pi**2) * solution(x)


def boundary(u: Jet, x: Tensor) -> Tensor:
    """Return u − u*."""
    return u.value - solution(x)


@plugin.equation("helmholtz")
def helmholtz() -> Equation:
    """Δu + k²u = f in the unit square."""

    def points(random: np.random.Generator, count: int) -> np.ndarray:
        return inside(random, count, 2)

    def edge(random: np.random.Generator, count: int) -> np.ndarray:
        return on_faces(random, count, 2)

    terms = (Term("equation", 400, points, equation), Term("boundary", 80, edge, boundary))
    return Equation(terms, solution, second=(1.0, 1.0))
