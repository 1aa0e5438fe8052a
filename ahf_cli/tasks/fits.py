"""Small least-squares fits as tasks: the model is the vector of parameters, an example one residual."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ahf_cli.optim.rows import Layout
    from ahf_cli.tasks.datasets import Arrays

SPREAD = 0.1
"""standard deviation of a relative change of the start, for seeds above 0"""
STEP, TIMES, SIGMA = 0.1, 25, 0.05
"""step of the integration, number of times of measurement (each second step), standard deviation of noise"""


@dataclass(frozen=True)
class Fit:
    """½ ‖ρ(θ)‖² of M residuals, with a start and the parameters that made the data."""

    predict: Callable[[Tensor], Tensor]
    """θ (P,) → predictions, (M,)"""
    start: tuple[float, ...]
    known: tuple[float, ...]
    """θ*, whose predictions are the data, apart from noise"""
    noise: float = 0.0
    """standard deviation of the noise, drawn with seed 0"""

    @cached_property
    def data(self) -> Tensor:
        """The measurements y, (M,) float64."""
        exact = self.predict(torch.tensor(self.known, dtype=torch.float64))
        drawn = np.random.default_rng(0).normal(0, self.noise, len(exact))
        return exact + torch.from_numpy(drawn)

    def residuals(self, theta: Tensor) -> Tensor:
        """Return ρ = f(θ) − y; (P,) → (M,)."""
        return self.predict(theta) - self.data.to(theta)

    def read(self, folder: Path) -> Arrays:
        """Return the examples: numbers of residuals, and M as the weight of each, so that h = ½ ‖ρ‖²."""
        count = len(self.data)
        x, y = np.arange(count, dtype=np.float64)[:, None], np.full((count, 1), float(count))
        return x, y, x, y

    def model(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """θ itself: numbers of residuals (N, 1) → the residuals and the distance to θ*."""
        return Parameters(self)

    def initial(self, layout: Layout, seed: int, ones: Collection[str] = ()) -> Tensor:
        """Return the start itself for seed 0, else its entries times 1 + 0.1 ξ, ξ normal; → (P,)."""
        start = np.array(self.start)
        changes = SPREAD * np.random.default_rng([seed, 0]).standard_normal(len(start))
        return torch.from_numpy(start * (1 + changes) if seed else start)


class Parameters(nn.Module):
    """Numbers of residuals (N, 1) → (N, 2): the residuals at θ, and ‖θ − θ*‖ beside each."""

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self.fit, self.theta = fit, nn.Parameter(torch.tensor(fit.start))

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (ρ_n, ‖θ − θ*‖)."""
        r = self.fit.residuals(self.theta)[numbers[..., 0].long()]
        # Without a graph: the second derivative of a norm is not finite at θ*.
        distance = (self.theta.detach() - self.theta.new_tensor(self.fit.known)).norm()
        return torch.stack([r, distance.expand_as(r)], dim=-1)


def _rosenbrock(theta: Tensor) -> Tensor:
    return torch.stack([10 * (theta[1] - theta[0] ** 2), 1 - theta[0]])


def _exponentials(theta: Tensor) -> Tensor:
    times = 0.05 * torch.arange(24, dtype=theta.dtype, device=theta.device)
    return (theta[::2, None] * torch.exp(-theta[1::2, None] * times)).sum(dim=0)


def _predator_prey(theta: Tensor) -> Tensor:
    """Integrate x′ = x (a − b y), y′ = y (d x − c) from (1, 1) by the classical method of Runge and Kutta."""
    a, b, c, d = theta
    growth, coupling = torch.stack([a, -c]), torch.stack([-b, d])

    def slope(z: Tensor) -> Tensor:
        return z * (growth + coupling * z.flip(0))

    z, found = torch.ones_like(growth), []
    for _ in range(2 * TIMES):
        k1 = slope(z)
        k2 = slope(z + STEP / 2 * k1)
        k3 = slope(z + STEP / 2 * k2)
        k4 = slope(z + STEP * k3)
        z = z + STEP / 6 * (k1 + 2 * (k2 + k3) + k4)
        found.append(z)
    return torch.cat(found[1::2])


rosenbrock = Fit(_rosenbrock, (-1.2, 1.0), (1.0, 1.0))
"""The valley of Rosenbrock (1960): residuals 10 (y − x²) and 1 − x; the data are 0."""
lanczos = Fit(_exponentials, (1.2, 0.3, 5.6, 5.5, 6.5, 7.6), (0.0951, 1.0, 0.8607, 3.0, 1.5576, 5.0))
"""Three exponentials at 24 times (Lanczos 1956), from the first start of NIST's problem Lanczos1."""
predator_prey = Fit(_predator_prey, (1.2, 0.8, 2.5, 0.8), (1.5, 1.0, 3.0, 1.0), SIGMA)
"""The four rates of Lotka and Volterra's equations, from 25 noisy pairs of numbers of prey and predators."""
