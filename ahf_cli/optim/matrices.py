"""The curvature B of any model's loss as a matrix of products, for use outside the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ahf_cli.optim import groups, operators, rows
from ahf_cli.optim.cg import MartensRules, Stop, conjugate_gradient
from ahf_cli.optim.closure import Closure, ClosureObjective, graphs_in_use
from ahf_cli.optim.linearization import Linearization
from ahf_cli.optim.losses import MeanLoss, OutputLoss
from ahf_cli.optim.objective import ModelObjective
from ahf_cli.optim.precision import full_precision

Parameters = Iterable[Tensor | tuple[str, Tensor]]
V = TypeVar("V", Tensor, list[Tensor], tuple[Tensor, ...])
"""A vector (P,), the columns of a matrix (P, k), or tensors in the shapes of the parameters."""
CHANGED = "changed after the matrix was made: make a new one"


@dataclass(frozen=True)
class Solution(Generic[V]):
    """x with (B + λI) x ≈ b.  The numbers are of each column, (k,), for a matrix b, else of b, ()."""

    x: V  # in the form of b
    iterations: Tensor  # updates of x, int64
    residual: Tensor  # ‖b − (B + λI) x‖, by a product with x


class CurvatureMatrix:
    """B, (P, P) and symmetric, at the present θ: it keeps the graph of the loss and gives products `B @ v`.

    `dtype` and `device` are those of the parameters, of v and of B v; `loss` is h(θ), ().  Products fail once
    the parameters have changed, or once inputs, targets or buffers have in place where PyTorch counts it.

    Args:
        closure: () ↦ the loss, or (loss, outputs), without `backward`; called once, with one dropout mask.
        parameters: tensors or (name, tensor) pairs, in the order of v; dense, float32 or float64.

    Raises TypeError for another closure or no tensors.  Raises ValueError for frozen, sparse or repeated
    parameters, mixed dtypes, absent outputs and a loss that is not finite.  Raises RuntimeError if the
    closure calls `backward`, or if its loss does not depend on a parameter.
    """

    _curvature: Callable[[Linearization], operators.Operator]
    _needs_outputs = False

    def __init__(self, closure: Closure, parameters: Parameters):
        if not callable(closure):
            raise TypeError(f"closure: must be callable and return the loss, got {type(closure).__name__}")
        leaves, layout = _checked(parameters)
        self._take(_objective(closure, leaves, layout, self._needs_outputs), leaves)

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor, targets: Tensor, loss: Any = None) -> Self:
        """Return B of a model's loss on one batch, over all its parameters; errors as for a closure.

        Args:
            model: any; put normalization and dropout into evaluation mode.
            inputs: x, (N, …).
            targets: y, (N, …).
            loss: an `OutputLoss`, or a function of outputs and targets, (N, …), (N, …) → (), that is a mean
                over examples.  Default: softmax cross-entropy.
        """
        for name, given in (("inputs", inputs), ("targets", targets)):
            if not isinstance(given, Tensor):
                raise TypeError(f"{name}: must be a tensor, got {type(given).__name__}")
        known: OutputLoss | None = loss if loss is None or hasattr(loss, "hessian") else MeanLoss(loss)
        matrix, leaves = cls.__new__(cls), _checked(model.named_parameters())[0]
        matrix._take(ModelObjective(model, inputs, targets, known), leaves, (inputs, targets))
        return matrix

    def _take(self, objective: Any, leaves: list[Tensor], batch: Sequence[Tensor] = ()) -> None:
        self._layout = layout = objective.layout
        self._theta = layout.join([p.detach() for p in leaves]).clone()  # (1, P)
        self._parameters = list(zip(layout.names, leaves, layout.split(self._theta), strict=True))
        self._batch = [(tensor, tensor._version) for tensor in batch if not tensor.is_inference()]
        self.shape: tuple[int, int] = (layout.size, layout.size)
        self.dtype, self.device = self._theta.dtype, self._theta.device
        with _derivatives(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            self._at: Linearization = objective.evaluate(self._theta)
            self._product = self._at.operator(self._curvature)
        self.loss = self._at.loss[0].clone()
        if not torch.isfinite(self.loss):
            raise ValueError(f"loss: must be finite, got {float(self.loss)}")

    @property
    def gradient(self) -> Tensor:
        """∇h(θ), (P,).  Raises RuntimeError if the parameters have changed."""
        self._check_unchanged()
        with _derivatives():
            return self._at.gradient[0].clone()

    def __matmul__(self, v: V) -> V:
        """B v in the form of v; raises TypeError or ValueError for a bad v, RuntimeError once θ changed."""
        vectors, back = self._rows("v", v)
        return back(self._products(vectors))

    def solve(self, b: V, damping: float, tolerance: float = 1e-5, max_iterations: int = 100) -> Solution[V]:
        """Solve (B + λI) x = b by conjugate gradient from 0, column by column.

        Args:
            b: as v of a product.
            damping: λ ≥ 0.
            tolerance: in (0, 1); a column stops once its residual by recurrence is ≤ tolerance · ‖b‖.
            max_iterations: ≥ 1, limit of updates of x; `residual` tells what they reached.

        Raises the errors of a product.  Raises ValueError for a number outside its range, for numbers of CG
        that are not finite, and if CG meets a direction d with dᵀ(B + λI)d ≤ 0.
        """
        _check("damping", damping, "≥ 0", lambda a: 0 <= a < torch.inf)
        _check("tolerance", tolerance, "in (0, 1)", lambda a: 0 < a < 1)
        _check("max_iterations", max_iterations, "whole and ≥ 1", lambda a: a >= 1 and a % 1 == 0)
        vectors, back = self._rows("b", b)
        largest = vectors.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(self.dtype).tiny)
        scale = largest * rows.expand(rows.l2(vectors / largest)).clamp(min=1)  # the squares of small v are 0
        unit, shift = vectors / scale, vectors.new_full((len(vectors),), damping)
        found = conjugate_gradient(
            self._products, shift, -unit, torch.zeros_like(unit), _ResidualRule(tolerance),
            int(max_iterations), check_every=rows.read_every(unit), select=lambda _: self._products,
        )  # fmt: skip
        if bool((found.stop == Stop.NEGATIVE_CURVATURE).any()):
            raise ValueError(f"damping: B + λI is not positive definite; give a larger one, got {damping}")
        residual = rows.l2(unit - operators.shifted(self._products, shift)(found.solution)) * scale[:, 0]
        if not bool(torch.isfinite(residual).all()):
            raise ValueError(f"b: CG must stay finite, got NaN or infinity at damping {damping}")
        x, columns = back(found.solution * scale), b.shape[1:] if isinstance(b, Tensor) else ()
        return Solution(x, found.iterations.reshape(columns), residual.reshape(columns))

    def to_scipy(self) -> Any:
        """Return B as a symmetric `scipy.sparse.linalg.LinearOperator` on numpy arrays of the same dtype."""

        def product(v: Any) -> Any:
            # A copy: PyTorch refuses negative strides and warns of arrays that are read-only.
            given = torch.from_numpy(v.copy())
            return (self @ (given if given.is_complex() else given.to(self._theta))).cpu().numpy()

        scipy = import_module("scipy.sparse.linalg")  # by name: the core imports torch alone
        dtype = str(self.dtype).removeprefix("torch.")
        return scipy.LinearOperator(self.shape, product, rmatvec=product, matmat=product, dtype=dtype)

    def _products(self, vectors: Tensor) -> Tensor:
        with _derivatives():  # row by row: all at once would take k times the memory
            return torch.cat([self._product(v[None]) for v in vectors])

    def _rows(self, name: str, v: V) -> tuple[Tensor, Callable[[Tensor], V]]:
        """Check θ and v; return v as rows (k, P), and the way back to its form."""
        self._check_unchanged()
        layout, size = self._layout, self._layout.size
        pieces: Any = [v] if isinstance(v, Tensor) else v
        if not isinstance(pieces, list | tuple) or not all(isinstance(p, Tensor) for p in pieces):
            raise TypeError(f"{name}: must be a tensor, or a list of tensors, got {type(v).__name__}")
        for p in pieces:
            if (p.dtype, p.device) != (self.dtype, self.device):
                raise TypeError(f"{name}: must be {self.dtype} on {self.device}, got {p.dtype} on {p.device}")
        if isinstance(v, Tensor):
            if v.dim() not in (1, 2) or len(v) != size or not v.numel():
                raise ValueError(f"{name}: must have shape ({size},) or ({size}, k), got {tuple(v.shape)}")
            vectors, back = v.reshape(size, -1).T, lambda r: r.T.reshape(v.shape)
        elif (found := [tuple(p.shape) for p in pieces]) != (shapes := [tuple(s) for s in layout.shapes]):
            raise ValueError(f"{name}: must have the shapes {shapes}, got {found}")
        else:
            vectors, back = layout.join(pieces), lambda r: type(v)(p[0] for p in layout.split(r))
        if count := int((~torch.isfinite(vectors)).sum()):
            raise ValueError(f"{name}: must be finite, got {count} numbers that are NaN or infinite")
        return vectors.detach().contiguous(), back  # compiled layers read rows as one piece of memory

    def _check_unchanged(self) -> None:
        for name, p, before in self._parameters:  # values: a change through `p.data` moves no version
            if (p.dtype, p.device) != (self.dtype, self.device) or not torch.equal(p, before[0]):
                raise RuntimeError(f"{name} {CHANGED}")
        if any(tensor._version != version for tensor, version in self._batch):
            raise RuntimeError(f"the batch {CHANGED}")


class Hessian(CurvatureMatrix):
    """B = ∇²h(θ), exact, by products that differentiate the gradient along v (Pearlmutter 1994)."""

    _curvature = staticmethod(operators.hessian)


class GaussNewton(CurvatureMatrix):
    """B = Jᵀ H_L J with J = ∂z/∂θ (Schraudolph 2002); a closure must return (loss, outputs)."""

    _curvature, _needs_outputs = staticmethod(operators.gauss_newton), True


def _fisher(at: Linearization) -> operators.Operator:
    slope = at.output_gradient()
    s = slope.reshape(slope.shape[1], -1)  # ∂h_n/∂z_n over N, (N, …)
    return lambda v: at.vjp((len(s) * s * (s * at.jvp(v).reshape_as(s)).sum(1, keepdim=True)).view_as(slope))


class EmpiricalFisher(CurvatureMatrix):
    """B = (1/N) Σ_n ∇h_n ∇h_nᵀ for h the mean of h_n, made by `of` alone, for independent examples."""

    _curvature = staticmethod(_fisher)

    def __init__(self, closure: Closure, parameters: Parameters):
        raise TypeError("EmpiricalFisher: needs single examples, as `of` has them, got a closure")


@dataclass(frozen=True)
class _ResidualRule(MartensRules):
    tolerance: float

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        return self.tolerance**2 * squared

    def progress_stop(self, phi: list[Tensor]) -> None:
        return None


def _objective(closure: Closure, leaves: list[Tensor], layout: rows.Layout, ggn: bool) -> ClosureObjective:
    return ClosureObjective(closure, leaves, layout, needs_outputs=ggn, check=True)


@contextmanager
def _derivatives() -> Iterator[None]:
    try:
        with graphs_in_use(), full_precision():
            yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(f"a tensor of the graph {CHANGED}") from error


def _checked(parameters: Parameters) -> tuple[list[Tensor], rows.Layout]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    pairs = [item if isinstance(item, tuple) else (f"parameter {n}", item) for n, item in enumerate(given)]
    wrong = ", ".join(type(p).__name__ for _, p in pairs if not isinstance(p, Tensor))
    if wrong or not pairs:
        raise TypeError(f"parameters: must be one tensor or more, got {wrong or 'none'}")
    group = {"params": [p for _, p in pairs], "param_names": [name for name, _ in pairs]}
    return groups.parameters([groups.completed(group, (), ())]), rows.Layout.of(pairs)


def _check(name: str, value: Any, rule: str, holds: Callable[[Any], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
        raise ValueError(f"{name}: must be a number {rule}, got {value!r}")
