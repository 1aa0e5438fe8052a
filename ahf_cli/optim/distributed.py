"""Data-parallel objectives: each rank has a part of a batch, and h is the mean over ranks.

Losses, gradients and curvature products are averaged, since they alone depend on the data.  Each rank
computes all other quantities, CG above all, from the same numbers, so they agree.  With parts of equal size
the ranks act as one process with the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch.distributed as dist
from torch import Tensor

from ahf_cli.errors import AhfError
from ahf_cli.optim.linearization import Evaluation, Linearization
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.operators import Operator
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


class DistributedEvaluation:
    """An evaluation on a rank's part, whose numbers are means over ranks."""

    def __init__(self, inner: Evaluation):
        self.inner, self.layout = inner, inner.layout

    @cached_property
    def loss(self) -> Tensor:
        """h, (K,)."""
        return average(self.inner.loss)

    @cached_property
    def gradient(self) -> Tensor:
        """∇h, (K, P)."""
        return average(self.inner.gradient)

    @property
    def gradient_count(self) -> int:
        """Gradients that were computed so far."""
        return self.inner.gradient_count

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ B v, the mean over ranks, whatever B is; one all-reduce of K · P numbers a product."""
        own = self.inner.operator(curvature)
        return lambda v: average(own(v))

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

    def evaluate(self, parameters: Tensor) -> DistributedEvaluation:
        """Prepare h and its derivatives at θ; (K, P)."""
        return DistributedEvaluation(self.inner.evaluate(parameters))
