"""Data-parallel objectives: each rank (process) has a part of a batch, and h is the mean over ranks.

Losses, gradients and curvature products are averaged: only they depend on the data.  Each rank computes all
other quantities, such as the iterates of CG, from the same numbers, so that they agree.  With parts of equal
size the ranks act as one process with the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch.distributed as dist
from torch import Tensor

from ahf_cli.errors import AhfError
from ahf_cli.optim.layer_statistics import Draw, FisherSample
from ahf_cli.optim.linearization import Evaluation, Linearization
from ahf_cli.optim.objective import Objective
from ahf_cli.optim.operators import Operator
from ahf_cli.optim.rows import Layout


def average(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Return the mean over the ranks of a group, bitwise equal in each; one all-reduce of the tensor's size.

    Raises:
        AhfError: the connection to another rank is lost.
    """
    total = values.detach().clone()  # all_reduce writes into its argument, which belongs to the caller
    try:
        dist.all_reduce(total, group=group)
    except RuntimeError as error:
        raise lost(error) from None
    return total / dist.get_world_size(group)


def lost(error: Exception) -> AhfError:
    """Return the error for a lost connection to another rank."""
    return AhfError(
        f"rank {dist.get_rank()} of {dist.get_world_size()} has lost another rank "
        f"({str(error).splitlines()[0]}); the same command continues from the last checkpoint"
    )


class DistributedEvaluation:
    """An evaluation on the part of one rank; its numbers are means over ranks."""

    def __init__(self, inner: Evaluation, group: dist.ProcessGroup | None = None):
        self.inner, self.layout, self.group = inner, inner.layout, group

    @cached_property
    def loss(self) -> Tensor:
        """h, (K,)."""
        return average(self.inner.loss, self.group)

    @cached_property
    def gradient(self) -> Tensor:
        """∇h, (K, P)."""
        return average(self.inner.gradient, self.group)

    @property
    def gradient_count(self) -> int:
        """Number of gradients computed so far."""
        return self.inner.gradient_count

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ B v for any B, the mean over ranks; one all-reduce of K · P numbers a product."""
        own = self.inner.operator(curvature)
        return lambda v: average(own(v), self.group)

    def squared_gradients(self) -> Tensor:
        """The diagonal of the empirical Fisher matrix, (K, P)."""
        return average(self.inner.squared_gradients(), self.group)

    def fisher(self, draw: Draw) -> FisherSample:
        """Return the pieces of this rank's part; their factors are averaged over ranks."""
        own = self.inner.fisher(draw)
        return replace(own, mean=lambda value: average(own.mean(value), self.group))

    def select(self, trials: Tensor) -> DistributedEvaluation | None:
        """Return the evaluation of some rows, or None; the rows are the same on all ranks."""
        inner = self.inner.select(trials)
        return None if inner is None else DistributedEvaluation(inner, self.group)


@dataclass(frozen=True)
class DistributedObjective:
    """h on a batch that is divided into equal parts, one for each rank."""

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
