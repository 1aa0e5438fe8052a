"""A task: data on a device, a model, a loss, and the batches of a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahf_cli.errors import InputError
from ahf_cli.optim import Layout, ModelObjective, Objective
from ahf_cli.optim.distributed import DistributedObjective
from ahf_cli.optim.layers.chain import Chain
from ahf_cli.optim.losses import OutputLoss, SoftmaxCrossEntropy
from ahf_cli.tasks.catalogue import MODELS, found, make_loss, make_model
from ahf_cli.tasks.data import LabelledImages, Split, SplitName, load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.equations import FRESH, Equation, Residuals, drawn, find, residuals
from ahf_cli.tasks.initial import Initial, glorot_uniform

GRADIENT_STREAM, CURVATURE_STREAM = 1, 2
"""Numbers of the streams of permutations from the training seed; stream 0 draws the weights."""


@lru_cache(maxsize=8)
def permutation(seed: int, stream: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of an epoch's examples, which depends on the arguments alone."""
    return np.random.default_rng([seed, stream, epoch]).permutation(count)


def batch_indices(seed: int, stream: int, step: int, count: int, batch_size: int) -> NDArray[np.int64]:
    """Return the examples of a step, counted from 0; each epoch has a new order and whole batches only."""
    epoch, position = divmod(step, count // batch_size)
    order = permutation(seed, stream, epoch, count)
    return order[position * batch_size : (position + 1) * batch_size]


def mini_batches(step: int, steps: int, growth: int) -> tuple[int, int]:
    """Return the number of mini-batches before a step, and of those in it; see `AnyStructure.batch_growth`.

    Step t of T, counted from 0, has 1 + ⌊(g − 1) t/(T − 1)⌋ mini-batches.
    """
    more, last = growth - 1, max(1, steps - 1)
    # Each further mini-batch k is there from step ⌈k (T − 1)/(g − 1)⌉ on.
    before = step + sum(max(0, step + (-k * last) // more) for k in range(1, growth))
    return before, 1 + more * min(step, last) // last


def initial_length(task: Mapping[str, Any], seed: int) -> float | None:
    """Return ‖θ₀‖ for a training seed, scales of normalisation layers left out; None for unknown names.

    Args:
        task: section `task` of an identity, with `data` and `model`.
        seed: training seed; the length hardly depends on it.
    """
    data, model = DATA_SETS.get(str(task.get("data"))), str(task.get("model"))
    if data is None or model not in MODELS:
        return None
    layout = Layout.of(make_model(model, data.shape, data.outputs).named_parameters())
    return float(found(MODELS[model].initial)(layout, seed).norm())


@dataclass(frozen=True)
class Task:
    """A split of a data set, a model that gives function and layout, and a loss."""

    split: Split
    model: nn.Module
    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    part: tuple[int, int] = (0, 1)
    """rank of this process and number of ranks; each rank has one part of every batch"""
    loss: OutputLoss = field(default_factory=SoftmaxCrossEntropy)
    draw: Initial = glorot_uniform
    """draws the initial weights"""

    @classmethod
    def lenet(
        cls, folder: Path, split: SplitName, batch_size: int, device: str = "cpu",
        subset: int | None = None, dtype: torch.dtype = torch.float32,
    ) -> Task:  # fmt: skip
        """Return LeNet on the images in a folder."""
        return cls.lenet_on(load(folder, split, subset), batch_size, device, dtype)

    @classmethod
    def lenet_on(
        cls, data: Split, batch_size: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Task:
        """Return LeNet on loaded images; a CPU uses them without a copy."""
        return cls.on(data, "lenet", batch_size, device, dtype)

    @classmethod
    def on(
        cls, data: Split, model: str, batch_size: int, device: str = "cpu",
        dtype: torch.dtype = torch.float32, loss: str = "cross_entropy",
    ) -> Task:  # fmt: skip
        """Return the task of a model and a loss, both by name, on loaded data."""
        where = torch.device(device)
        on_device = Split(
            data.train.to(where),
            data.validation.to(where) if data.validation else None,
            data.test.to(where),
            data.outputs,
            data.metrics,
            data.equation,
        )
        shape = tuple(data.train.images.shape[1:])
        if data.equation is not None:
            shape = DATA_SETS[data.equation].shape  # without the number of the term
        try:
            made = make_model(model, shape, data.outputs)
            if data.equation is not None:
                made = residuals(made, data.equation)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"task.model: {model} cannot be made for inputs of shape {shape}: {error}"
            ) from None
        draw = found(MODELS[model].initial)
        return cls(
            on_device, made.to(where, dtype), batch_size, where, dtype, loss=make_loss(loss), draw=draw
        )

    @cached_property
    def layout(self) -> Layout:
        """Order and shapes of the model's parameters."""
        return Layout.of(self.model.named_parameters())

    def initial(self, seed: int) -> Tensor:
        """Draw the initial weights of a training seed; (P,)."""
        return self.draw(self.layout, seed, self._scales).to(self.device, self.dtype)

    @cached_property
    def _scales(self) -> frozenset[str]:
        """Names of the scales of normalisation layers, which start at 1."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
        modules = ((name, m) for name, m in self.model.named_modules() if isinstance(m, kinds))
        return frozenset(f"{name}.weight" for name, m in modules if m.weight is not None)

    def objective(self, seeds: Sequence[int], stream: int, first: int, batches: int = 1) -> Objective:
        """Return h on whole mini-batches over all ranks; see `batch`."""
        own = self.batch(seeds, stream, first, batches)
        return own if self.part[1] == 1 else DistributedObjective(own)

    def batch(self, seeds: Sequence[int], stream: int, first: int, batches: int = 1) -> ModelObjective:
        """Return h on this process's part of consecutive mini-batches of a stream, counted from 0.

        Each row has the batch of its own seed; rows with one seed share one batch.
        """
        own = len(set(seeds)) > 1
        count, (rank, world) = len(self.split.train), self.part
        steps = range(first, first + batches)
        if self._equation is not None and self._equation.fresh:
            return self._fresh(seeds if own else seeds[:1], stream, list(steps))
        whole = [
            np.concatenate([batch_indices(seed, stream, n, count, self.batch_size) for n in steps])
            for seed in (seeds if own else seeds[:1])
        ]
        indices = torch.from_numpy(np.stack(whole)[:, rank::world])
        chosen = (indices if own else indices[0]).to(self.device)
        images = self.pixels(self.split.train.images[chosen])
        targets = self.targets(self.split.train.labels[chosen])
        return ModelObjective(self.model, images, targets, self.loss, own_batches=own, chain=self._chain)

    @cached_property
    def _equation(self) -> Equation | None:
        return None if self.split.equation is None else find(self.split.equation)

    def _fresh(self, seeds: Sequence[int], stream: int, steps: Sequence[int]) -> ModelObjective:
        """Return h on new points of the equation, those of each seed, for this process's part."""
        assert self._equation is not None and self.split.equation is not None
        (rank, world), name = self.part, self.split.equation
        parts = [
            [drawn(name, self._equation, (FRESH, seed, stream, step)) for step in steps] for seed in seeds
        ]
        inputs = torch.stack([torch.cat([p.images for p in own])[rank::world] for own in parts])
        targets = torch.stack([torch.cat([p.labels for p in own])[rank::world] for own in parts])
        inputs, targets = (t.to(self.device, self.dtype) for t in (inputs, targets))
        if len(seeds) > 1:
            return ModelObjective(self.model, inputs, targets, self.loss, own_batches=True, chain=None)
        return ModelObjective(self.model, inputs[0], targets[0], self.loss, chain=None)

    def not_finite(self, weights: Iterable[Tensor], seed: int, first: int, batches: int) -> str:
        """Return the term of the equation that is first not finite at some weights (P,); "" for none."""
        if not isinstance(self.model, Residuals):
            return ""
        points = self.batch([seed], GRADIENT_STREAM, first, batches).inputs
        for row in weights:
            pieces = [piece[0] for piece in self.layout.split(row[None])]
            said = self.model.not_finite(points, dict(zip(self.layout.names, pieces, strict=True)))
            if said:
                return said
        return ""

    def targets(self, labels: Tensor) -> Tensor:
        """Return classes unchanged, and numbers like inputs."""
        return labels if labels.dtype == torch.int64 else self.pixels(labels)

    def pixels(self, images: Tensor) -> Tensor:
        """Return bytes divided by 255, and numbers unchanged, in the task's dtype; symbols stay integers."""
        if images.dtype == torch.int64:
            return images
        if images.is_floating_point():
            return images.to(self.dtype)
        return images.to(self.dtype, copy=True).div_(255)  # in place: no second array of this size

    def examples(self, images: LabelledImages, first: int, last: int) -> ModelObjective:
        """Return h on a range of a set."""
        inputs, labels = self.pixels(images.images[first:last]), self.targets(images.labels[first:last])
        return ModelObjective(self.model, inputs, labels, self.loss, chain=self._chain)

    def _chain(self, model: nn.Module, inputs: Tensor) -> Chain | None:
        """Return the explicit layers of the model, found once for each shape of a batch."""
        if inputs.shape not in self._chains:
            self._chains[inputs.shape] = Chain.of(model, inputs)
        return self._chains[inputs.shape]

    @cached_property
    def _chains(self) -> dict[torch.Size, Chain | None]:
        return {}
