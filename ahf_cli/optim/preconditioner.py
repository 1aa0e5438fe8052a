"""Diagonal preconditioners of conjugate gradient."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.objective import Evaluation


class Preconditioner(Protocol):
    """Makes the diagonal of M for one step."""

    def __call__(self, evaluation: Evaluation, damping: Tensor) -> Tensor:
        """Return the diagonal of M > 0, given h on the gradient batch and λ (K,); → (K, P)."""
        ...


class MartensPreconditioner:
    """M = (diag F̂ + λ)^¾ with F̂ = (1/N) Σ_n ∇h_n ∇h_nᵀ, the empirical Fisher matrix (Martens 2010, §4.7)."""

    def __call__(self, evaluation: Evaluation, damping: Tensor) -> Tensor:
        """Return the diagonal of M; weight decay, which is a part of h, is in it."""
        return (evaluation.squared_gradients() + rows.expand(damping)) ** 0.75
