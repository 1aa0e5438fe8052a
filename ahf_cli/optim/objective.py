"""h(θ), the loss of a model on one batch, and its derivatives, for K parameter vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ahf_cli.optim.convolution import linear_in_cotangent
from ahf_cli.optim.layers import LayerCall, LayerRecorder
from ahf_cli.optim.losses import OutputLoss, OutputOperator, SoftmaxCrossEntropy
from ahf_cli.optim.operations import faster_operations
from ahf_cli.optim.rows import Layout

EXAMPLES = 128
"""Examples whose gradients are held at once."""


class Evaluation:
    """h, ∇h and the products with its curvature at one θ on one batch.

    Each quantity is computed when first asked for, at most once, and the graph is kept while this object
    lives: that is what makes a curvature product cost little more than a gradient.

    Args:
        layout: where the leaves lie in a row.
        leaves: tensors that require grad, of shape (K, *shape) or, for K = 1, `shape`.
        losses: h, (K,), a graph of the leaves.
        outputs: z, of any shape, a graph of the leaves; needed for Gauss-Newton products only.
        output_hessian: makes w ↦ H_L w at these outputs.
        output_factor: makes S with H_L = S Sᵀ, for solvers in the space of the outputs.
        layer_calls: runs the forward pass of one row again, by itself; → its outputs and the linear maps that
            it applied, in one graph.
        output_fisher: makes w ↦ F_z w at these outputs.
        squared_gradients: makes the mean over examples of their squared gradients, (K, P).
    """

    def __init__(
        self,
        layout: Layout,
        leaves: Sequence[Tensor],
        losses: Tensor,
        outputs: Tensor | None = None,
        output_hessian: Callable[[], OutputOperator] | None = None,
        output_factor: Callable[[], Tensor] | None = None,
        layer_calls: Callable[[int], tuple[Tensor, Sequence[LayerCall]]] | None = None,
        output_fisher: Callable[[], OutputOperator] | None = None,
        squared_gradients: Callable[[], Tensor] | None = None,
    ):
        self.layout = layout
        self.leaves = tuple(leaves)
        self.losses = losses
        self.outputs = outputs
        self._make_output_hessian = output_hessian
        self.output_factor = output_factor
        self.layer_calls = layer_calls
        self._make_output_fisher = output_fisher
        self._make_squared_gradients = squared_gradients

    @property
    def loss(self) -> Tensor:
        """h(θ), (K,), without its graph."""
        return self.losses.detach()

    @cached_property
    def differentiable_gradients(self) -> tuple[Tensor, ...]:
        """∇h as tensors in the shapes of the leaves, with their graph."""
        # The rows are independent, so the gradient of the sum holds each row's own gradient.
        return torch.autograd.grad(self.losses.sum(), self.leaves, create_graph=True, materialize_grads=True)

    @cached_property
    def gradient(self) -> Tensor:
        """∇h(θ), (K, P)."""
        if "differentiable_gradients" in self.__dict__:
            return self._join([g.detach() for g in self.differentiable_gradients])
        return self._join(
            torch.autograd.grad(self.losses.sum(), self.leaves, retain_graph=True, materialize_grads=True)
        )

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """∇²h(θ) v for each row; (K, P) → (K, P)."""
        curved = [
            (g, v)
            for g, v in zip(self.differentiable_gradients, self._split(vectors), strict=True)
            if g.requires_grad
        ]
        if not curved:  # h is linear
            return torch.zeros_like(vectors)
        gradients, pieces = zip(*curved, strict=True)
        return self._join(
            torch.autograd.grad(gradients, self.leaves, pieces, retain_graph=True, materialize_grads=True)
        )

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """Jᵀ H_L J v for each row, J = ∂z/∂θ; (K, P) → (K, P)."""
        return self._through_outputs(vectors, lambda: self._output_hessian)

    def fisher_product(self, vectors: Tensor) -> Tensor:
        """Jᵀ F_z J v for each row, F_z the Fisher matrix of p(y | z); (K, P) → (K, P).

        Raises ValueError where the loss is not said to be that of a distribution.
        """
        return self._through_outputs(vectors, lambda: self._output_fisher)

    def squared_gradients(self) -> Tensor:
        """(1/N) Σ_n ∇h_n ⊙ ∇h_n, the diagonal of the empirical Fisher matrix, (K, P).

        Raises ValueError where single examples are not known, as in a closure.
        """
        if self._make_squared_gradients is None:
            raise ValueError("preconditioner: martens needs single examples, and a closure shows none")
        return self._make_squared_gradients()

    def _through_outputs(self, vectors: Tensor, middle: Callable[[], OutputOperator]) -> Tensor:
        seed, pullback = self._pullback
        operator = middle()
        (tangent,) = torch.autograd.grad(pullback, seed, self._split(vectors), retain_graph=True)
        assert self.outputs is not None  # or there were no pullback
        return self._join(
            torch.autograd.grad(
                self.outputs, self.leaves, operator(tangent), retain_graph=True, materialize_grads=True
            )
        )

    @cached_property
    def _pullback(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """c and Jᵀc as a graph of c: it is linear in c, so its own transpose gives J v for any v."""
        if self.outputs is None:
            raise ValueError("Gauss-Newton products need the outputs: return (loss, outputs)")
        seed = torch.zeros_like(self.outputs, requires_grad=True)
        with linear_in_cotangent():
            pullback = torch.autograd.grad(
                self.outputs, self.leaves, seed, create_graph=True, materialize_grads=True
            )
        return seed, pullback

    @cached_property
    def _output_hessian(self) -> OutputOperator:
        assert self._make_output_hessian is not None
        return self._make_output_hessian()

    @cached_property
    def _output_fisher(self) -> OutputOperator:
        if self._make_output_fisher is None:
            raise ValueError(
                "curvature: fisher needs a loss that is the negative log-likelihood of a known distribution; "
                "for softmax and cross-entropy ggn is the same matrix"
            )
        return self._make_output_fisher()

    def _split(self, vectors: Tensor) -> tuple[Tensor, ...]:
        pieces = self.layout.split(vectors)
        return tuple(piece.reshape(leaf.shape) for piece, leaf in zip(pieces, self.leaves, strict=True))

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.layout.join(tensors, rows=self.losses.shape[0])


class Objective(Protocol):
    """h on one batch, a function of K parameter vectors."""

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies in a row."""
        ...

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row; (K, P) → (K,)."""
        ...

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ; (K, P)."""
        ...


