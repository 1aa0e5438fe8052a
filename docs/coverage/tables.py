"""Coverage of the intervals of a crossed table of draws × seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from ahf_cli.report.statistics.components import crossed
from ahf_cli.report.statistics.interval import mean_interval
from ahf_cli.report.statistics.trajectory import Array
from docs.coverage.distributions import LEVELS, SOURCES
from docs.coverage.samples import generator, held

HEAD = (
    "effects",
    "draws × seeds",
    "SD of draw : seed : rest",
    "mean",
    "draws alone",
    "draw",
    "seed",
    "rest",
    "retraining",
)
Deviations = tuple[float, float, float]
TRAINED = 0.9
"""share trained of two clusters"""


@dataclass(frozen=True)
class Effects:
    """A crossed table with effects of one distribution and given standard deviations."""

    kind: str
    """a name in `SOURCES`, or two clusters: 9 of 10 trials train, by a threshold of the normal sum"""
    draws: int
    seeds: int
    deviations: Deviations
    repeats: int = 1
    """trainings of each pair; for 2, interaction and retraining have half of the rest's variance each"""
    runs: int = 2000

    @property
    def mixed(self) -> bool:
        """Whether each trial belongs to one of two clusters."""
        return self.kind == "two clusters"

    def row(self) -> list[str]:
        """Return the row of the table as text."""
        size = f"{self.draws} × {self.seeds}" + (f" × {self.repeats}" if self.repeats > 1 else "")
        head = [self.kind, size, " : ".join(f"{v:g}" for v in self.deviations)]
        rng = generator(" ".join(head))
        values = [self._simulate(rng) for _ in range(self.runs)]
        found, truth = [crossed(y) for y in values], self.truth()
        cells = [f"{np.mean(held((one.mean for one in found), TRAINED * self.mixed)):.3f}"]
        alone = (mean_interval(y.reshape(len(y), -1).mean(axis=1)) for y in values)
        cells.append(f"[{np.mean(held(alone, TRAINED * self.mixed)):.3f}]")
        for name in ("draw", "seed", "interaction" if self.repeats > 1 else "rest", "retraining"):
            intervals = [one.components[name].variance for one in found if name in one.components]
            cells.append(f"{np.mean(held(intervals, truth[name])):.3f}" if intervals else "–")
        return head + [f"[{c}]" if self.mixed and c[0] not in "[–" else c for c in cells]

    def truth(self) -> dict[str, float]:
        """Return the variance of each component."""
        draw, seed, rest = (v**2 for v in self.deviations)
        if not self.mixed:
            half = rest / 2
            return {"draw": draw, "seed": seed, "rest": rest, "interaction": half, "retraining": half}
        # P(trained | d) is Φ((z + d)/√(total − σ²_d)) for the draw's part d of the normal sum
        total = draw + seed + rest
        z = math.sqrt(total) * ndtri(TRAINED)
        found = {
            name: float(np.var(ndtr((z + math.sqrt(v) * ndtri(LEVELS)) / math.sqrt(total - v))))
            for name, v in (("draw", draw), ("seed", seed))
        }
        return {**found, "rest": TRAINED * (1 - TRAINED) - sum(found.values())}

    def _simulate(self, rng: np.random.Generator) -> Array:
        D, S, r = self.draws, self.seeds, self.repeats
        draw, seed, rest = self.deviations
        y = draw * self._effects(rng, (D, 1)) + seed * self._effects(rng, (1, S))
        if r == 1:
            y = y + rest * self._effects(rng, (D, S))
            least = -math.sqrt(draw**2 + seed**2 + rest**2) * ndtri(TRAINED)
            return (y > least).astype(float) if self.mixed else y
        half = rest / math.sqrt(2)
        y = y + half * self._effects(rng, (D, S))
        return y[:, :, None] + half * self._effects(rng, (D, S, r))

    def _effects(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Return independent effects with mean 0 and variance 1."""
        source = SOURCES["normal" if self.mixed else self.kind]
        values = source.quantile(rng.random(shape))
        centre, deviation = MOMENTS["normal" if self.mixed else self.kind]
        return (values - centre) / deviation


MOMENTS = {"normal": (5.0, 1.0), "skewness 1.4": (2.0, math.sqrt(2)), "skewness 2": (1.0, 1.0)}
"""mean and standard deviation of each distribution"""


def rows() -> list[Effects]:
    """Return the cases of the table, in its order."""
    found = [
        Effects("normal", draws, seeds, deviations)
        for draws, seeds, deviations in (
            (10, 5, (1, 2, 1)), (10, 5, (2, 1, 1)), (10, 5, (0.3, 0.3, 1)), (10, 5, (0, 0, 1)),
            (10, 5, (0, 1, 0.5)), (5, 3, (1, 2, 1)), (20, 5, (1, 2, 1)), (10, 20, (1, 2, 1)),
        )
    ]  # fmt: skip
    found += [Effects("normal", 10, 5, (1, 2, 1), repeats=2)]
    found += [
        Effects(kind, draws, seeds, (1, 2, 1))
        for kind in ("skewness 1.4", "skewness 2", "two clusters") for draws, seeds in ((10, 5), (10, 20))
    ]  # fmt: skip
    return found
