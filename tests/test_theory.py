"""docs/theory.md: each inequality of the proof of Theorem 1 on random draws in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahf_cli.optim.moments import ScaleByAdam
from ahf_cli.optim.step_size import conjugate_smoothness, eq3

Array = NDArray[np.float64]
ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Draw:
    """Vectors g₁, …, g_t and constants of the theorem; σ bounds the vectors."""

    g: Array  # (t, d)
    beta1: float
    root: Array
    """√v_t, (d,), with entries in [0, σ]"""
    xi: float
    sigma: float

    @cached_property
    def weights(self) -> Array:
        """(1−β₁) β₁ᵗ⁻ᵏ, the weights of g₁, …, g_t in m_t."""
        return (1 - self.beta1) * self.beta1 ** np.arange(len(self.g) - 1, -1, -1.0)

    @cached_property
    def earlier(self) -> float:
        """b_t, the weight of all earlier vectors."""
        return self.beta1 - self.beta1 ** len(self.g)

    @cached_property
    def diagonal(self) -> Array:
        """The entries of D_t."""
        return 1 / (self.root + self.xi)

    @cached_property
    def q(self) -> float:
        """Q_t."""
        return float(self.g[-1] * self.diagonal @ (self.weights @ self.g))

    @cached_property
    def length(self) -> float:
        """‖g_t‖."""
        return float(np.linalg.norm(self.g[-1]))

    @cached_property
    def printed(self) -> float:
        """P_t, Eq. 19."""
        terms = (1 - self.beta1) * self.length**2 - self.earlier * self.length * self.sigma
        return terms / (self.xi + self.sigma)

    @cached_property
    def repaired(self) -> float:
        """R_t."""
        first = (1 - self.beta1) * self.length**2 / (self.xi + self.sigma)
        return first - self.earlier * self.length * self.sigma / self.xi


def root(g: Array, beta2: float) -> Array:
    """Return √v_t."""
    weights = (1 - beta2) * beta2 ** np.arange(len(g) - 1, -1, -1.0)
    found: Array = np.sqrt(weights @ g**2)
    return found


def draws(count: int = 2000, seed: int = 0) -> Iterator[Draw]:
    """Yield vectors of unequal entries, half of them turned against the last one, and any constants."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        t, d = rng.integers(1, 6), rng.integers(1, 5)
        g = rng.normal(size=(t, d)) * 10.0 ** rng.uniform(-2, 1, size=(t, d))
        if n % 2:
            g[:-1] = -g[-1] * rng.uniform(0.5, 20, size=(t - 1, 1))
        sigma = float(np.linalg.norm(g, axis=1).max())
        beta2 = rng.choice([0.0, rng.uniform(0, 1)])
        yield Draw(g, rng.uniform(0, 0.95), root(g, beta2), sigma * 10 ** rng.uniform(-1, 1), sigma)


