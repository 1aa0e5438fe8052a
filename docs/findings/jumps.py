"""Steps at which the direction is suddenly many times as long."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Jumps:
    """The first step of each trial whose ‖δ‖₂ is many times that of the step before."""

    steps: pd.DataFrame
    """one row a trial that has such a step, by trial: that step, and by what `direction` and `alpha` grow"""

    @classmethod
    def of(cls, steps: pd.DataFrame, factor: float = 10) -> Jumps:
        """Find them in the steps of a recipe, where ‖δ‖ grows at least by a factor."""
        own = steps.sort_values(["trial", "step"])
        before = own.groupby("trial")[["direction_l2", "step_size"]].shift()
        own = own.assign(
            direction=own["direction_l2"] / before["direction_l2"],
            alpha=own["step_size"] / before["step_size"],
        )
        return cls(own[own["direction"] >= factor].drop_duplicates("trial").set_index("trial"))

    @property
    def trials(self) -> list[int]:
        """The trials that have one."""
        return [int(trial) for trial in self.steps.index]

    @property
    def negative(self) -> int:
        """In how many CG met negative curvature."""
        return int((self.steps["stop"] == "negative_curvature").sum())

    def before(self, steps: pd.Series[int]) -> int:
        """How many trials have theirs at or before a step of the same trial."""
        own = self.steps["step"].reindex(steps.index)  # NaN, where there is none, is not before
        return int((own <= steps).sum())

    @property
    def direction(self) -> float:
        """Median factor by which ‖δ‖ grows."""
        return float(self.steps["direction"].median())

    @property
    def alpha(self) -> float:
        """Median factor by which the step size α grows."""
        return float(self.steps["alpha"].median())

    @property
    def damping(self) -> tuple[float, float]:
        """Least and largest λ at them."""
        return float(self.steps["damping"].min()), float(self.steps["damping"].max())
