"""A model as a chain of explicit layers: its outputs, and h with its derivatives at one θ, for K trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ahf_cli.optim.layer_statistics import Draw, FisherSample
from ahf_cli.optim.layers.compiled import COMPILED
from ahf_cli.optim.layers.convolution import Block
from ahf_cli.optim.layers.dense import FlattenAt, Layer, LinearAt, PointwiseAt, pointwise
from ahf_cli.optim.layers.record import Convolution, Flatten, Linear, MaxPooling, Pointwise, Recording, record
from ahf_cli.optim.layers.selected import laid_out
from ahf_cli.optim.linearization import WithStates
from ahf_cli.optim.losses import OutputLoss, OutputOperator
from ahf_cli.optim.rows import Layout

Step = Block | Linear | Pointwise | Flatten


@dataclass(frozen=True)
class Chain:
    """The forward pass of a model: perhaps blocks of convolution and pooling, then layers of one axis."""

    steps: tuple[Step, ...]
    shapes: tuple[torch.Size, ...]
    """shape of the input of each step, and last of the output; each (N, …)"""

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> Chain | None:
        """Return the chain of a model on inputs (N, …); None for any other model."""
        recording = record(model, inputs)
        chain = None if recording is None else _fused(recording)
        return chain if chain is None or chain.served(inputs) else None

    def served(self, inputs: Tensor) -> bool:
        """Return whether the layers are the fastest way for these inputs."""
        if inputs.dtype not in (torch.float32, torch.float64):
            return False
        convolves = isinstance(self.steps[0], Block)
        return inputs.device.type != "cpu" or not convolves or COMPILED is not None

    def outputs(self, leaves: Sequence[Tensor], x: Tensor) -> Tensor:
        """z = model_θ(x) of each trial; θ as tensors (K, *shape), x (K or 1, N, …) → (K, N, …)."""
        return self._run(leaves, x, None)

    def at(self, leaves: Sequence[Tensor], x: Tensor) -> tuple[Tensor, tuple[Layer, ...]]:
        """Return the outputs z and the layers at θ and x."""
        layers: list[Layer] = []
        return self._run(leaves, x, layers), tuple(layers)

    def _run(self, leaves: Sequence[Tensor], x: Tensor, layers: list[Layer] | None) -> Tensor:
        same_kind("parameters", leaves[0], x)
        if isinstance(self.steps[0], Block):
            x = laid_out(x, last=True)
        trials = len(leaves[0])
        for n, step in enumerate(self.steps):
            layer: Layer | None = None
            if isinstance(step, Block):
                last = isinstance(self.steps[n + 1], Block)
                x, layer = step.run(self.shapes[n : n + 2], x, leaves, last, layers is not None)
            elif isinstance(step, Linear):
                layer = linear = LinearAt(step, x, leaves[step.weight])
                x = linear.value(None if step.bias is None else leaves[step.bias])
            elif isinstance(step, Pointwise):
                x = pointwise(step.name, x)
                layer = PointwiseAt(step.name, x)
            elif x.shape[1:] != self.shapes[n + 1]:
                # The inputs themselves have no tangent, and blocks give their outputs flat already.
                layer = FlattenAt(x.shape[1:]) if layers else None
                x = x.reshape(len(x), *self.shapes[n + 1])
            if layers is not None and layer is not None:
                layers.append(layer)
        return x.expand(trials, *x.shape[1:])


def same_kind(name: str, given: Tensor, known: Tensor) -> None:
    """Raise ValueError for another dtype or device: compiled code would read the wrong memory."""
    if (given.dtype, given.device) != (known.dtype, known.device):
        raise ValueError(
            f"{name}: must be {known.dtype} on {known.device}, got {given.dtype} on {given.device}"
        )


def _fused(recording: Recording) -> Chain | None:
    """Join each convolution with its pooling; None if one has none, or if other layers come before it."""
    left, shapes = list(recording.operations), list(recording.shapes)
    steps: list[Step] = []
    kept: list[torch.Size] = []
    while left and isinstance(convolution := left[0], Convolution):
        match left[1:3]:
            case [MaxPooling() as pooling, Pointwise("relu")] | [Pointwise("relu"), MaxPooling() as pooling]:
                taken = 3
            case [MaxPooling() as pooling, *_]:
                taken = 2
            case _:
                return None
        steps.append(Block(convolution, pooling, relu=taken == 3))
        kept.append(shapes[0])
        left, shapes = left[taken:], shapes[taken:]
    if steps and not (left and isinstance(left[0], Flatten)):
        return None
    for operation in left:
        if isinstance(operation, Convolution | MaxPooling):
            return None
        steps.append(operation)
    if not any(isinstance(step, Linear | Block) for step in steps):
        return None
    return Chain(tuple(steps), (*kept, *shapes))


class ExplicitLinearization:
    """h at one θ on one batch: the loss, the gradient, and the products J v, Jᵀ w and ∇²h v, layer by layer.

    Args:
        layout: where the parameters lie in a row.
        layers: the layers at θ and at their inputs.
        outputs: z, (K, N, …).
        targets: y, (N, …), or one batch a trial.
        own_batches: whether each trial has its own targets.
        loss: L.
        squared_gradients: () ↦ the mean over examples of squared gradients, (K, P).
        fisher: the pieces of the Fisher matrix.
        with_states: gives the linearization of outputs and hidden states.
    """

    def __init__(
        self,
        layout: Layout,
        layers: tuple[Layer, ...],
        outputs: Tensor,
        targets: Tensor,
        own_batches: bool,
        loss: OutputLoss,
        squared_gradients: Callable[[], Tensor],
        fisher: Callable[[Draw], FisherSample],
        with_states: WithStates,
    ):
        self.layout, self.layers, self.targets = layout, layers, targets
        self.own_batches, self.output_loss = own_batches, loss
        self._squared_gradients, self.fisher, self.with_states = squared_gradients, fisher, with_states
        self.outputs = outputs.requires_grad_()

    @cached_property
    def losses(self) -> Tensor:
        """h as a graph of the outputs alone, (K,)."""
        with torch.enable_grad():
            return self.output_loss.value(self.outputs, self.targets)

    @property
    def loss(self) -> Tensor:
        """h(θ), (K,)."""
        return self.losses.detach()

    @cached_property
    def gradient(self) -> Tensor:
        """∇h(θ), (K, P)."""
        return self._back[1]

    @property
    def gradient_count(self) -> int:
        """1 if ∇h is computed; else 0."""
        return int("_back" in self.__dict__)

    def operator(self, curvature: Callable[..., Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        """v ↦ B v for a curvature; (K, P) → (K, P)."""
        return curvature(self)

    @torch.no_grad()
    def jvp(self, vectors: Tensor) -> Tensor:
        """J v for each row, J = ∂z/∂θ; (K, P) → the shape of the outputs."""
        x: Tensor | None = None
        for layer, own in self._pieces(vectors):
            x = layer.tangent(x, own)
        assert x is not None
        return x

    @torch.no_grad()
    def vjp(self, cotangent: Tensor) -> Tensor:
        """Jᵀ w for each row; the shape of the outputs → (K, P)."""
        return self._transposed(cotangent)[1]

    def prepare_hvp(self) -> None:
        """Compute the cotangents of the gradient, which every product ∇²h v needs."""
        _ = self._back

    @torch.no_grad()
    def hvp(self, vectors: Tensor) -> Tensor:
        """∇²h(θ) v for each row; (K, P) → (K, P)."""
        cotangents = self._back[0]
        tangents: list[Tensor | None] = [None]
        pieces = list(self._pieces(vectors))
        for layer, own in pieces:
            tangents.append(layer.tangent(tangents[-1], own))
        output = tangents.pop()
        assert output is not None
        change: Tensor | None = self._loss_hessian(output)
        gathered = _Gathered(self.layout, vectors)
        for n in range(len(self.layers) - 1, -1, -1):
            layer, own = pieces[n]
            assert change is not None
            change, weights = layer.cotangent_tangent(cotangents[n], change, tangents[n], own, to_input=n > 0)
            gathered.add(layer.parameters, weights)
        return gathered.joined()

    def output_gradient(self) -> Tensor:
        """∂L/∂z at these outputs, in their shape."""
        ones = torch.ones_like(self.losses)
        (slope,) = torch.autograd.grad(self.losses, self.outputs, ones, retain_graph=True)
        return slope

    def loss_hessian(self) -> OutputOperator:
        """w ↦ H_L w = ∂²L/∂z² w at these outputs, block-diagonal over trials."""
        return self._loss_hessian

    @cached_property
    def _loss_hessian(self) -> OutputOperator:
        return self.output_loss.hessian(self.outputs, self.targets)

    def squared_gradients(self) -> Tensor:
        """(1/N) Σ_n ∇h_n ⊙ ∇h_n, the diagonal of the empirical Fisher matrix, (K, P)."""
        used = [n for layer in self.layers for n in layer.parameters]
        if len(set(used)) < len(used):  # a square of a sum, over the layers that share a parameter
            return self._squared_gradients()
        cotangents, like = self._back
        gathered = _Gathered(self.layout, like)
        with torch.no_grad():
            for layer, y in zip(self.layers, cotangents, strict=True):
                gathered.add(layer.parameters, layer.squares(y))
        # h is a mean: example n alone has N times the gradient that it adds to h.
        return self.outputs.shape[1] * gathered.joined()

    def select(self, trials: Tensor) -> ExplicitLinearization:
        """Return the linearization of some rows: copies of their numbers, without a new pass."""
        part = ExplicitLinearization(
            self.layout, tuple(layer.select(trials) for layer in self.layers), self.outputs.detach()[trials],
            self.targets[trials] if self.own_batches else self.targets, self.own_batches, self.output_loss,
            lambda: self._squared_gradients()[trials], self.fisher, self.with_states,
        )  # fmt: skip
        if "_back" in self.__dict__:
            cotangents, gradient = self._back
            part._back = [y[trials] for y in cotangents], gradient[trials]
        return part

    @property
    def has_outputs(self) -> bool:
        """True: a chain knows its outputs."""
        return True

    def beside_outputs(self) -> None:
        """Return None: h is a function of the outputs alone."""

    def check_outputs(self) -> Tensor:
        """Return z."""
        return self.outputs

    @cached_property
    def _back(self) -> tuple[list[Tensor], Tensor]:
        """The cotangents of the output of each layer for h, and ∇h."""
        with torch.no_grad():
            return self._transposed(self.output_gradient())

    def _transposed(self, cotangent: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the cotangent of each layer's output, and Jᵀ w."""
        same_kind("cotangent", cotangent, self.outputs)
        cotangents: list[Tensor] = []
        gathered = _Gathered(self.layout, cotangent)
        y: Tensor | None = cotangent
        for n in range(len(self.layers) - 1, -1, -1):
            assert y is not None
            cotangents.append(y)
            y, weights = self.layers[n].cotangent(y, to_input=n > 0)
            gathered.add(self.layers[n].parameters, weights)
        return cotangents[::-1], gathered.joined()

    def _pieces(self, vectors: Tensor) -> Iterator[tuple[Layer, list[Tensor]]]:
        same_kind("vectors", vectors, self.outputs)
        if vectors.shape != (expected := (len(self.outputs), self.layout.size)):
            raise ValueError(f"vectors: must have the shape {expected}, got {tuple(vectors.shape)}")
        pieces = self.layout.split(vectors)
        return ((layer, [pieces[n] for n in layer.parameters]) for layer in self.layers)


class _Gathered:
    """Cotangents of parameters as they come; a parameter of two layers gets their sum."""

    def __init__(self, layout: Layout, like: Tensor):
        self.layout, self.like = layout, like
        self.found: dict[int, Tensor] = {}

    def add(self, numbers: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Add the cotangents of some parameters."""
        for number, tensor in zip(numbers, tensors, strict=True):
            before = self.found.get(number)
            self.found[number] = tensor if before is None else before + tensor

    def joined(self) -> Tensor:
        """Return all of them as (K, P); a parameter without a layer has 0."""
        trials = len(self.like)
        parts = [
            self.found[n] if n in self.found else self.like.new_zeros(trials, *shape)
            for n, shape in enumerate(self.layout.shapes)
        ]
        return self.layout.join(parts, trials)
