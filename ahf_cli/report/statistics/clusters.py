"""Samples of two clusters: trials that trained, and trials that did not."""

from __future__ import annotations

FEW, MANY = 0.02, 0.98
"""Shares between which a sample has two clusters."""


def two_clusters(trained: int, n: int) -> bool:
    """Return whether the share trained lies strictly between 0.02 and 0.98.

    A Student interval of such a mixture covers 0.4 to 0.9 instead of 0.95.  The share and the mean of the
    trials that trained describe it.
    """
    return n > 0 and FEW < trained / n < MANY
