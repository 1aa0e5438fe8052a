"""The randomly probed diagonal: exact for a diagonal B, else unbiased with its variance, row by row."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ahf_cli.optim import HessianFree
from ahf_cli.optim.explicit import rademacher
from ahf_cli.optim.preconditioners import PROBES, Surroundings, hutchinson
from tests.problems import diagonal_of, problem, rows


def probed(b: Tensor, steps: Tensor) -> Tensor:
    """Return D of a dense B, (P, P), as each row finds it: M without λ."""
    damping = torch.full((len(steps),), 0.5, dtype=torch.float64)
    here = problem("mlp", examples=4)
    at = here.evaluate(rows(here, len(steps)))
    found = hutchinson(Surroundings(at, lambda v: v @ b, damping, steps))
    assert found.products == PROBES
    return diagonal_of(found) - 0.5


def test_the_signs_are_fair_and_follow_from_the_step_alone() -> None:
    like = torch.zeros(1, 2000, dtype=torch.float64)
    signs = torch.cat([rademacher(step, like) for step in range(300)])
    assert bool((signs.abs() == 1).all()) and torch.equal(signs[7:8], rademacher(7, like))
    # Means of n signs have the standard deviation 1/√n, over the weights and over the steps.
    assert signs.mean().abs() < 4 / math.sqrt(signs.numel())
    assert 0.9 < float(signs.mean(0).std()) * math.sqrt(300) < 1.1
    assert 0.9 < float(signs.mean(1).std()) * math.sqrt(2000) < 1.1
    between = (signs[:-1] * signs[1:]).mean(1)
    assert 0.9 < float(between.std()) * math.sqrt(2000) < 1.1


def test_the_diagonal_of_a_diagonal_matrix_is_exact() -> None:
    size = rows(problem("mlp", examples=4), 1).shape[1]
    diagonal = torch.logspace(-4, 4, size, dtype=torch.float64)
    found = probed(torch.diag(diagonal), torch.arange(2))
    torch.testing.assert_close(found, diagonal.expand(2, -1), rtol=1e-9, atol=1e-12)


def test_the_estimate_is_unbiased_with_its_variance() -> None:
    size = rows(problem("mlp", examples=4), 1).shape[1]
    noise = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # A diagonal so large that no estimate is negative: then |D| = D.
    b = (noise + noise.T) / math.sqrt(size) + 20 * torch.eye(size, dtype=torch.float64)
    found = torch.cat([probed(b, torch.tensor([step])) for step in range(200)])
    off = (b - torch.diag(b.diagonal())).square().sum(1) / PROBES
    score = (found.mean(0) - b.diagonal()) / (off / 200).sqrt()
    assert 0.9 < float(score.std()) < 1.1
    torch.testing.assert_close(float((found.var(0) / off).mean()), 1.0, rtol=0.03, atol=0)


def test_badly_scaled_features_cost_few_iterations() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(200, 20, generator=source, dtype=torch.float64) * torch.logspace(-2, 2, 20).double()
    w = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    counts = {}

    def loss() -> tuple[Tensor, Tensor]:
        z = x @ w
        return nn.functional.softplus(z).mean(), z

    for preconditioner in ("none", "hutchinson"):
        optimizer = HessianFree(
            [w], damping=1e-4, preconditioner=preconditioner, curvature="ggn", backtracking="none",
            max_iterations=1000,
        )  # fmt: skip
        optimizer.step(loss)
        info = optimizer.last_step
        assert info is not None
        counts[preconditioner] = int(info.cg_iterations)
        assert int(info.products) == counts[preconditioner] + PROBES * (preconditioner == "hutchinson")
    assert counts["hutchinson"] < 0.6 * counts["none"]
