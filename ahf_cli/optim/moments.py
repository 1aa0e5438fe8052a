"""Transforms of the direction δ before the step size multiplies it: the identity, or moments as in Adam."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows

Values = dict[str, Tensor]
"""Hyperparameters by name, one number a trial, (K,)."""
Moments = dict[str, Tensor]
"""Moments (moving averages) by name, (K, P)."""


def beta1(values: Values) -> Tensor:
    """β₁ = ε/(ε + 2σ), the paper's choice with ξ = 2σ; (K,)."""
    return values["epsilon"] / (values["epsilon"] + 2 * values["sigma"])


class Transform(Protocol):
    """A map T of directions with a memory, the moments."""

    is_identity: bool
    """whether T(δ) = δ; then u is a multiple of δ, and q(u) needs no product"""

    def init(self, parameters: Tensor) -> Moments:
        """Return the memory before the first step."""
        ...

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Transform δ at step t = 1, 2, …; return the result and the new memory."""
        ...


class Identity:
    """T(δ) = δ."""

    is_identity = True

    def init(self, parameters: Tensor) -> Moments:
        """Return an empty memory."""
        return {}

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Return δ itself."""
        return direction, moments


class ScaleByAdam:
    """T(δ) = m̂/(√v̂ + μ), with m ← β₁m + (1−β₁)δ, v ← β₂v + (1−β₂)δ², both bias-corrected (Algorithm 1)."""

    is_identity = False

    def init(self, parameters: Tensor) -> Moments:
        """Return m = v = 0."""
        return {"first": torch.zeros_like(parameters), "second": torch.zeros_like(parameters)}

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Update the moments with δ and return m̂/(√v̂ + μ)."""
        b1, b2 = beta1(values), values["beta2"]
        first = rows.expand(b1) * moments["first"] + rows.expand(1 - b1) * direction
        second = rows.expand(b2) * moments["second"] + rows.expand(1 - b2) * direction.square()
        # Early m and v are small from their start at 0: 1 − βᵗ is the weight that they have gathered.
        m_hat = first / rows.expand(1 - b1**step)
        v_hat = second / rows.expand(1 - b2**step)
        result = m_hat / (v_hat.sqrt() + rows.expand(values["mu"]))
        return result, {"first": first, "second": second}
