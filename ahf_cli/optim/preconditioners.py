"""Preconditioners M of CG, and estimates of the curvature with a memory over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.explicit import hutchinson_diagonal, rademacher
from ahf_cli.optim.linearization import Evaluation
from ahf_cli.optim.moments import Moments
from ahf_cli.optim.operators import Operator
from ahf_cli.optim.scaling import DiagonalScaling, Scaling


@dataclass(frozen=True)
class Surroundings:
    """All that a preconditioner may use at one step."""

    evaluation: Evaluation  # h at θ on the gradient batch
    operator: Operator  # v ↦ B v
    damping: Tensor  # λ, (K,)
    step: Tensor  # t, (K,) int64
    memory: Moments = field(default_factory=dict)  # by name, (K, …); of earlier steps, empty at first
    curvature: Evaluation | None = None  # h at θ on the curvature's batch; None: the gradient's

    @property
    def t(self) -> int:
        """The number of steps taken."""
        # The largest t: rows that diverged have stopped counting, all others are at the same step.
        return int(self.step.max())


@dataclass(frozen=True)
class Fitted:
    """M > 0 at one step, None for the identity, its memory, and the cost of the step."""

    scaling: Scaling | None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: int = 0  # passes forward and backward
    products: int = 0  # curvature products in each row


Preconditioner = Callable[[Surroundings], Fitted | None]
"""surroundings ↦ M; None for the identity."""


def none(at: Surroundings) -> None:
    """M = I."""


def martens(at: Surroundings) -> Fitted:
    """M = (diag F̂ + λ)^¾ with F̂ = (1/N) Σ_n ∇h_n ∇h_nᵀ, the empirical Fisher matrix (Martens 2010, §4.7).

    Weight decay is a part of h, and so of the diagonal.
    """
    diagonal = (at.evaluation.squared_gradients() + rows.expand(at.damping)) ** 0.75
    return Fitted(DiagonalScaling(diagonal))


def gradient(at: Surroundings) -> Fitted:
    """M = (g ∘ g + λ)^¾ with the gradient g of the batch: a diagonal without gradients of single examples."""
    return Fitted(DiagonalScaling((at.evaluation.gradient.square() + rows.expand(at.damping)) ** 0.75))


PROBES = 10
"""Products a step of `hutchinson`."""


def hutchinson(at: Surroundings) -> Fitted:
    """M = |D| + λ with D the mean of z ∘ Bz over ten random sign vectors z (Bekas et al. 2007).

    D estimates the diagonal of B without bias; its variance is Σ_{j≠i} B_ij²/10, and 0 for a diagonal B.
    """
    first, like = PROBES * at.t, at.evaluation.gradient
    probes = [hutchinson_diagonal(at.operator, rademacher(first + n, like)) for n in range(PROBES)]
    diagonal = (sum(probes[1:], probes[0]) / PROBES).abs() + rows.expand(at.damping)
    return Fitted(DiagonalScaling(diagonal), products=PROBES)


@dataclass(frozen=True)
class Given:
    """M from a function of the caller."""

    diagonal: Callable[[], Sequence[Tensor]]
    """() ↦ the diagonal of M > 0, one tensor for each parameter in its shape"""

    def __call__(self, at: Surroundings) -> Fitted:
        """Return M, (1, P); raises ValueError for other shapes, and for entries that are not positive."""
        tensors, layout = list(self.diagonal()), at.evaluation.layout
        if [t.shape for t in tensors] != list(layout.shapes):
            raise ValueError(
                "preconditioner: must return one tensor for each parameter in its shape, got shapes "
                f"{[tuple(t.shape) for t in tensors]}"
            )
        found = layout.join(tensors).to(at.damping)
        if not bool((found > 0).all()):
            raise ValueError("preconditioner: every entry of the diagonal must be positive")
        return Fitted(DiagonalScaling(found))
