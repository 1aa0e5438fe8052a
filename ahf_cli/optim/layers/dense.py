"""Layers of numbers along one axis: linear maps and functions of each number, at one point, for K trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ahf_cli.optim.layers.record import Linear

Cotangents = tuple[Tensor | None, tuple[Tensor, ...]]
"""Cotangents of a layer's input, and of its parameters; None where the input has none."""


class Layer(Protocol):
    """A layer y = f(x, w) at one point (x, w), for K rows."""

    @property
    def parameters(self) -> tuple[int, ...]:
        """Numbers of w in the model's order."""
        ...

    def tangent(self, x: Tensor | None, w: Sequence[Tensor]) -> Tensor:
        """J (ẋ, ẇ); ẋ = None stands for 0."""
        ...

    def cotangent(self, y: Tensor, to_input: bool) -> Cotangents:
        """Jᵀ ȳ."""
        ...

    def cotangent_tangent(
        self, y: Tensor, change: Tensor, x: Tensor | None, w: Sequence[Tensor], to_input: bool
    ) -> Cotangents:
        """The derivative of Jᵀ ȳ as ȳ moves by `change`, x by ẋ and w by ẇ."""
        ...

    def squares(self, y: Tensor) -> tuple[Tensor, ...]:
        """Σ_n of the squared cotangents of w that example n alone gives, for ȳ."""
        ...

    def select(self, trials: Tensor) -> Layer:
        """Return the layer for some rows, (k,) int64."""
        ...


def times(a: Tensor, b: Tensor, more: Tensor | None = None) -> Tensor:
    """Return a b + more, row by row; (K or 1, N, m), (K or 1, m, n) → (K, N, n)."""
    trials = max(len(a), len(b))
    a, b = a.expand(trials, -1, -1), b.expand(trials, -1, -1)
    return torch.bmm(a, b) if more is None else torch.baddbmm(more, a, b)


