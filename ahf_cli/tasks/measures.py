"""The code of the metrics beside the loss: values of single examples."""

from __future__ import annotations

from torch import Tensor


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is that of the class, else 0; (K, N, C), (N,) → (K, N)."""
    return outputs.argmax(dim=-1) == targets
