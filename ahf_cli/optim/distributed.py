"""Data-parallel objectives: each rank has a part of a batch, and h is the mean over ranks.

What is averaged is all that a step needs of the data: losses, gradients and curvature products.  Everything
else, CG above all, is computed in each rank from the same numbers, and so is the same in all of them.  With
parts of equal size this is one process with the joined batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch.distributed as dist
from torch import Tensor

from ahf_cli.errors import AhfError
from ahf_cli.optim.objective import Evaluation, Objective
from ahf_cli.optim.rows import Layout


def average(values: Tensor) -> Tensor:
    """Return the mean over all ranks, the same bits in each; one all-reduce of the size of the tensor.

    Raises:
        AhfError: another rank is gone.
    """
    total = values.detach().clone()
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise lost(error) from None
    return total / dist.get_world_size()


def lost(error: Exception) -> AhfError:
    """Return the error that says that a rank is gone."""
    return AhfError(
        f"rank {dist.get_rank()} of {dist.get_world_size()} has lost another one "
        f"({str(error).splitlines()[0]}); the same command goes on from the last checkpoint"
    )


class DistributedEvaluation(Evaluation):
    """An evaluation on a rank's part, whose numbers are means over ranks."""

    def __init__(self, inner: Evaluation):
        super().__init__(inner.layout, inner.leaves, inner.losses, inner.outputs)
        self.inner = inner

    @cached_property
    def _loss(self) -> Tensor:
        return average(self.inner.loss)

    @property
    def loss(self) -> Tensor:
        """h, (K,)."""
        return self._loss

    @cached_property
    def differentiable_gradients(self) -> tuple[Tensor, ...]:
        """∇h of the rank's own part, with its graph."""
        return self.inner.differentiable_gradients

    @cached_property
    def gradient(self) -> Tensor:
        """∇h, (K, P)."""
        return average(self.inner.gradient)

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """∇²h v; one all-reduce of K · P numbers, as for each product."""
        return average(self.inner.hessian_product(vectors))

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """Jᵀ H_L J v."""
        return average(self.inner.gauss_newton_product(vectors))

    def fisher_product(self, vectors: Tensor) -> Tensor:
        """F v."""
        return average(self.inner.fisher_product(vectors))

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix, (K, P)."""
        return average(self.inner.squared_gradients())


@dataclass(frozen=True)
class DistributedObjective:
    """h on a batch of which this rank has one of as many equal parts as there are ranks."""

    inner: Objective

    @property
    def layout(self) -> Layout:
        """Where each parameter tensor lies in a row."""
        return self.inner.layout

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) for each row; (K, P) → (K,)."""
        return average(self.inner.value(parameters))

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ; (K, P)."""
        return DistributedEvaluation(self.inner.evaluate(parameters))
