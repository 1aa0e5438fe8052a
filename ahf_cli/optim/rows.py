"""K trials as the rows of (K, P) tensors; every reduction is over parameters, never over trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def on_host(a: Tensor) -> bool:
    """Return whether the host reads a number of this tensor at once; on a GPU it waits for the queue."""
    return a.device.type == "cpu"


def read_every(a: Tensor) -> int:
    """Return how many iterations or tries lie between two host reads: 1 on a CPU, else 5, not measured."""
    return 1 if on_host(a) else 5


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a_k, b_k⟩ of each row; (K, P), (K, P) → (K,)."""
    if not on_host(a):
        on_device: Tensor = torch.linalg.vecdot(a, b)
        return on_device
    # On a CPU a batched product is up to three times faster than `vecdot`.
    return torch.bmm(a.unsqueeze(-2), b.unsqueeze(-1)).flatten()


def l2(a: Tensor) -> Tensor:
    """‖a_k‖₂ of each row; (K, P) → (K,)."""
    result: Tensor = torch.linalg.vector_norm(a, dim=-1)
    return result


def l1(a: Tensor) -> Tensor:
    """‖a_k‖₁ of each row; (K, P) → (K,)."""
    result: Tensor = torch.linalg.vector_norm(a, ord=1, dim=-1)
    return result


def expand(scalars: Tensor) -> Tensor:
    """Return one number a row as a column that multiplies vectors; (K,) → (K, 1)."""
    return scalars.unsqueeze(-1)


def where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return rows of a where the mask (K,) is true, and rows of b elsewhere; (K, …), (K, …) → (K, …)."""
    # A choice, not a product with the mask: 0 · NaN would spread a diverged row's NaN.
    return torch.where(mask.reshape(-1, *[1] * (a.dim() - 1)), a, b)


def finite(a: Tensor) -> Tensor:
    """Return the rows whose entries are all finite; (K, P) or (K,) → (K,) bool."""
    return torch.isfinite(a) if a.dim() == 1 else torch.isfinite(a).all(dim=-1)


@dataclass(frozen=True)
class Layout:
    """The place of each named parameter tensor in a row of length P = `size`."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> Layout:
        """Return the layout of named tensors in the given order."""
        pairs = list(named)
        return cls(tuple(name for name, _ in pairs), tuple(tensor.shape for _, tensor in pairs))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(self.sizes)

    def split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """Cut (K, P) into views (K, *shape), one for each tensor."""
        pieces = torch.split(vectors, self.sizes, dim=-1)
        return tuple(p.reshape(len(vectors), *shape) for p, shape in zip(pieces, self.shapes, strict=True))

    def join(self, tensors: Sequence[Tensor], rows: int = 1) -> Tensor:
        """Flatten tensors of shape (K, *shape), or of `shape` if K = 1, into (K, P)."""
        return torch.cat([t.reshape(rows, size) for t, size in zip(tensors, self.sizes, strict=True)], dim=-1)

    def l2(self, vectors: Tensor) -> Tensor:
        """‖a‖₂ of each row; (K, P) → (K,)."""
        return l2(vectors)

    def l1(self, vectors: Tensor) -> Tensor:
        """‖a‖₁ of each row; (K, P) → (K,)."""
        return l1(vectors)

    def sum_l2(self, vectors: Tensor) -> Tensor:
        """Σ_l ‖a_l‖₂ over the parameter tensors l of each row; (K, P) → (K,)."""
        return torch.stack([l2(piece) for piece in torch.split(vectors, self.sizes, dim=-1)]).sum(dim=0)