@dataclass(frozen=True)
class LinearAt:
    """y = x Wᵀ + b at (x, W); x, (K or 1, N, …, in)."""

    operation: Linear
    x: Tensor
    w: Tensor  # (K, out, in)

    @property
    def parameters(self) -> tuple[int, ...]:
        """Numbers of W, and of b."""
        bias = self.operation.bias
        return (self.operation.weight,) if bias is None else (self.operation.weight, bias)

    @property
    def _flat(self) -> Tensor:
        return _joined(self.x)

    def value(self, b: Tensor | None) -> Tensor:
        """x Wᵀ + b; (K, N, …, out)."""
        y = times(self._flat, self.w.mT, None if b is None else b.unsqueeze(1))
        return y.reshape(len(y), *self.x.shape[1:-1], -1)

    def tangent(self, x: Tensor | None, w: Sequence[Tensor]) -> Tensor:
        """ẋ Wᵀ + x Ẇᵀ + ḃ."""
        change = w[1].unsqueeze(1) if len(w) > 1 else None
        y = times(self._flat, w[0].mT, change)
        if x is not None:
            y = times(_joined(x), self.w.mT, y)
        return y.reshape(len(y), *self.x.shape[1:-1], -1)

    def cotangent(self, y: Tensor, to_input: bool) -> Cotangents:
        """ȳ W; ȳᵀ x and the sum of ȳ."""
        y = _joined(y)
        x = times(y, self.w).reshape(len(y), *self.x.shape[1:]) if to_input else None
        return x, self._weights(times(y.mT, self._flat), y)

    def cotangent_tangent(
        self, y: Tensor, change: Tensor, x: Tensor | None, w: Sequence[Tensor], to_input: bool
    ) -> Cotangents:
        """ȳ' W + ȳ Ẇ; ȳ'ᵀ x + ȳᵀ ẋ and the sum of ȳ', with ȳ' the change of ȳ."""
        y, change = _joined(y), _joined(change)
        back = times(y, w[0], times(change, self.w)) if to_input else None
        weight = times(change.mT, self._flat)
        if x is not None:
            weight = times(y.mT, _joined(x), weight)
        shape = (len(change), *self.x.shape[1:])
        return None if back is None else back.reshape(shape), self._weights(weight, change)

    def squares(self, y: Tensor) -> tuple[Tensor, ...]:
        """(ȳ ∘ ȳ)ᵀ (x ∘ x), and the sum of ȳ ∘ ȳ; with more axes the square of each example's product."""
        if self.x.dim() == 3:
            y = y.square()
            return self._weights(times(y.mT, self._flat.square()), y)
        y = y.flatten(2, -2)
        each = torch.matmul(y.mT, self.x.flatten(2, -2)).square().sum(dim=1)
        return (each,) if self.operation.bias is None else (each, y.sum(dim=2).square().sum(dim=1))

    def select(self, trials: Tensor) -> LinearAt:
        """Return the layer for some rows."""
        return LinearAt(self.operation, own(self.x, trials), self.w[trials])

    def _weights(self, weight: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (weight,) if self.operation.bias is None else (weight, y.sum(dim=1))


def own(x: Tensor, trials: Tensor) -> Tensor:
    """Return the inputs of some rows; (K or 1, …) → (k or 1, …)."""
    return x[trials] if len(x) > 1 else x


def _joined(x: Tensor) -> Tensor:
    """(K, N, …, in) → (K, N · …, in)."""
    return x if x.dim() == 3 else x.reshape(len(x), -1, x.shape[-1])


class PointwiseAt:
    """y = σ(x) of each number, at y."""

    parameters: tuple[int, ...] = ()

    def __init__(self, name: str, y: Tensor):
        self.name, self.y = name, y

    def slope(self, a: Tensor) -> Tensor:
        """σ'(x) a."""
        result: Tensor
        if self.name == "relu":
            result = torch.ops.aten.threshold_backward(a, self.y, 0)
        elif self.name == "tanh":
            result = torch.ops.aten.tanh_backward(a, self.y)
        else:
            result = torch.ops.aten.sigmoid_backward(a, self.y)
        return result

    def tangent(self, x: Tensor | None, w: Sequence[Tensor]) -> Tensor:
        """σ'(x) ẋ."""
        return torch.zeros_like(self.y) if x is None else self.slope(x)

    def cotangent(self, y: Tensor, to_input: bool) -> Cotangents:
        """σ'(x) ȳ."""
        return self.slope(y), ()

    def cotangent_tangent(
        self, y: Tensor, change: Tensor, x: Tensor | None, w: Sequence[Tensor], to_input: bool
    ) -> Cotangents:
        """σ'(x) ȳ' + σ''(x) ẋ ȳ, with ȳ' the change of ȳ."""
        first = self.slope(change)
        if self.name == "relu" or x is None:
            return first, ()
        # σ'' = −2 σ σ' of tanh, and (1 − 2σ) σ' of the logistic function.
        bend = -2 * self.y if self.name == "tanh" else 1 - 2 * self.y
        return first + bend * self.slope(x * y), ()

    def squares(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: there are no parameters."""
        return ()

    def select(self, trials: Tensor) -> PointwiseAt:
        """Return the layer for some rows."""
        return PointwiseAt(self.name, own(self.y, trials))


@dataclass(frozen=True)
class FlattenAt:
    """The numbers of each example in one axis."""

    shape: torch.Size  # (N, …) of the input
    parameters: tuple[int, ...] = ()

    def tangent(self, x: Tensor | None, w: Sequence[Tensor]) -> Tensor:
        """Return ẋ as (K, N, entries)."""
        assert x is not None
        return x.flatten(2)

    def cotangent(self, y: Tensor, to_input: bool) -> Cotangents:
        """Return ȳ in the shape of the input."""
        return y.reshape(len(y), *self.shape), ()

    def cotangent_tangent(
        self, y: Tensor, change: Tensor, x: Tensor | None, w: Sequence[Tensor], to_input: bool
    ) -> Cotangents:
        """Return the change of ȳ in the shape of the input."""
        return self.cotangent(change, to_input)

    def squares(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: there are no parameters."""
        return ()

    def select(self, trials: Tensor) -> FlattenAt:
        """Return the layer itself."""
        return self


def pointwise(name: str, x: Tensor) -> Tensor:
    """Return σ(x)."""
    result: Tensor = getattr(torch, name)(x)
    return result