def hypotheses(count: int = 8000, seed: int = 1) -> Iterator[tuple[Draw, float]]:
    """Yield the worst vectors, any √v_t, and ε, within hypotheses 2 to 4 and with ‖g_t‖ ≥ ε."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        d, sigma = rng.integers(1, 5), 1.0
        epsilon = 10 ** rng.uniform(-2, 0)
        kappa = 1 + 10 ** rng.uniform(-2, 1)
        beta1 = epsilon / (epsilon + kappa * sigma)
        xi = sigma / (kappa - 1) * (1 + 10 ** rng.uniform(-6, 1))
        last = rng.normal(size=d) * 10.0 ** rng.uniform(-2, 1, size=d)
        last *= (epsilon if n % 2 else rng.uniform(epsilon, sigma)) / np.linalg.norm(last)
        spread = sigma * rng.choice([0, 1, rng.uniform()], size=d)
        worst = -last / (spread + xi)
        worst *= sigma / np.linalg.norm(worst)
        yield Draw(np.stack([*[worst] * rng.integers(1, 4), last]), beta1, spread, xi, sigma), epsilon


def test_every_inequality_of_the_plain_repair_holds() -> None:
    for draw in draws():
        last, D, before = draw.g[-1], draw.diagonal, draw.weights[:-1]
        assert (1 / (draw.xi + draw.sigma) <= D * ROUNDING).all() and (ROUNDING / draw.xi >= D).all()
        assert before.sum() == pytest.approx(draw.earlier, abs=1e-12) and draw.earlier <= draw.beta1
        products = draw.g @ (D * last)
        assert draw.q == pytest.approx(draw.weights @ products, rel=1e-9, abs=1e-12)
        assert products[-1] * ROUNDING >= draw.length**2 / (draw.xi + draw.sigma)
        assert (products >= -ROUNDING * draw.length * draw.sigma / draw.xi).all()
        assert draw.q >= draw.repaired - 1e-12 * draw.length * draw.sigma / draw.xi


def test_the_step_to_the_printed_bound_has_counterexamples() -> None:
    draw = Draw(g := np.array([[-1.0], [0.1]]), 0.5, root(g, 0), 2.0, 1.0)
    assert draw.q == pytest.approx(-0.02 / 2.1) and draw.printed == pytest.approx(-0.02 / 3)
    assert draw.repaired == pytest.approx(0.005 / 3 - 0.0125) and draw.repaired < draw.q < draw.printed
    others = [d for d in draws() if d.q < d.printed - 1e-9 * d.length * d.sigma / d.xi]
    assert len(others) > 20


def test_condition_4_is_positivity_of_the_repaired_bound_at_epsilon() -> None:
    rng = np.random.default_rng(2)
    signs = []
    for _ in range(5000):
        sigma, epsilon, xi = 10 ** rng.uniform(-2, 2, size=3)
        beta1 = rng.uniform(0, 1) * epsilon / (epsilon + sigma)  # condition 3
        bound = (1 - beta1) * epsilon**2 / (xi + sigma) - beta1 * epsilon * sigma / xi
        signs.append(bound > 0)
        assert signs[-1] == (xi > sigma**2 * beta1 / ((1 - beta1) * epsilon - beta1 * sigma))
    assert 0.05 < np.mean(signs) < 0.95
    beta1 = 0.3 / (0.3 + 2 * 1.7)  # the paper's: condition 4 is ξ > σ
    assert 1.7**2 * beta1 / ((1 - beta1) * 0.3 - beta1 * 1.7) == pytest.approx(1.7)


def test_within_the_hypotheses_the_printed_bound_holds_step_by_step() -> None:
    closest = np.inf
    for draw, epsilon in hypotheses():
        last, a, beta1, sigma = draw.g[-1], draw.length, draw.beta1, draw.sigma
        c0, r = 1 / (draw.xi + sigma), sigma / draw.xi
        e = draw.diagonal / c0 - 1
        mean = float(e @ last**2) / a**2
        assert e.min() >= -1e-9 and e.max() <= r * ROUNDING
        bent = draw.diagonal * last
        assert last @ bent == pytest.approx(c0 * a**2 * (1 + mean))
        assert np.linalg.norm(bent) <= c0 * a * (1 + (1 + r / 2) * mean) * ROUNDING
        earlier = draw.weights[:-1] @ (draw.g[:-1] @ bent)
        assert earlier >= -draw.earlier * sigma * np.linalg.norm(bent) * ROUNDING
        bracket = (1 - beta1) * a - (1 + r / 2) * draw.earlier * sigma
        assert draw.q >= draw.printed + c0 * a * mean * bracket - 1e-12 * c0
        kappa = (1 - beta1) * epsilon / (beta1 * sigma)
        assert r < kappa - 1 and 1 + r / 2 < kappa and bracket > 0
        assert draw.q >= draw.printed - 1e-12 * c0
        closest = min(closest, draw.q / draw.printed)
    assert closest < 1.01  # the draws come close to the bound


def test_definition_1_makes_every_other_vector_field_fail() -> None:
    rng = np.random.default_rng(3)
    A, x = rng.normal(size=(4, 4)), torch.from_numpy(rng.normal(size=4))
    B = torch.from_numpy(A @ A.T + np.eye(4))
    gradient = B @ x
    for g in (
        gradient,
        gradient + 0.1 * torch.from_numpy(rng.normal(size=4)),
        torch.linalg.solve(B, gradient),
    ):
        off = gradient - g
        along = off if off.any() else torch.ones(4, dtype=torch.float64)
        for sign in (1, -1):
            values = [smoothness(B, x, g, sign * tau * along) for tau in (1e-1, 1e-3)]
            slope = float(2 * sign * off @ along / along.square().sum())
            own = float(along @ B @ along / along.square().sum())
            assert values == pytest.approx([own + slope / 1e-1, own + slope / 1e-3], rel=1e-6)
            assert slope == pytest.approx(0 if not off.any() else 2 * sign)


def smoothness(B: Tensor, x: Tensor, g: Tensor, step: Tensor) -> float:
    """Return L̂ of Eq. 2 for f(x) = ½ xᵀBx."""
    here, there = 0.5 * x @ B @ x, 0.5 * (x + step) @ B @ (x + step)
    return float(conjugate_smoothness(here[None], there[None], (g @ step)[None], step[None]))


def test_along_a_newton_direction_the_unit_of_the_loss_decides() -> None:
    rng = np.random.default_rng(4)
    A, x = rng.normal(size=(4, 4)), torch.from_numpy(rng.normal(size=4))
    for unit in (1e-3, 1.0, 1e3):
        B = torch.from_numpy(unit * (A @ A.T))
        damped = B + 0.1 * unit * torch.eye(4, dtype=torch.float64)
        delta = -torch.linalg.solve(damped, B @ x)
        curvature = float(delta @ damped @ delta / delta.square().sum())
        for c in (1.0, 1e-2):
            difference = smoothness(B, x, -delta, c * delta) - smoothness(B, x, B @ x, c * delta)
            assert difference == pytest.approx(2 / c * (1 - curvature), rel=1e-6)
        assert (curvature > 1) == (unit == 1e3) or unit == 1.0


@pytest.mark.parametrize(("slack", "factor"), [(1.0, 4.5), (1.5, 18.0)])
def test_algorithm_1_with_the_gradient_does_what_the_theorem_says(slack: float, factor: float) -> None:
    """f(x) = Σ cᵢ (1 − cos aᵢxᵢ) has f ≥ 0, ‖∇f‖ ≤ ‖ca‖ and L = max ca², and is not convex."""
    torch.manual_seed(5)
    K, d = 40, 6
    a, c = torch.rand(2, K, d, dtype=torch.float64) + 0.2
    x = 3 * torch.randn(K, d, dtype=torch.float64)
    sigma, L = (c * a).norm(dim=1), (c * a**2).amax(dim=1)
    values = {
        "sigma": sigma, "smoothness": L, "epsilon": sigma * torch.linspace(0.3, 0.95, K), "mu": 2 * sigma,
        "beta2": torch.rand(K, dtype=torch.float64),
    }  # fmt: skip
    epsilon = values["epsilon"]

    def f(x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vecdot(c, 1 - torch.cos(a * x))
        return found

    T = factor * L * (epsilon + 2 * sigma) ** 2 * f(x) / epsilon**4
    transform, going = ScaleByAdam(), torch.ones(K, dtype=torch.bool)
    moments, last = transform.init(x), torch.zeros(K, dtype=torch.float64)
    beta1 = epsilon / (epsilon + 2 * sigma)
    for step in range(1, 2000):
        t = torch.full((K,), step)
        g = c * a * torch.sin(a * x)
        length = g.norm(dim=1)
        going = going & (length > epsilon)
        if not going.any():
            break
        last = torch.where(going, t, last)
        alpha = eq3(length, values, t, slack)
        vector, moments = transform(-g, moments, values, t)
        after = x + alpha[:, None] * vector
        weight = 1 - beta1**step
        bound = alpha * L * weight**2 / 4  # E_t
        assert (
            bound[going] >= (epsilon**2 * (2 - slack) / (3 * (epsilon + 2 * sigma)))[going] / ROUNDING
        ).all()
        assert ((-(g * vector).sum(dim=1) * weight)[going] * ROUNDING >= bound[going]).all()
        assert (vector.norm(dim=1)[going] <= ROUNDING / 2).all()
        fall = 2 * bound**2 / L
        assert ((2 * weight - 1) / weight**4)[going].min() >= 1
        assert ((f(x) - f(after))[going] >= fall[going] * (1 - 1e-9)).all()
        x = torch.where(going[:, None], after, x)
    assert not going.any() and (last <= T).all() and last.max() > 20


def test_the_last_inequality_holds_on_its_interval() -> None:
    w = np.linspace(2 / 3, 1, 1001)
    values = (2 * w - 1) / w**4
    assert (np.diff(values) < 0).all() and values[[0, -1]] == pytest.approx([27 / 16, 1])
