"""Parts that reproduce the released code of the paper's authors.

Source: github.com/mtkwT/adaptive-hessian-free-optimization, commit be613e5.
"""

from __future__ import annotations

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.cg import MartensRules
from ahf_cli.optim.damping import Change, Reduction
from ahf_cli.optim.moments import Moments, Values, beta1


class PublishedRules:
    """CG ignores negative curvature, and stops at slow progress for either sign of φ.

    A bad warm start has φ > 0, and stops CG at the first test, after 12 iterations.
    """

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        """Return 1e-80 in float64 and 1e-20 in other dtypes."""
        return torch.full_like(squared, 1e-80 if squared.dtype == torch.float64 else 1e-20)

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Return no row."""
        return torch.zeros_like(curvature, dtype=torch.bool)

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        """Return the rows with (φ_n − φ_{n−10})/φ_n < 1e-4, for n ≥ 12."""
        # Without `phi[n] < 0`, unlike `MartensRules`: the release has no such condition.
        n = len(phi) - 1
        return (phi[n] - phi[n - 10]) / phi[n] < 1e-4 if n >= 12 else None


class IndefiniteMartensRules(MartensRules):
    """Martens' stopping rule, and the release's disregard of negative curvature: half of `PublishedRules`."""

    breaks_down = PublishedRules.breaks_down


class TruncatedPublishedRules(PublishedRules):
    """The release's stopping rule, and Martens' stop at negative curvature: the other half."""

    breaks_down = MartensRules.breaks_down


class PublishedRatio:
    """ρ = (h(θ+u) − h(θ)) / q(δ): the change at the step taken, divided by the model at the full direction.

    For a quadratic h with B ⪰ 0 and an exact solve, ρ lies between α and α(2−α).  So for α < 0.134 it is
    always below ¼, and λ grows at every step.
    """

    def __call__(self, change: Change) -> Reduction:
        """Divide the change at u by the model at δ."""
        return Reduction(change.loss_after - change.loss, change.model.along(1.0))


class PublishedDamping:
    """The Levenberg-Marquardt rule while λ > 0.1, without bounds, and only where ρ is finite."""

    def __call__(self, damping: Tensor, ratio: Tensor, initial: Tensor) -> Tensor:
        """Return the next λ."""
        usable = (damping > 0.1) & torch.isfinite(ratio)
        grow, shrink = usable & (ratio < 0.25), usable & (ratio > 0.75)
        return torch.where(grow, 3 / 2 * damping, torch.where(shrink, 2 / 3 * damping, damping))


class PublishedMoments:
    """T(δ) = m/(√v + μ), with m ← δ + β₁/(1−β₁) m and v ← δ² + β₂/(1−β₂) v.

    The released TensorFlow graph keeps the bias correction of t = 1, and stores the corrected moments.
    """

    is_identity = False

    def init(self, parameters: Tensor) -> Moments:
        """Return m = v = 0."""
        return {"first": torch.zeros_like(parameters), "second": torch.zeros_like(parameters)}

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Update the moments with δ and return m/(√v + μ)."""
        b1, b2 = beta1(values), values["beta2"]
        # (1 − β₁)δ + β₁m, divided by 1 − β₁¹ at every step: the frozen correction.
        first = direction + rows.expand(b1 / (1 - b1)) * moments["first"]
        second = direction.square() + rows.expand(b2 / (1 - b2)) * moments["second"]
        return first / (second.sqrt() + rows.expand(values["mu"])), {"first": first, "second": second}
