"""h at one θ with its graphs: the loss, the gradient, and the products J v, Jᵀ w and ∇²h v."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ahf_cli.optim.fast_operations import linear_in_cotangent
from ahf_cli.optim.layer_statistics import NO_LAYERS, Draw, FisherSample
from ahf_cli.optim.losses import OutputOperator, joined, parted
from ahf_cli.optim.rows import Layout


class Evaluation(Protocol):
    """h, ∇h and curvature operators at one θ, for K rows."""

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies in a row."""
        ...

    @property
    def loss(self) -> Tensor:
        """h(θ), (K,)."""
        ...

    @property
    def gradient(self) -> Tensor:
        """∇h(θ), (K, P)."""
        ...

    @property
    def gradient_count(self) -> int:
        """Number of gradients computed so far, 0 or 1; equal in all rows."""
        ...

    def operator(self, curvature: Callable[[Linearization], Any]) -> Callable[[Tensor], Tensor]:
        """v ↦ B v for a curvature; (K, P) → (K, P)."""
        ...

    def squared_gradients(self) -> Tensor:
        """(1/N) Σ_n ∇h_n ⊙ ∇h_n, the diagonal of the empirical Fisher matrix, (K, P)."""
        ...

    def fisher(self, draw: Draw) -> FisherSample:
        """Return pieces of the Fisher matrix.

        Raises ValueError where model or distribution is unknown.
        """
        ...

    def select(self, trials: Tensor) -> Evaluation | None:
        """Return the evaluation of some rows, (k,) int64, without a new pass; None if that is impossible."""
        ...


class Linearization(Evaluation, Protocol):
    """An evaluation with the pieces of curvatures."""

    def prepare_hvp(self) -> None:
        """Prepare the products ∇²h v, once and before the gradient is read."""
        ...

    def hvp(self, vectors: Tensor) -> Tensor:
        """∇²h(θ) v for each row; (K, P) → (K, P)."""
        ...

    def jvp(self, vectors: Tensor) -> Tensor:
        """J v for each row, J = ∂z/∂θ; (K, P) → the shape of the outputs."""
        ...

    def vjp(self, cotangent: Tensor) -> Tensor:
        """Jᵀ w for each row; the shape of the outputs → (K, P)."""
        ...

    def output_gradient(self) -> Tensor:
        """∂L/∂z at these outputs, in their shape."""
        ...

    def loss_hessian(self) -> OutputOperator:
        """w ↦ H_L w = ∂²L/∂z² w at these outputs, block-diagonal over trials."""
        ...

    @property
    def has_outputs(self) -> bool:
        """Whether z is known."""
        ...

    def beside_outputs(self) -> Callable[[Tensor], Tensor] | None:
        """Return v ↦ ∇²R v for the part R of h that does not pass through z; None for R = 0."""
        ...

    def with_states(self, weight: Tensor) -> Linearization:
        """Return the linearization whose outputs are z and all hidden states, by one more forward pass.

        Its H_L has a second block, weight/N · I for the states of N examples; weight, (K,).
        Raises ValueError for a model without hidden states.
        """
        ...

    def check_outputs(self) -> Tensor:
        """Return z; raises ValueError if the outputs are not given."""
        ...


WithStates = Callable[[Tensor], Linearization]
"""Weights of the hidden states, (K,) ↦ the linearization of outputs and hidden states."""
NO_STATES = "damping_matrix: structural needs a model's hidden states; a closure gives none"


