"""Differential equations as least-squares tasks: residuals at random points, and a known solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ahf_cli.errors import InputError
from ahf_cli.optim.layer_statistics import SharedLayers
from ahf_cli.tasks.catalogue import found
from ahf_cli.tasks.data import LabelledImages, Split, SplitName
from ahf_cli.tasks.datasets import DATA_SETS, DataSet
from ahf_cli.tasks.jets import Jet, check_smooth, jet

Points = npt.NDArray[np.float64]
"""points x, (N, d)"""
TEST_POINTS = 9_000
"""points inside, at least, of the validation and the test set"""
TRAIN, VALIDATION, TEST, FRESH, PROBE = range(5)
"""numbers of the streams of random points of an equation"""


@dataclass(frozen=True)
class Term:
    """½ · weight · mean r² over random points of one kind."""

    name: str
    count: int
    """number of points of a step"""
    draw: Callable[[np.random.Generator, int], Points]
    """(random numbers, N) → points, (N, d)"""
    residual: Callable[[Jet, Tensor], Tensor]
    """(u and its derivatives at x, x (N, d)) → r, (N,); finite in the whole box"""
    weight: float = 1.0


@dataclass(frozen=True)
class Equation:
    """An equation on a box, as a sum of terms; the first one holds inside, where the error is measured."""

    terms: tuple[Term, ...]
    solution: Callable[[Tensor], Tensor]
    """x (N, d) → u(x), (N,)"""
    second: tuple[float, ...]
    """coefficients c of `Jet.second`, one for each coordinate"""
    low: float = 0.0
    high: float = 1.0
    """the box [low, high]^d"""
    fresh: bool = False
    """whether each step draws new points"""

    @property
    def count(self) -> int:
        """Number of points of a step."""
        return sum(term.count for term in self.terms)


def find(name: str) -> Equation:
    """Return the equation of a data set."""
    made: Equation = found(DATA_SETS[name].reader)()
    return made


class Residuals(SharedLayers):
    """(N, d + 1) → (N, 2): the residual and u at points whose last number is the number of their term.

    A layer serves d + 2 vectors: those of the value, of the first derivatives, and of the second-order term.
    """

    def __init__(self, net: nn.Module, equation: Equation) -> None:
        super().__init__()
        check_smooth(net)
        self.net, self.equation = cast(nn.Sequential, net), equation

    def forward(self, points: Tensor, stacked: bool = False) -> Tensor:
        """Return (r, u)."""
        x, kind = points[..., :-1], points[..., -1]
        u = jet(self.net, x, self.equation.second, stacked)
        r = torch.zeros_like(u.value)
        for number, term in enumerate(self.equation.terms):
            r = torch.where(kind == number, term.residual(u, x), r)
        return torch.stack([r, u.value], dim=-1)

    def not_finite(self, points: Tensor, weights: Mapping[str, Tensor]) -> str:
        """Return the first term that is not finite at some weights and points of any term; "" for none.

        Its derivative with respect to the weights counts, too, as that of a root at 0.
        """
        leaves = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
        x = points[..., :-1]
        u = functional_call(_JetOf(self), leaves, (x,))
        for term in self.equation.terms:
            r = term.residual(u, x)
            if not bool(torch.isfinite(r).all()):
                return f"term {term.name!r}"
            slopes = torch.autograd.grad(r.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
            if any(s is not None and not bool(torch.isfinite(s).all()) for s in slopes):
                return f"the derivative of term {term.name!r}"
        return ""


class _JetOf(nn.Module):
    """(N, d) → u and its derivatives, with the weights' names of `Residuals`."""

    def __init__(self, own: Residuals) -> None:
        super().__init__()
        self.net, self.second = own.net, own.equation.second

    def forward(self, x: Tensor) -> Jet:
        """Return the jet."""
        return jet(self.net, x, self.second)


def drawn(name: str, equation: Equation, source: tuple[int, ...], times: int = 1) -> LabelledImages:
    """Return random points of all terms, `times` as many as a step has.

    A point is (x, number of its term), and its target (w, u(x), v).  w = weight · N/N_term makes the mean
    over N points a sum of means over terms.  v = N/N_inside inside, else 0, selects the points of the error.

    Raises:
        InputError: a term draws points of another shape or outside the box.
    """
    random, blocks, total = np.random.default_rng(source), [], times * equation.count
    dimension = len(equation.second)
    for number, term in enumerate(equation.terms):
        count = times * term.count
        x = np.asarray(term.draw(random, count), dtype=np.float64)
        head = f"data set {name}: term {term.name!r}"
        if x.shape != (count, dimension):
            raise InputError(f"{head}: draw must return points of shape {(count, dimension)}, got {x.shape}")
        outside = ~((x >= equation.low) & (x <= equation.high))
        if outside.any():
            box = f"[{equation.low:g}, {equation.high:g}]"
            raise InputError(f"{head}: points must lie in {box}, got {x[outside][0]:g}")
        inside = total / count if number == 0 else 0.0
        own = np.broadcast_to([number, term.weight * total / count, inside], (count, 3))
        blocks.append(np.concatenate([x, own], axis=1))
    table = torch.from_numpy(np.concatenate(blocks))
    points, weights = table[:, : dimension + 1], table[:, dimension + 1 :]
    solution = equation.solution(points[:, :-1])
    return LabelledImages(points.contiguous(), torch.stack([weights[:, 0], solution, weights[:, 1]], dim=1))


def split(data: DataSet, kind: SplitName) -> Split:
    """Return the points of an equation: those of training, and more of them for validation and test."""
    equation = find(data.name)
    times = max(1, math.ceil(TEST_POINTS / equation.terms[0].count))
    return Split(
        drawn(data.name, equation, (TRAIN,)),
        None if kind == "full" else drawn(data.name, equation, (VALIDATION,), times),
        drawn(data.name, equation, (TEST,), times),
        1,
        data.metrics,
        data.name,
    )


def residuals(net: nn.Module, name: str) -> Residuals:
    """Return the residuals of an equation with a network for u, checked at random weights.

    Raises:
        InputError: a term has another shape, is not finite, or does not depend on the network.
        ValueError: the network has no second derivatives.
    """
    equation = find(name)
    module = Residuals(net, equation).double()
    points = drawn(name, equation, (PROBE,)).images
    x = points[:, :-1]
    u = jet(module.net, x, equation.second)
    for term in equation.terms:
        head = f"data set {name}: term {term.name!r}"
        r = term.residual(u, x)
        if r.shape != u.value.shape:
            raise InputError(
                f"{head}: its residual must have shape {tuple(u.value.shape)}, got {tuple(r.shape)}"
            )
        if not bool(torch.isfinite(r).all()):
            raise InputError(
                f"{head}: its residual must be finite in the box, got {r[~torch.isfinite(r)][0]:g}"
            )
        weights, slopes = list(module.parameters()), tuple[Tensor | None, ...]()
        if r.requires_grad:
            slopes = torch.autograd.grad(r.sum(), weights, retain_graph=True, allow_unused=True)
        if not any(slope is not None and bool((slope != 0).any()) for slope in slopes):
            raise InputError(f"{head}: its residual must depend on the network, and it does not")
    return module
