"""A network's value and derivatives with respect to its inputs, forward through its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Jet:
    """u at N points x, (N, d), with its derivatives with respect to x."""

    value: Tensor  # u, (N,)
    gradient: Tensor  # ∂u/∂x_i, (N, d)
    second: Tensor  # Σ_i c_i ∂²u/∂x_i² for the coefficients c of the equation, (N,)


class Sine(nn.Module):
    """The unit sin(z)."""

    def forward(self, z: Tensor) -> Tensor:
        """Return sin(z)."""
        return torch.sin(z)


Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""z ↦ σ(z), σ′(z), σ″(z)"""


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.tanh(z)
    first = 1 - y * y
    return y, first, -2 * y * first


def _sine(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.sin(z)
    return y, torch.cos(z), -y


def _softplus(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = torch.sigmoid(z)
    return nn.functional.softplus(z), first, first * (1 - first)


UNITS: dict[type[nn.Module], Derivatives] = {nn.Tanh: _tanh, Sine: _sine, nn.Softplus: _softplus}
"""Smooth units, with their first two derivatives."""


def check_smooth(net: nn.Module) -> None:
    """Raise ValueError unless a network is a chain of linear layers and smooth units of `UNITS`."""
    if not isinstance(net, nn.Sequential):
        raise ValueError(f"an equation needs an nn.Sequential of layers, got {type(net).__name__}")
    for layer in net:
        plain_softplus = not isinstance(layer, nn.Softplus) or layer.beta == 1
        if not (isinstance(layer, nn.Linear) or type(layer) in UNITS) or not plain_softplus:
            kinds = ", ".join(kind.__name__ for kind in UNITS)
            raise ValueError(f"an equation needs second derivatives, of Linear, {kinds}; got {layer}")


Vectors = tuple[Tensor, Tensor, Tensor]
"""value (N, n), first derivatives (d, N or 1, n), second-order term (N or 1, n)"""


def _apart(layer: nn.Linear, value: Tensor, first: Tensor, second: Tensor) -> Vectors:
    """Apply W to each vector, and b to the value."""
    return (
        nn.functional.linear(value, layer.weight, layer.bias),
        nn.functional.linear(first, layer.weight),
        nn.functional.linear(second, layer.weight),
    )


def _stacked(layer: nn.Linear, value: Tensor, first: Tensor, second: Tensor) -> Vectors:
    """Return the same from one call of the layer, on (N, d + 2, n)."""
    rows = [value, *first.expand(-1, *value.shape), second.expand_as(value)]
    value, *rest = layer(torch.stack(rows, dim=-2)).unbind(dim=-2)
    if layer.bias is not None:
        rest = [vector - layer.bias for vector in rest]
    return value, torch.stack(rest[:-1]), rest[-1]


def jet(net: nn.Sequential, x: Tensor, coefficients: Sequence[float], stacked: bool = False) -> Jet:
    """Return u = net(x), ∇u and Σ_i c_i ∂²u/∂x_i²; x, (N, d); c, d numbers.

    Through σ the second-order term S becomes σ′ S + σ″ Σ_i c_i (∂_i z)²; one pass carries d + 2 vectors.
    Source: forward Laplacian, Li et al. 2024.

    `stacked` calls each linear layer once for all vectors of all points, so that hooks see them.
    """
    apply = _stacked if stacked else _apart
    curved = [(i, float(c)) for i, c in enumerate(coefficients) if c != 0]
    value, second = x, torch.zeros_like(x[..., :1, :])
    # ∂x/∂x_i and Σ c_i ∂²x/∂x_i² are equal at all points: one row serves them up to the first unit.
    first = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).unsqueeze(1)
    for layer in net:
        if isinstance(layer, nn.Linear):
            value, first, second = apply(layer, value, first, second)
        else:
            value, slope, bend = UNITS[type(layer)](value)
            second = slope * second
            for i, c in curved:
                second = torch.addcmul(second, bend, first[i].square(), value=c)
            first = slope * first
    shape = value.shape[:-1]
    gradient = first.squeeze(-1).expand(-1, *shape).movedim(0, -1)
    return Jet(value.squeeze(-1), gradient, second.squeeze(-1).expand(shape))
