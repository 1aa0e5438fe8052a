"""From the direction δ to what the step size multiplies: nothing, or Adam-like moments."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

import ahf_cli.optim.rows as rows

Values = dict[str, Tensor]
"""Hyperparameters by name, one number a trial, (K,)."""
Moments = dict[str, Tensor]
"""Moving averages by name, (K, P)."""


def beta1(values: Values) -> Tensor:
    """β₁ = ε/(ε + 2σ), the paper's choice with ξ = 2σ; (K,)."""
    return values["epsilon"] / (values["epsilon"] + 2 * values["sigma"])


class Transform(Protocol):
    """A map of directions with a memory."""

    is_identity: bool

    def init(self, parameters: Tensor) -> Moments:
        """Memory before the first step."""
        ...

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Transform δ at step t = 1, 2, …; returns the result and the new memory."""
        ...


class Identity:
    """T(δ) = δ."""

    is_identity = True

    def init(self, parameters: Tensor) -> Moments:
        """No memory."""
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
        """m = v = 0."""
        return {"first": torch.zeros_like(parameters), "second": torch.zeros_like(parameters)}

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Update the moments with δ and return m̂/(√v̂ + μ)."""
        b1, b2 = beta1(values), values["beta2"]
        first = rows.expand(b1) * moments["first"] + rows.expand(1 - b1) * direction
        second = rows.expand(b2) * moments["second"] + rows.expand(1 - b2) * direction.square()
        m_hat = first / rows.expand(1 - b1**step)
        v_hat = second / rows.expand(1 - b2**step)
        result = m_hat / (v_hat.sqrt() + rows.expand(values["mu"]))
        return result, {"first": first, "second": second}
