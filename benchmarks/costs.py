"""Gradient, products and CG iterations of one objective, as actions to time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ahf_cli.optim import ModelObjective, conjugate_gradient, gauss_newton, hessian
from benchmarks import problems
from benchmarks.timing import Spread

Actions = dict[str, Callable[[], object]]


def actions(h: ModelObjective, theta: Tensor, iterations: int) -> Actions:
    """Return the actions at θ, (K, P); `cg` takes so many iterations with Hessian products."""
    kept = h.evaluate(theta)
    hessian_product, ggn_product = kept.operator(hessian), kept.operator(gauss_newton)
    vectors, start = kept.gradient.clone(), torch.zeros_like(theta)
    damping = torch.full((len(theta),), problems.DAMPING, device=theta.device)
    rules, every = problems.EndlessRules(), 5 if theta.is_cuda else 1
    return {
        "gradient": lambda: h.evaluate(theta).gradient,
        "hessian": lambda: hessian_product(vectors),
        "ggn": lambda: ggn_product(vectors),
        "cg": lambda: conjugate_gradient(
            hessian_product, damping, vectors, start, rules, iterations, check_every=every
        ),
    }


def by_iteration(ms: dict[str, Spread], iterations: int) -> dict[str, Spread]:
    """Return the times, with the time of one iteration in place of the time of CG."""
    cg = {key: value if key == "repeats" else value / iterations for key, value in ms["cg"].items()}
    return {**{name: spread for name, spread in ms.items() if name != "cg"}, "cg_iteration": cg}
