"""Coverage of the intervals of one and two samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from ahf_cli.report.statistics.best_of import expected_best_interval, probability_of_beating_interval
from ahf_cli.report.statistics.clusters import mean_of_trained
from ahf_cli.report.statistics.interval import (
    Interval,
    iqm_interval,
    mean_interval,
    median_interval,
    student_interval,
)
from ahf_cli.report.statistics.pairs import cliffs_delta, paired_difference
from ahf_cli.report.statistics.trajectory import Array
from docs.coverage.distributions import SHARES, SOURCES, Source, clusters, dominance, mean, median, middle

BAND = "Student's mean, in bands of curves"
HEAD = ("interval", "n", *SOURCES, "two clusters: mean (least, at share)")


def generator(name: str) -> np.random.Generator:
    """Return the random numbers of a row, which depend on its name alone."""
    return np.random.default_rng(crc32(name.encode()))


def held(intervals: Iterable[Interval], truth: float) -> list[bool]:
    """Return whether each interval with ends holds the truth; one without ends is not printed."""
    return [i.low - 1e-9 <= truth <= i.high + 1e-9 for i in intervals if not math.isnan(i.low)]


@dataclass(frozen=True)
class Sampled:
    """An interval of samples of n losses, and the truth that it should hold."""

    name: str
    n: int
    runs: int
    """samples of each distribution, and half as many of each share"""
    interval: Callable[[Source, int, np.random.Generator], Interval]
    truth: Callable[[Source], float]
    printed: bool = True
    """whether it is printed for two clusters; its coverage there stands in brackets otherwise"""

    def row(self) -> list[str]:
        """Return the row of the table as text."""
        rng = generator(f"{self.name} {self.n}")

        def coverage(source: Source, runs: int) -> list[bool]:
            return held((self.interval(source, self.n, rng) for _ in range(runs)), self.truth(source))

        plain = [f"{np.mean(coverage(source, self.runs)):.3f}" for source in SOURCES.values()]
        mixed = {share: coverage(clusters(share), self.runs // 2) for share in SHARES}
        known = {share: found for share, found in mixed.items() if len(found) >= self.runs // 10}
        worst = min(known, key=lambda share: float(np.mean(known[share])))
        text = f"{np.mean(sum(mixed.values(), [])):.3f} ({np.mean(known[worst]):.3f}, {worst:g})"
        return [self.name, str(self.n), *plain, text if self.printed else f"[{text}]"]


@dataclass(frozen=True)
class Trained:
    """The mean of those that trained, n trials of which a share has each of the distributions."""

    n: int
    runs: int
    name: str = "mean of those that trained"

    def row(self) -> list[str]:
        """Return the row of the table as text; coverage is averaged over the shares trained."""
        rng = generator(f"{self.name} {self.n}")
        cells = []
        for source in SOURCES.values():
            found = (self._interval(source, share, rng) for share in SHARES for _ in range(self.runs // 2))
            cells.append(f"{np.mean(held(found, mean(source))):.3f}")
        return [self.name, str(self.n), *cells, "–"]

    def _interval(self, source: Source, share: float, rng: np.random.Generator) -> Interval:
        trained = rng.random(self.n) < share
        values = np.where(trained, source.draw(rng, self.n), 20.0)
        return mean_of_trained(values[trained])


def _pair(source: Source, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    return source.draw(rng, n), source.rival().draw(rng, n)


def _best(k: int, n: int) -> Sampled:
    return Sampled(
        f"expected best of {k}", n, 600,
        lambda s, n, rng: expected_best_interval(s.draw(rng, n), k, rng),
        lambda s: float(s.bests(k).mean()),
    )  # fmt: skip


def _beats(k: int, n: int) -> Sampled:
    return Sampled(
        f"P(A beats B), k = {k}", n, 800,
        lambda s, n, rng: probability_of_beating_interval(*_pair(s, n, rng), k),
        lambda s: (1 - dominance(s, k)) / 2,
    )  # fmt: skip


def rows() -> list[Sampled | Trained]:
    """Return the cases of the table, in its order."""
    found: list[Sampled | Trained] = [
        Sampled("mean", n, 2000, lambda s, n, rng: mean_interval(s.draw(rng, n)), mean, printed=False)
        for n in (5, 10, 20, 70)
    ]
    found += [
        Sampled(BAND, n, 2000, lambda s, n, rng: student_interval(s.draw(rng, n)), mean, printed=False)
        for n in (5, 10, 20, 70)
    ]
    found += [Trained(n, 800) for n in (10, 20, 70)]
    found += [
        Sampled(
            "paired difference", n, 2000, lambda s, n, rng: paired_difference(*_pair(s, n, rng)),
            lambda s: mean(s) - mean(s.rival()), printed=False,
        ) for n in (10, 20, 70)
    ]  # fmt: skip
    found += [
        Sampled("median", n, 400, lambda s, n, rng: median_interval(s.draw(rng, n)), median)
        for n in (10, 20, 70)
    ]
    found += [
        Sampled("interquartile mean", n, 600, lambda s, n, rng: iqm_interval(s.draw(rng, n), rng), middle)
        for n in (10, 20, 70)
    ]
    found += [_best(k, n) for n, k in ((20, 2), (20, 6), (70, 2), (70, 8), (70, 23))]
    found += [_beats(k, n) for n, k in ((10, 2), (20, 3), (70, 3), (70, 5))]
    found += [
        Sampled("Cliff's δ", n, 1000, lambda s, n, rng: cliffs_delta(*_pair(s, n, rng)), dominance)
        for n in (10, 20, 70)
    ]
    return found
