"""Student's t distribution, for intervals of means."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)


def student_cdf(t: float, df: float) -> float:
    """P(T ≤ t) = ½ + C ∫₀^θ cos^{ν−1}(s) ds with t = √ν tan θ; the integrand is smooth (Gauss-Legendre)."""
    angle = math.atan(t / math.sqrt(df))
    log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
    s = angle / 2 * (_NODES + 1)
    return 0.5 + math.exp(log_constant) * angle / 2 * float(_WEIGHTS @ np.cos(s) ** (df - 1))


@lru_cache(maxsize=4096)
def student_quantile(p: float, df: float) -> float:
    """Return t with P(T ≤ t) = p for ν = `df` > 0, by bisection over the angle; NaN for other arguments."""
    if not (0 < p < 1 and df > 0):
        return math.nan
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if student_cdf(math.sqrt(df) * math.tan(middle), df) < p:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan((low + high) / 2)