class ModelObjective:
    """h(θ) = L(model_θ(x), y) for any `nn.Module` and one batch (x, y) that all trials share.

    Args:
        model: gives the function and the layout; its own parameter values are never used or changed.  Its
            buffers are used as they are: put normalisation and dropout into evaluation mode.
        inputs: x, (N, …).
        targets: y, (N, …).
        loss: L; softmax cross-entropy unless given.
        vectorized: run the K trials as one batched computation (`vmap`) rather than one after the other;
            by default on a GPU, since on a CPU it gains nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: OutputLoss | None = None,
        vectorized: bool | None = None,
    ):
        self.model, self.inputs, self.targets = model, inputs, targets
        self.loss: OutputLoss = loss or SoftmaxCrossEntropy()
        self.vectorized = inputs.is_cuda if vectorized is None else vectorized

    @cached_property
    def layout(self) -> Layout:
        """Order and shapes of the model's parameters."""
        return Layout.of(self.model.named_parameters())

    def outputs(self, parameters: Tensor) -> Tensor:
        """z = model_θ(x) for each row; (K, P) → (K, N, …)."""
        return self._outputs(self.layout.split(parameters))

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row, without a graph; (K, P) → (K,)."""
        with torch.no_grad():
            return self.loss.value(self.outputs(parameters), self.targets)

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ; (K, P)."""
        leaves = [piece.detach().requires_grad_() for piece in self.layout.split(parameters)]
        with torch.enable_grad():
            outputs = self._outputs(leaves)
            losses = self.loss.value(outputs, self.targets)
        return Evaluation(
            self.layout,
            leaves,
            losses,
            outputs,
            lambda: self.loss.hessian(outputs, self.targets),
            lambda: self.loss.factor(outputs, self.targets),
            lambda row: self._layer_calls([leaf[row].detach().requires_grad_() for leaf in leaves]),
            lambda: self.loss.fisher(outputs),
            lambda: torch.stack([self._squared_gradients(row) for row in parameters.detach().unbind(0)]),
        )

    def _outputs(self, tensors: Sequence[Tensor]) -> Tensor:
        if self.vectorized and tensors[0].shape[0] > 1:
            return vmap(self._forward)(*tensors)
        rows = zip(*(tensor.unbind(0) for tensor in tensors), strict=True)
        with faster_operations(self.inputs.device):
            return torch.stack([self._forward(*row) for row in rows])

    def _forward(self, *values: Tensor) -> Tensor:
        named = dict(zip(self.layout.names, values, strict=True))
        result: Tensor = functional_call(self.model, named, (self.inputs,))
        return result

    def _squared_gradients(self, parameters: Tensor) -> Tensor:
        """Mean over examples of their squared gradients at one θ; (P,) → (P,)."""

        def loss(pieces: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            named = dict(zip(self.layout.names, pieces, strict=True))
            outputs: Tensor = functional_call(self.model, named, (x[None],))
            return self.loss.value(outputs[None], y[None])[0]

        pieces = tuple(piece[0] for piece in self.layout.split(parameters[None]))
        each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=EXAMPLES)(pieces, self.inputs, self.targets)
        return self.layout.join([g.square().mean(dim=0) for g in each])[0]

    def _layer_calls(self, values: Sequence[Tensor]) -> tuple[Tensor, list[LayerCall]]:
        with torch.enable_grad(), faster_operations(self.inputs.device), LayerRecorder(values) as recorder:
            return self._forward(*values), recorder.calls
