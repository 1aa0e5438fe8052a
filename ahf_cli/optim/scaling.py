"""Preconditioners M of K rows, as products with M⁻¹."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Scaling(Protocol):
    """A preconditioner M > 0 of each row."""

    def solve(self, vectors: Tensor) -> Tensor:
        """Return M⁻¹ v of each row; (K, P) → (K, P)."""
        ...

    def select(self, trials: Tensor) -> Scaling:
        """Return the preconditioner of some rows, (k,) int64."""
        ...


@dataclass(frozen=True)
class DiagonalScaling:
    """A diagonal M."""

    values: Tensor  # (K, P) or (1, P)

    def solve(self, vectors: Tensor) -> Tensor:
        """Return v / M."""
        return vectors / self.values

    def select(self, trials: Tensor) -> DiagonalScaling:
        """Return the rows of M."""
        return self if len(self.values) == 1 else DiagonalScaling(self.values[trials])
