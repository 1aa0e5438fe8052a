"""Jumps of the direction: steps at which ‖δ‖ grows by a large factor."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Jumps:
    """The first jump of each trial: a step whose ‖δ‖₂ is many times the norm of the step before."""

    steps: pd.DataFrame
    """first jump of each trial with one, by trial; `direction` and `alpha` are factors of growth"""

    @classmethod
    def of(cls, steps: pd.DataFrame, factor: float = 10) -> Jumps:
        """Return the jumps in the steps of a recipe, where ‖δ‖ grows at least by a factor."""
        own = steps.sort_values(["trial", "step"])
        before = own.groupby("trial")[["direction_l2", "step_size"]].shift()
        own = own.assign(
            direction=own["direction_l2"] / before["direction_l2"],
            alpha=own["step_size"] / before["step_size"],
        )
        return cls(own[own["direction"] >= factor].drop_duplicates("trial").set_index("trial"))

    @property
    def trials(self) -> list[int]:
        """Trials with a jump."""
        return [int(trial) for trial in self.steps.index]

    @property
    def direction(self) -> float:
        """Median factor by which ‖δ‖ grows."""
        return float(self.steps["direction"].median())

    @property
    def alpha(self) -> float:
        """Median factor by which the step size α grows."""
        return float(self.steps["alpha"].median())
