"""Parts that exist only to reproduce the authors' released code.

Source: github.com/mtkwT/adaptive-hessian-free-optimization, commit be613e5.
"""

from __future__ import annotations

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows
from ahf_cli.optim.cg import MartensRules
from ahf_cli.optim.damping import Change
from ahf_cli.optim.moments import Moments, Values, beta1


class PublishedRules:
    """CG that ignores negative curvature and stops at slow progress without asking for φ < 0.

    Without that question a bad warm start, φ > 0, stops CG at the first look, after 12 iterations.
    """

    def residual_tolerance(self, dtype: torch.dtype) -> float:
        """1e-80 in float64, 1e-20 below."""
        return 1e-80 if dtype == torch.float64 else 1e-20

    def breaks_down(self, curvature: Tensor) -> Tensor:
        """Never."""
        return torch.zeros_like(curvature, dtype=torch.bool)

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        """(φ_n − φ_{n−10})/φ_n < 1e-4, where n ≥ 12."""
        n = len(phi) - 1
        return (phi[n] - phi[n - 10]) / phi[n] < 1e-4 if n >= 12 else None


class IndefiniteMartensRules(MartensRules):
    """Martens' stopping, and through negative curvature as the release goes: half of `PublishedRules`."""

    breaks_down = PublishedRules.breaks_down


class TruncatedPublishedRules(PublishedRules):
    """The release's stopping, and truncation at negative curvature: the other half of `PublishedRules`."""

    breaks_down = MartensRules.breaks_down


class PublishedRatio:
    """ρ = (h(θ+u) − h(θ)) / q(δ): the change at the step taken over the model at the full direction.

    On a quadratic with B ⪰ 0 and an exact solve it lies between α and α(2−α), so that for α < 0.134 it is
    always below ¼ and λ grows at every step.
    """

    def __call__(self, change: Change) -> tuple[Tensor, int]:
        """Divide what u did by what δ would have done."""
        return (change.loss_after - change.loss) / change.model.along(1.0), 0


class PublishedDamping:
    """Levenberg-Marquardt that acts only while λ > 0.1, has no bounds, and ignores a ρ that is not finite."""

    def __call__(self, damping: Tensor, ratio: Tensor) -> Tensor:
        """Return the next λ."""
        usable = (damping > 0.1) & torch.isfinite(ratio)
        grow, shrink = usable & (ratio < 0.25), usable & (ratio > 0.75)
        return torch.where(grow, 3 / 2 * damping, torch.where(shrink, 2 / 3 * damping, damping))


class PublishedMoments:
    """T(δ) = m/(√v + μ), with m ← δ + β₁/(1−β₁) m and v ← δ² + β₂/(1−β₂) v.

    The released graph froze the bias correction at t = 1 and stored the corrected moments back.
    """

    is_identity = False

    def init(self, parameters: Tensor) -> Moments:
        """m = v = 0."""
        return {"first": torch.zeros_like(parameters), "second": torch.zeros_like(parameters)}

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Update the moments with δ and return m/(√v + μ)."""
        b1, b2 = beta1(values), values["beta2"]
        first = direction + rows.expand(b1 / (1 - b1)) * moments["first"]
        second = direction.square() + rows.expand(b2 / (1 - b2)) * moments["second"]
        return first / (second.sqrt() + rows.expand(values["mu"])), {"first": first, "second": second}
