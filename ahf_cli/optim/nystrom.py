"""A low-rank estimate of the curvature from a few products, kept over steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahf_cli.optim.moments import Moments
from ahf_cli.optim.preconditioners import Fitted, Surroundings


@dataclass(frozen=True)
class Nystrom:
    """B ≈ U diag(s) Uᵀ of rank r from r products, renewed every `renewal` steps (Frangella et al. 2022).

    With random orthonormal columns Ω and Y = BΩ the estimate is Y (ΩᵀY)⁻¹ Yᵀ; it is exact for a B of rank r.

    Args:
        renewal: steps between two renewals, ≥ 1.
        rank: r ≥ 1; at most P is used.
    """

    renewal: int = 10
    rank: int = 10

    def __call__(self, at: Surroundings) -> Fitted:
        """Renew the estimate if it is time, and return (U diag(s) Uᵀ + λI)⁻¹."""
        if "nystrom.u" in at.memory and at.t % self.renewal:
            return Fitted(_LowRank(at.memory["nystrom.u"], at.memory["nystrom.s"], at.damping), at.memory)
        trials, size = at.evaluation.gradient.shape
        rank = min(self.rank, size)
        source = torch.Generator().manual_seed(at.t)
        drawn = torch.randn(size, rank, generator=source, dtype=torch.float64).to(at.damping)
        omega = torch.linalg.qr(drawn).Q.expand(trials, -1, -1)
        y = torch.stack([at.operator(omega[..., n].contiguous()) for n in range(rank)], dim=-1)
        # A shift by rounding errors of B keeps ΩᵀY positive; it is taken off again.
        shift = torch.finfo(y.dtype).eps * torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        y = y + shift * omega
        inner = omega.mT @ y
        root, _ = torch.linalg.cholesky_ex((inner + inner.mT) / 2)
        half = torch.linalg.solve_triangular(root.mT, y, upper=True, left=False)
        # Zeros where a row has diverged: the decomposition would raise an error, and the row takes no step.
        half = torch.where(torch.isfinite(half).all(dim=(1, 2), keepdim=True), half, 0.0)
        u, values, _ = torch.linalg.svd(half, full_matrices=False)
        s = (values.square() - shift[..., 0]).clamp_min(0)
        memory: Moments = {"nystrom.u": u, "nystrom.s": s}
        return Fitted(_LowRank(u, s, at.damping), memory, products=rank)


@dataclass(frozen=True)
class _LowRank:
    """(U diag(s) Uᵀ + λI)⁻¹ = (I − U diag(s/(s + λ)) Uᵀ)/λ."""

    u: Tensor  # (K, P, r)
    s: Tensor  # (K, r)
    damping: Tensor  # λ, (K,)

    def solve(self, vectors: Tensor) -> Tensor:
        """Return the product with v; (K, P) → (K, P)."""
        damping = self.damping[:, None]
        share = (self.s / (self.s + damping)).unsqueeze(-1)
        inside = self.u @ (share * (self.u.mT @ vectors.unsqueeze(-1)))
        return (vectors - inside.squeeze(-1)) / damping

    def select(self, trials: Tensor) -> _LowRank:
        """Return the estimate of some rows."""
        return _LowRank(self.u[trials], self.s[trials], self.damping[trials])
