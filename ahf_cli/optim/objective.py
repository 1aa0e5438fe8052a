"""h(θ), the loss of a model on one batch, and its derivatives, for K parameter vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

import ahf_cli.optim.rows as rows
from ahf_cli.optim.fast_operations import faster_operations
from ahf_cli.optim.layer_statistics import EXAMPLES, Draw, FisherSample, sample
from ahf_cli.optim.layers.chain import Chain, ExplicitLinearization
from ahf_cli.optim.linearization import Evaluation, GraphLinearization, Linearization, WithStates
from ahf_cli.optim.losses import LeastSquares, Likelihood, OutputLoss, SoftmaxCrossEntropy, SumOfSquares
from ahf_cli.optim.moments import Values
from ahf_cli.optim.operators import Operator
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.states import Both, beside


class Objective(Protocol):
    """h on one batch, a function of K parameter vectors."""

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies in a row."""

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row; (K, P) → (K,)."""

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ; (K, P)."""


FindChain = Callable[[nn.Module, Tensor], Chain | None]
"""(model, inputs) ↦ the model as a chain of explicit layers, or None."""


class ModelObjective:
    """h(θ) = L(model_θ(x), y) for any `nn.Module`, and one batch (x, y) for all trials or for each.

    A chain of linear layers, convolutions with max-pooling, and ReLU, tanh or logistic units is
    differentiated layer by layer, all trials together.  Automatic differentiation serves all other models.

    Args:
        model: gives the function and the layout; the values of its parameters are never read or changed.
            Its buffers are read: put normalisation and dropout into evaluation mode.
        inputs: x, (N, …); with `own_batches` (K, N, …).
        targets: y, (N, …); with `own_batches` (K, N, …).
        loss: L; default: softmax cross-entropy.
        vectorized: let automatic differentiation run the K trials as one batched computation (`vmap`) instead
            of one after the other.  Default: on a GPU only, since a CPU gains nothing.
        own_batches: each trial has its own batch.
        chain: finds the explicit layers; None for automatic differentiation.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss: OutputLoss | None = None,
        vectorized: bool | None = None,
        own_batches: bool = False,
        chain: FindChain | None = Chain.of,
    ):
        self.model, self.inputs, self.targets = model, inputs, targets
        self.loss: OutputLoss = loss or SoftmaxCrossEntropy()
        self.vectorized = not rows.on_host(inputs) if vectorized is None else vectorized
        self.own_batches, self._find_chain = own_batches, chain

    @cached_property
    def layout(self) -> Layout:
        """Names and shapes of the model's parameters, in the order of a row."""
        return Layout.of(self.model.named_parameters())

    @cached_property
    def chain(self) -> Chain | None:
        """The explicit layers, or None."""
        return self._find_chain(self.model, self._rows[0]) if self._find_chain else None

    @property
    def _rows(self) -> Tensor:
        """The inputs, (K or 1, N, …)."""
        return self.inputs if self.own_batches else self.inputs.unsqueeze(0)

    def outputs(self, parameters: Tensor) -> Tensor:
        """z = model_θ(x) for each row, without a graph; (K, P) → (K, N, …)."""
        leaves = self.layout.split(parameters)
        with torch.no_grad():
            return self._outputs(leaves) if self.chain is None else self.chain.outputs(leaves, self._rows)

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row, without a graph; (K, P) → (K,)."""
        with torch.no_grad():
            return self.loss.value(self.outputs(parameters), self.targets)

    def residuals(self, parameters: Tensor) -> Tensor:
        """ρ with h = ½ ‖ρ‖² for each row, without a graph; (K, P) → (K, M).

        Raises ValueError for a loss that is no sum of squares.
        """
        with torch.no_grad():
            return self._squares.residuals(self.outputs(parameters), self.targets)

    def jacobian(self, parameters: Tensor, row: int) -> Tensor:
        """∂ρ/∂θ of one row; (K, P) → (M, P)."""
        loss, pieces = self._squares, [p[row] for p in self.layout.split(parameters.detach())]
        x, y = (t[row] if self.own_batches else t for t in (self.inputs, self.targets))

        def residual(tensors: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
            return loss.residuals(self._forward(x[None], *tensors)[None], y[None])[0]

        # Example by example: a backward pass of the whole batch for each residual would take N times as long.
        each = vmap(jacrev(residual), in_dims=(None, 0, 0))(pieces, x, y)
        count = each[0].shape[0] * each[0].shape[1]
        joined: Tensor = torch.cat([j.reshape(count, -1) for j in each], dim=1) / len(x) ** 0.5
        return joined

    @property
    def _squares(self) -> SumOfSquares:
        if not isinstance(self.loss, SumOfSquares):
            raise ValueError("lm needs a loss that is a sum of squares, such as least_squares")
        return self.loss

    def evaluate(self, parameters: Tensor) -> Linearization:
        """Prepare h and its derivatives at θ; (K, P)."""

        def squared_gradients() -> Tensor:
            trials, y = len(parameters), self.targets
            x = self._rows.expand(trials, *self._rows.shape[1:])
            y = y if self.own_batches else y.expand(trials, *y.shape)
            each = zip(parameters.detach(), x, y, strict=True)
            return torch.stack([self._squared_gradients(*row) for row in each])

        def fisher(draw: Draw) -> FisherSample:
            loss, x, y = self.loss, self._rows, self.targets
            if not isinstance(loss, Likelihood):
                raise ValueError("kfac and ekfac need a loss with a distribution, such as cross_entropy")
            # A part of an equation's points may lack a term, since they can be ordered by term.
            count = x.shape[1] if isinstance(loss, LeastSquares) else draw.taken(x.shape[1])
            x, y = x[:, :count], y[:, :count] if self.own_batches else y[:count]
            pieces = self.layout.split(parameters.detach())
            return sample(
                self.model, self.layout, pieces, x, lambda z: draw.vectors(loss, z, y), self.vectorized
            )

        if self.chain is not None:
            with torch.no_grad():
                outputs, layers = self.chain.at(self.layout.split(parameters.detach()), self._rows)
            return ExplicitLinearization(
                self.layout,
                layers,
                outputs,
                self.targets,
                self.own_batches,
                self.loss,
                squared_gradients,
                fisher,
                self._states_at(parameters),
            )
        # A leaf for each tensor: the backward pass of slices of one row would add up padded rows.
        leaves = [piece.detach().requires_grad_() for piece in self.layout.split(parameters)]
        with torch.enable_grad():
            outputs = self._outputs(leaves)
            losses = self.loss.value(outputs, self.targets)
        return GraphLinearization(
            self.layout, leaves, losses, outputs, lambda: self.loss.hessian(outputs, self.targets),
            squared_gradients, fisher=fisher, states=self._states_at(parameters),
        )  # fmt: skip

    def _states_at(self, parameters: Tensor) -> WithStates:
        """Return the function weight ↦ the linearization of outputs and hidden states at θ; (K, P)."""

        def linearization(weight: Tensor) -> Linearization:
            both = Both(self.model)
            names = [both.prefix + name for name in self.layout.names]

            def forward(inputs: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
                found: tuple[Tensor, ...] = functional_call(
                    both, dict(zip(names, values, strict=True)), (inputs,)
                )
                return found

            leaves = [piece.detach().requires_grad_() for piece in self.layout.split(parameters)]
            with torch.enable_grad():
                z, *h = self._each_row(forward, leaves)
                losses = self.loss.value(z, self.targets)
            return GraphLinearization(
                self.layout, leaves, losses, (z, *h),
                lambda: beside(self.loss.hessian(z, self.targets), z, h, weight),
            )  # fmt: skip

        return linearization

    def _outputs(self, tensors: Sequence[Tensor]) -> Tensor:
        (outputs,) = self._each_row(lambda *row: (self._forward(*row),), tensors)
        return outputs

    def _each_row(
        self, forward: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the results of (inputs, parameters …) ↦ (N, …), …, each (K, N, …)."""
        trials = len(tensors[0])
        with faster_operations(self.inputs.device):
            if self.vectorized and trials > 1:
                batched = vmap(forward, in_dims=(0 if self.own_batches else None, *[0] * len(tensors)))
                found: tuple[Tensor, ...] = batched(self.inputs, *tensors)
                return found
            inputs = self._rows.expand(trials, *self._rows.shape[1:])
            results = [forward(*row) for row in zip(inputs, *tensors, strict=True)]
            return tuple(torch.stack(own) for own in zip(*results, strict=True))

    def _forward(self, inputs: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(self.layout.names, values, strict=True))
        result: Tensor = functional_call(self.model, named, (inputs,))
        return result

    def _squared_gradients(self, parameters: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over examples of their squared gradients at one θ; (P,), (N, …), (N, …) → (P,)."""

        def loss(pieces: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            outputs = self._forward(x[None], *pieces)
            return self.loss.value(outputs[None], y[None])[0]

        # Chunks: the gradients of a whole batch would take N · P numbers.
        pieces = tuple(piece[0] for piece in self.layout.split(parameters[None]))
        each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=EXAMPLES)(pieces, inputs, targets)
        return self.layout.join([g.square().mean(dim=0) for g in each])[0]


@dataclass
class Counted:
    """An objective that counts the evaluations of its loss alone."""

    inner: Objective
    losses: int = 0

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row; (K, P) → (K,)."""
        self.losses += 1
        return self.inner.value(parameters)

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ; (K, P)."""
        return self.inner.evaluate(parameters)


Regularization = Callable[[Objective, Values], Objective]
"""(h, hyperparameters) ↦ h with an added term."""


@dataclass(frozen=True)
class RegularizedEvaluation:
    """An evaluation of h with weight decay, h(θ) + ½ w ‖θ‖²."""

    inner: Evaluation
    parameters: Tensor  # θ, (K, P)
    decay: Tensor  # w, (K, 1) or (K, P)

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies in a row."""
        return self.inner.layout

    @property
    def loss(self) -> Tensor:
        """h + ½ w ‖θ‖², (K,)."""
        return self.inner.loss + penalty(self.parameters, self.decay)

    @property
    def gradient(self) -> Tensor:
        """∇h + w θ, (K, P)."""
        return self.inner.gradient.addcmul(self.decay, self.parameters)

    @property
    def gradient_count(self) -> int:
        """Number of gradients computed so far."""
        return self.inner.gradient_count

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ (B + diag w) v, for any B."""
        inner = self.inner.operator(curvature)
        return lambda v: inner(v).addcmul(self.decay, v)

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix, plus the penalty's curvature w; (K, P)."""
        return self.inner.squared_gradients() + self.decay

    def fisher(self, draw: Draw) -> FisherSample:
        """Return the pieces of the Fisher matrix, and the penalty's curvature w beside it."""
        return replace(self.inner.fisher(draw), shift=self.decay[:, 0])

    def select(self, trials: Tensor) -> RegularizedEvaluation | None:
        """Return the evaluation of some rows, or None."""
        inner = self.inner.select(trials)
        return (
            None
            if inner is None
            else RegularizedEvaluation(inner, self.parameters[trials], self.decay[trials])
        )


@dataclass(frozen=True)
class Regularized:
    """An objective with weight decay, h(θ) + ½ θᵀ diag(w) θ."""

    inner: Objective
    decay: Tensor  # w, (K, 1) or (K, P)

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) + ½ w ‖θ‖²; (K, P) → (K,)."""
        return self.inner.value(parameters) + penalty(parameters, self.decay)

    def evaluate(self, parameters: Tensor) -> RegularizedEvaluation:
        """Prepare the sum and its derivatives at θ; (K, P)."""
        return RegularizedEvaluation(self.inner.evaluate(parameters), parameters, self.decay)


def penalty(parameters: Tensor, decay: Tensor) -> Tensor:
    """Return ½ θᵀ diag(w) θ of each row; (K, P), (K, 1) or (K, P) → (K,)."""
    return 0.5 * rows.dot(decay * parameters, parameters)


def unregularized(objective: Objective, values: Values) -> Objective:
    """Return h itself."""
    return objective


def l2_regularized(objective: Objective, values: Values) -> Objective:
    """Return h + ½ w ‖θ‖²; w is the hyperparameter `weight_decay`."""
    return Regularized(objective, rows.expand(values["weight_decay"]))
