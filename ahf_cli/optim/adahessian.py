"""AdaHessian (Yao et al. 2021): Adam with the Hessian's diagonal, as random probes estimate it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.explicit import ExplicitOptimizer, Move
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.operators import Operator, hessian
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.state import State


def rademacher(step: int, like: Tensor) -> Tensor:
    """Draw independent signs ±1 of probability ½ for a step, equal in all rows; (K, P) → (K, P).

    A pure function of the step, drawn on the CPU, so that a resumed run draws what an uninterrupted one does
    and every device the same.
    """
    source = torch.Generator().manual_seed(step)
    signs = torch.randint(0, 2, like.shape[-1:], generator=source) * 2 - 1
    return signs.to(like).expand_as(like)


def hutchinson_diagonal(operator: Operator, probe: Tensor) -> Tensor:
    """Return z ⊙ Bz, whose mean over signs z is the diagonal of B (Bekas et al. 2007); (K, P) → (K, P)."""
    return probe * operator(probe)


def spatial_average(diagonal: Tensor, layout: Layout) -> Tensor:
    """Average over the positions of each convolution kernel (Yao et al. 2021, Eq. 10); (K, P) → (K, P)."""
    pieces = [
        piece.mean(dim=tuple(range(3, piece.dim())), keepdim=True).expand_as(piece)
        if piece.dim() > 3  # (K, out, in, positions …)
        else piece
        for piece in layout.split(diagonal)
    ]
    return layout.join(pieces, len(diagonal))


@dataclass(frozen=True)
class AdaHessian(ExplicitOptimizer):
    """u = −α m̂ / (D̄ᵏ + μ), D̄² the bias-corrected moving average of squared diagonals.

    m ← β₁ m + (1−β₁) g; v ← β₂ v + (1−β₂) D²; D = spatial average of z ⊙ Hz, one probe z a step; k is
    `hessian_power`.
    """

    memory = ("first", "second")

    def move(self, state: State, here: Evaluation) -> Move:
        """Take one Hessian product and return the update."""
        operator = here.operator(hessian)
        gradient, h = here.gradient, state.hyperparameters
        t = state.step + 1
        probe = rademacher(int(t.max()), gradient)
        diagonal = spatial_average(hutchinson_diagonal(operator, probe), here.layout)
        b1, b2, power = (rows.expand(h[name]) for name in ("beta1", "beta2", "hessian_power"))
        first = b1 * state.moments["first"] + (1 - b1) * gradient
        second = b2 * state.moments["second"] + (1 - b2) * diagonal.square()
        count = rows.expand(t)
        mean, square = first / (1 - b1**count), second / (1 - b2**count)
        update = -rows.expand(h["lr"]) * mean / (square ** (power / 2) + rows.expand(h["mu"]))
        return Move(state.parameters + update, update, {"first": first, "second": second}, products=1)
