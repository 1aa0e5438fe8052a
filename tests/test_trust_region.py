"""Steihaug's trust region against SciPy's, and the properties that it must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import rosen
from scipy.optimize._trustregion_ncg import CGSteihaugSubproblem
from torch import Tensor, nn

from ahf_cli.optim import HessianFree
from ahf_cli.optim.cg import CGResult, RelativeMartensRules, Stop
from ahf_cli.optim.trust_region import steihaug
from ahf_cli.recipes.builtin import RECIPES

ROWS, SIZE = 6, 12


class Residual(RelativeMartensRules):
    """SciPy's rule: ‖r‖ ≤ min(½, √‖g‖) ‖g‖."""

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        return (squared**0.25).clamp_max(0.5).square() * squared

    def progress_stop(self, phi: list[Tensor]) -> None:
        pass


def problems(lowest: float) -> tuple[Tensor, Tensor]:
    """Symmetric B with eigenvalues from `lowest` to 10, (K, P, P), and gradients, (K, P)."""
    source = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(ROWS, SIZE, SIZE, generator=source, dtype=torch.float64))[0]
    b = basis * torch.linspace(lowest, 10, SIZE, dtype=torch.float64) @ basis.mT
    return b, torch.randn(ROWS, SIZE, generator=source, dtype=torch.float64) / 9


def solved(b: Tensor, g: Tensor, damping: Tensor, active: Tensor, keep: range = range(0)) -> CGResult:
    return steihaug(lambda v: (b @ v[..., None])[..., 0], damping, g, Residual(), 4 * SIZE, active, keep=keep)


@pytest.mark.parametrize("lowest", [0.1, -2.0])
def test_each_row_is_the_subproblem_of_scipy(lowest: float) -> None:
    b, g = problems(lowest)
    damping = torch.logspace(-2, 2, ROWS, dtype=torch.float64)
    found = solved(b, g, damping, torch.arange(ROWS) != 3)
    for k in range(ROWS):
        if k == 3:
            assert found.stop[k] == Stop.INACTIVE and not found.solution[k].any()
            continue
        own, gradient = b[k].numpy(), g[k].numpy()
        radius = float(g[k].norm() / damping[k])
        peer = CGSteihaugSubproblem(
            np.zeros(SIZE), lambda x: 0.0, lambda x, gradient=gradient: gradient,
            lambda x, own=own: own, lambda x, p, own=own: own @ p,
        )  # fmt: skip
        step, at_boundary = peer.solve(radius)
        np.testing.assert_allclose(found.solution[k].numpy(), step, rtol=1e-9, atol=1e-12)
        inside = found.stop[k] in (Stop.RESIDUAL, Stop.INACTIVE)
        assert inside != at_boundary
        if at_boundary:
            np.testing.assert_allclose(found.solution[k].norm(), radius, rtol=1e-12)
        residual = -g[k] - b[k] @ found.solution[k] - damping[k] * found.solution[k]
        torch.testing.assert_close(found.residual[k], residual)
        torch.testing.assert_close(found.residual_along[k], residual @ found.solution[k])
    assert {int(Stop.BOUNDARY), int(Stop.RESIDUAL)} <= set(found.stop.tolist()) or lowest < 0


def test_its_iterates_grow_and_lower_the_model() -> None:
    b, g = problems(0.1)
    found = solved(b, g, torch.full((ROWS,), 0.05).double(), torch.ones(ROWS).bool(), range(1, 4 * SIZE))
    paths = torch.stack([x for x, _ in found.kept])
    model = (paths * g).sum(-1) + 0.5 * torch.einsum("nki,kij,nkj->nk", paths, b, paths)
    assert len(paths) > 2 and bool((paths.norm(dim=-1).diff(dim=0) >= -1e-12).all())
    assert bool((model.diff(dim=0) <= 1e-12).all())


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_rosenbrock_is_solved_without_a_rise_in_any_unit(scale: float) -> None:
    p = nn.Parameter(torch.tensor([1.2, 1.0, 0.5, 0.8], dtype=torch.float64))
    optimizer = HessianFree([p], damping=scale, solver="trust_region")
    losses = [
        float(optimizer.step(lambda: scale * (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum()))
        for _ in range(80)
    ]
    assert losses == sorted(losses, reverse=True)
    assert rosen(p.detach().numpy()) < 1e-12


def test_the_trust_region_needs_no_preconditioner_and_no_start() -> None:
    with pytest.raises(ValueError, match="solver: trust_region needs preconditioner none, got 'martens'"):
        RECIPES["hf_martens"].derive("own", {"solver": "trust_region"})
    with pytest.raises(ValueError, match="warm_start_decay has no effect with solver trust_region"):
        RECIPES["hf"].derive("own", {"solver": "trust_region", "warm_start_decay": 0.5})
