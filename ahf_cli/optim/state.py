"""The state of K trials between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ahf_cli.optim import rows
from ahf_cli.optim.moments import Moments, Values


@dataclass(frozen=True)
class State:
    """All that a step reads and writes, for K trials of P parameters; nothing is kept elsewhere."""

    parameters: Tensor  # θ, (K, P)
    direction: Tensor  # δ of the last step, (K, P); 0 at first
    damping: Tensor  # λ, (K,)
    step: Tensor  # t, steps taken, (K,) int64
    diverged_at: Tensor  # the step that was not finite, (K,) int64; 0 while there is none
    moments: Moments  # by name, (K, P)
    hyperparameters: Values  # by name, (K,)

    @property
    def active(self) -> Tensor:
        """Rows that still take steps, (K,) bool."""
        return self.diverged_at == 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain dictionaries of tensors; `State(**state_dict)` continues bitwise."""
        return dict(vars(self))

    def moved(
        self, parameters: Tensor, direction: Tensor, damping: Tensor, moments: Moments, finite: Tensor
    ) -> State:
        """Return the state after a step; a row that was not finite keeps its last finite state for good."""
        t = self.step + 1
        keep = self.active & finite
        return replace(
            self,
            parameters=rows.where(keep, parameters, self.parameters),
            direction=rows.where(keep, direction, self.direction),
            damping=rows.where(keep, damping, self.damping),
            step=rows.where(keep, t, self.step),
            diverged_at=torch.where(self.active & ~finite, t, self.diverged_at),
            moments={name: rows.where(keep, new, self.moments[name]) for name, new in moments.items()},
        )


def begin(parameters: Tensor, hyperparameters: Mapping[str, Tensor | float], moments: Moments) -> State:
    """Make the state of K trials before their first step.

    Args:
        parameters: θ₀, (K, P).
        hyperparameters: by name, one number for all trials or (K,) of them; `damping` is λ₀.
        moments: by name, (K, P).
    """
    count = parameters.shape[0]
    values = {
        name: torch.as_tensor(value, dtype=parameters.dtype, device=parameters.device).expand(count).clone()
        for name, value in hyperparameters.items()
    }
    zeros = torch.zeros(count, dtype=torch.int64, device=parameters.device)
    damping = values["damping"].clone() if "damping" in values else parameters.new_zeros(count)
    return State(parameters, torch.zeros_like(parameters), damping, zeros, zeros.clone(), moments, values)