class GraphLinearization:
    """A linearization by automatic differentiation, for every model and loss.

    Each quantity is computed at its first use, and at most once.  The graph lives as long as this object, so
    that a product costs little more than a gradient.

    Args:
        layout: where the leaves lie in a row.
        leaves: tensors that require grad, of shape (K, *shape) or, for K = 1, `shape`.
        losses: h, (K,), a graph of the leaves.
        outputs: z, one tensor of any shape or several, graphs of the leaves; only `jvp` and `vjp` need them.
        loss_hessian: () ↦ the operator w ↦ H_L w at these outputs.
        squared_gradients: () ↦ the mean over examples of squared gradients, (K, P).
        beside: () ↦ v ↦ ∇²R v for the part R of h that does not pass through the outputs; None for R = 0.
        around: () ↦ the context of each backward pass.
        fisher: the pieces of the Fisher matrix.
        states: the function `with_states`.
    """

    def __init__(
        self,
        layout: Layout,
        leaves: Sequence[Tensor],
        losses: Tensor,
        outputs: Tensor | Sequence[Tensor] | None = None,
        loss_hessian: Callable[[], OutputOperator] | None = None,
        squared_gradients: Callable[[], Tensor] | None = None,
        beside: Callable[[], Callable[[Tensor], Tensor] | None] | None = None,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        fisher: Callable[[Draw], FisherSample] | None = None,
        states: WithStates | None = None,
    ):
        self.layout = layout
        self.leaves = tuple(leaves)
        self.losses = losses
        self.outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs or ())
        self._beside, self._around = beside, around
        self._make_loss_hessian = loss_hessian
        self._make_squared_gradients, self._make_fisher = squared_gradients, fisher
        self._with_states = states

    @property
    def loss(self) -> Tensor:
        """h(θ), (K,), without its graph."""
        return self.losses.detach()

    @cached_property
    def gradients(self) -> tuple[Tensor, ...]:
        """∇h as tensors in the shapes of the leaves, with their graph."""
        # The rows are independent, so the gradient of the sum holds each row's own gradient.
        return self._grad(self.losses.sum(), self.leaves, create_graph=True, materialize_grads=True)

    @cached_property
    def gradient(self) -> Tensor:
        """∇h(θ), (K, P)."""
        # Reading `self.gradients` here would build a graph of second order that Gauss-Newton never uses.
        if "gradients" in self.__dict__:
            return self._join([g.detach() for g in self.gradients])
        return self._join(
            self._grad(self.losses.sum(), self.leaves, retain_graph=True, materialize_grads=True)
        )

    @property
    def gradient_count(self) -> int:
        """1 if ∇h is computed, with or without its graph; else 0."""
        return int("gradients" in self.__dict__ or "gradient" in self.__dict__)

    def operator(self, curvature: Callable[[Linearization], Any]) -> Callable[[Tensor], Tensor]:
        """v ↦ B v for a curvature; (K, P) → (K, P)."""
        operator: Callable[[Tensor], Tensor] = curvature(self)
        return operator

    def prepare_hvp(self) -> None:
        """Build the graph of the gradient, so that `gradient` reads from it instead of a second one."""
        _ = self.gradients

    def hvp(self, vectors: Tensor) -> Tensor:
        """∇²h(θ) v for each row; (K, P) → (K, P)."""
        # Autograd refuses a gradient without graph, such as the constant one of a linear parameter.
        curved = [
            (g, v) for g, v in zip(self.gradients, self._split(vectors), strict=True) if g.requires_grad
        ]
        if not curved:  # h is linear
            return torch.zeros_like(vectors)
        gradients, pieces = zip(*curved, strict=True)
        return self._join(
            self._grad(gradients, self.leaves, pieces, retain_graph=True, materialize_grads=True)
        )

    def jvp(self, vectors: Tensor) -> Tensor:
        """J v for each row, J = ∂z/∂θ; (K, P) → the shape of the outputs."""
        seed, pullback = self._pullback
        return joined(self._grad(pullback, seed, self._split(vectors), retain_graph=True))

    def vjp(self, cotangent: Tensor) -> Tensor:
        """Jᵀ w for each row; the shape of the outputs → (K, P)."""
        self.check_outputs()
        w = parted(cotangent, self.outputs)
        return self._join(self._grad(self.outputs, self.leaves, w, retain_graph=True, materialize_grads=True))

    def output_gradient(self) -> Tensor:
        """∂L/∂z at these outputs, in their shape."""
        self.check_outputs()
        return joined(self._grad(self.losses.sum(), self.outputs, retain_graph=True))

    def loss_hessian(self) -> OutputOperator:
        """w ↦ H_L w = ∂²L/∂z² w at these outputs, block-diagonal over trials."""
        assert self._make_loss_hessian is not None
        operator: OutputOperator = self._surrounded(self._make_loss_hessian)
        return operator

    def squared_gradients(self) -> Tensor:
        """(1/N) Σ_n ∇h_n ⊙ ∇h_n, the diagonal of the empirical Fisher matrix, (K, P).

        Raises ValueError if single examples are unknown, as in a closure.
        """
        if self._make_squared_gradients is None:
            raise ValueError(
                "preconditioner: martens needs the gradients of single examples; a closure gives none"
            )
        return self._make_squared_gradients()

    def fisher(self, draw: Draw) -> FisherSample:
        """Return pieces of the Fisher matrix; raises ValueError for a closure, whose layers are unknown."""
        if self._make_fisher is None:
            raise ValueError(NO_LAYERS)
        return self._make_fisher(draw)

    def select(self, trials: Tensor) -> None:
        """Return None: a graph of all rows has no part for some of them."""

    def check_outputs(self) -> Tensor:
        """Return z; raises ValueError if the outputs are not given."""
        if not self.outputs:
            raise ValueError("Gauss-Newton products need the outputs: return (loss, outputs)")
        return joined(self.outputs)

    @property
    def has_outputs(self) -> bool:
        """Whether z is known."""
        return bool(self.outputs)

    def beside_outputs(self) -> Callable[[Tensor], Tensor] | None:
        """Return v ↦ ∇²R v for the part R of h that does not pass through z; None for R = 0."""
        return self._surrounded(self._beside) if self._beside is not None else None

    def with_states(self, weight: Tensor) -> Linearization:
        """Return the linearization of z and all hidden states; raises ValueError for a closure."""
        if self._with_states is None:
            raise ValueError(NO_STATES)
        return self._with_states(weight)

    def _surrounded(self, make: Callable[[], Any]) -> Any:
        """Return the operator that `make` makes, with both in the context of backward passes."""
        with self._around():
            operator = make()

        def within(vectors: Tensor) -> Tensor:
            with self._around():
                product: Tensor = operator(vectors)
                return product

        return None if operator is None else within

    @cached_property
    def _pullback(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """c and Jᵀc as a graph of c.  Jᵀc is linear in c, so that its transpose gives J v for any v."""
        self.check_outputs()
        # The value of c does not matter for a linear map; zeros cost least.
        seed = tuple(torch.zeros_like(z, requires_grad=True) for z in self.outputs)
        with linear_in_cotangent():
            pullback = self._grad(self.outputs, self.leaves, seed, create_graph=True, materialize_grads=True)
        return seed, pullback

    def _grad(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        with self._around():
            gradients: tuple[Tensor, ...] = torch.autograd.grad(*args, **kwargs)
            return gradients

    def _split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        pieces = self.layout.split(vectors)
        return tuple(piece.reshape(leaf.shape) for piece, leaf in zip(pieces, self.leaves, strict=True))

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.layout.join(tensors, rows=self.losses.shape[0])
