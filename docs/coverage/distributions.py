"""Distributions of a loss for simulated samples, by quantile function, with their exact statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, ndtri

from ahf_cli.report.statistics.sample import interquartile_mean
from ahf_cli.report.statistics.trajectory import Array

CAP = 2.3
"""loss of a trial that did not train"""
SHARES = (0.05, 0.2, 0.5, 0.8, 0.95)
"""shares trained of the distributions of two clusters"""
LEVELS = (np.arange(50_000) + 0.5) / 50_000
"""midpoints on (0, 1), for integrals over quantile functions"""


Quantile = Callable[[Array], Array]


@dataclass(frozen=True)
class Source:
    """A distribution of losses, bounded below as losses are, by its quantile function on (0, 1)."""

    quantile: Quantile
    other: Quantile | None = None
    """quantile function of a rival; by default its losses are a tenth smaller"""

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        """Return n independent losses, (n,)."""
        return self.quantile(rng.random(n))

    def bests(self, k: int) -> Array:
        """Return the ascending quantiles of the least of k losses, Q(1 − (1 − v)^(1/k)), (50 000,)."""
        return self.quantile(-np.expm1(np.log1p(-LEVELS) / k))

    def rival(self) -> Source:
        """Return the distribution of the losses of a rival."""
        return Source(self.other or (lambda u: 0.9 * self.quantile(u)))


def mean(source: Source) -> float:
    """Return ∫ Q(u) du."""
    return float(source.bests(1).mean())


def median(source: Source) -> float:
    """Return Q(½)."""
    return float(source.quantile(np.array([0.5]))[0])


def middle(source: Source) -> float:
    """Return the interquartile mean 2 ∫ Q(u) du over [¼, ¾]."""
    return float(interquartile_mean(source.bests(1)))


def dominance(source: Source, k: int = 1) -> float:
    """Return P(A > B) − P(A < B) for the least of k losses of a source and of its rival."""
    a, b = source.bests(k), source.rival().bests(k)
    below, not_above = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
    return float(np.mean(below + not_above) / len(b) - 1)


def clusters(share: float) -> Source:
    """Return losses N(0.6, 0.05²) with probability `share`, and the cap otherwise.

    Of the rival's trials half as many do not train, and its other losses are a tenth smaller.
    """
    return Source(_mixture(share, 0.6), _mixture((1 + share) / 2, 0.54))


def _mixture(share: float, centre: float) -> Quantile:
    def quantile(u: Array) -> Array:
        return np.where(u < share, centre + 0.05 * ndtri(np.minimum(u / share, 1 - 1e-12)), CAP)

    return quantile


SOURCES = {
    "normal": Source(lambda u: np.asarray(5 + ndtri(u))),
    "skewness 1.4": Source(lambda u: np.asarray(gammaincinv(2, u))),
    "skewness 2": Source(lambda u: np.asarray(-np.log1p(-u))),
}
"""a normal, a gamma (shape 2) and an exponential distribution"""
