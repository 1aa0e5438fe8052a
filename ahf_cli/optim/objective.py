"""h(θ), the loss of a model on one batch, and its derivatives, for K parameter vectors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import ahf_cli.optim.rows as rows
from ahf_cli.optim.fast_operations import faster_operations
from ahf_cli.optim.linearization import Evaluation, Linearization
from ahf_cli.optim.losses import OutputLoss, SoftmaxCrossEntropy
from ahf_cli.optim.moments import Values
from ahf_cli.optim.operators import Operator, shifted
from ahf_cli.optim.rows import Layout

EXAMPLES = 128
"""Number of examples whose gradients are in memory at once."""


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
        model: gives the function and the layout; the values of its parameters are never read or changed.
            Its buffers are read: put normalisation and dropout into evaluation mode.
        inputs: x, (N, …).
        targets: y, (N, …).
        loss: L; default: softmax cross-entropy.
        vectorized: run the K trials as one batched computation (`vmap`) instead of one after the other.
            Default: on a GPU only, since a CPU gains nothing.
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
        """Names and shapes of the model's parameters, in the order of a row."""
        return Layout.of(self.model.named_parameters())

    def outputs(self, parameters: Tensor) -> Tensor:
        """z = model_θ(x) for each row; (K, P) → (K, N, …)."""
        return self._outputs(self.layout.split(parameters))

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row, without a graph; (K, P) → (K,)."""
        with torch.no_grad():
            return self.loss.value(self.outputs(parameters), self.targets)

    def evaluate(self, parameters: Tensor) -> Linearization:
        """Prepare h and its derivatives at θ; (K, P)."""
        # A leaf for each tensor: the backward pass of slices of one row would add up padded rows.
        leaves = [piece.detach().requires_grad_() for piece in self.layout.split(parameters)]
        with torch.enable_grad():
            outputs = self._outputs(leaves)
            losses = self.loss.value(outputs, self.targets)
        return Linearization(
            self.layout,
            leaves,
            losses,
            outputs,
            lambda: self.loss.hessian(outputs, self.targets),
            lambda: torch.stack([self._squared_gradients(row) for row in parameters.detach().unbind(0)]),
        )

    def _outputs(self, tensors: Sequence[Tensor]) -> Tensor:
        if self.vectorized and tensors[0].shape[0] > 1:
            return vmap(self._forward)(*tensors)
        trials = zip(*(tensor.unbind(0) for tensor in tensors), strict=True)
        with faster_operations(self.inputs.device):
            return torch.stack([self._forward(*trial) for trial in trials])

    def _forward(self, *values: Tensor) -> Tensor:
        named = dict(zip(self.layout.names, values, strict=True))
        result: Tensor = functional_call(self.model, named, (self.inputs,))
        return result

    def _squared_gradients(self, parameters: Tensor) -> Tensor:
        """Return the mean over examples of their squared gradients at one θ; (P,) → (P,)."""

        def loss(pieces: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
            named = dict(zip(self.layout.names, pieces, strict=True))
            outputs: Tensor = functional_call(self.model, named, (x[None],))
            return self.loss.value(outputs[None], y[None])[0]

        # Chunks: the gradients of a whole batch would take N · P numbers.
        pieces = tuple(piece[0] for piece in self.layout.split(parameters[None]))
        each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=EXAMPLES)(pieces, self.inputs, self.targets)
        return self.layout.join([g.square().mean(dim=0) for g in each])[0]


Regularization = Callable[[Objective, Values], Objective]
"""(h, hyperparameters) ↦ h with an added term."""


@dataclass(frozen=True)
class RegularizedEvaluation:
    """An evaluation of h with weight decay, h(θ) + ½ w ‖θ‖²."""

    inner: Evaluation
    parameters: Tensor  # θ, (K, P)
    decay: Tensor  # w, (K,)

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
        return self.inner.gradient.addcmul(rows.expand(self.decay), self.parameters)

    @property
    def gradient_count(self) -> int:
        """Number of gradients computed so far."""
        return self.inner.gradient_count

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ (B + w I) v, for any B."""
        return shifted(self.inner.operator(curvature), self.decay)

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix, plus the penalty's curvature w; (K, P)."""
        return self.inner.squared_gradients() + rows.expand(self.decay)


@dataclass(frozen=True)
class Regularized:
    """An objective with weight decay, h(θ) + ½ w ‖θ‖²."""

    inner: Objective
    decay: Tensor  # w, (K,)

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
    """Return ½ w ‖θ‖² of each row; (K, P), (K,) → (K,)."""
    return 0.5 * decay * rows.dot(parameters, parameters)


def unregularized(objective: Objective, values: Values) -> Objective:
    """Return h itself."""
    return objective


def l2_regularized(objective: Objective, values: Values) -> Objective:
    """Return h + ½ w ‖θ‖²; w is the hyperparameter `weight_decay`."""
    return Regularized(objective, values["weight_decay"])
