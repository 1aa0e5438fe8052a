"""h of one step as the mean over closures, the parts of a batch, and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ahf_cli.optim.calls import Ambient, ranks
from ahf_cli.optim.closure import Closure, ClosureObjective
from ahf_cli.optim.distributed import DistributedEvaluation, average
from ahf_cli.optim.layer_statistics import NO_LAYERS, Draw, FisherSample
from ahf_cli.optim.linearization import Evaluation, GraphLinearization, Linearization
from ahf_cli.optim.operators import Operator
from ahf_cli.optim.rows import Layout


class ClosureBatch:
    """h = the mean of the losses of closures, an `Objective` of K = 1 rows.

    Args:
        closures: the parts of the batch, one or more; of several, one graph is in memory at a time.
        parameters: the leaves, in the order of the layout.
        layout: where each parameter lies in θ.
        needs_outputs: whether Gauss-Newton products follow.
        check: whether to search for faults of the closures.
        ambient: autocast of the caller.
        process_group: ranks to average over, None or False; see `HessianFree`.
    """

    def __init__(
        self,
        closures: Sequence[Closure],
        parameters: list[Tensor],
        layout: Layout,
        needs_outputs: bool,
        check: bool,
        ambient: Ambient,
        process_group: Any = None,
    ):
        self.layout, self.ambient, self.process_group = layout, ambient, process_group
        self.parts = [
            ClosureObjective(closure, parameters, layout, needs_outputs, check, ambient)
            for closure in closures
        ]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Surround the core's work on this batch."""
        try:
            with self.ambient.suspended():
                yield
        finally:
            for part in self.parts:
                part.replay.end()

    def assign(self, parameters: Tensor) -> None:
        """Write θ, (1, P), into the parameters."""
        self.parts[0].assign(parameters)

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ); (1, P) → (1,)."""
        return torch.stack([part.value(parameters) for part in self.parts]).mean(dim=0)

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ."""
        if len(self.parts) == 1:
            return self.parts[0].evaluate(parameters)
        return PartsEvaluation(self.parts, parameters)


class PartsEvaluation:
    """An evaluation of the mean of several objectives; each product evaluates them one after the other."""

    def __init__(self, parts: Sequence[ClosureObjective], parameters: Tensor):
        self._parts, self._parameters = parts, parameters
        self.layout = parts[0].layout
        losses, gradients = [], []
        for part in parts:
            here = part.evaluate(parameters)
            losses.append(here.loss)
            gradients.append(here.gradient)
            part.check = False
        self.loss = torch.stack(losses).mean(dim=0)
        self.gradient = torch.stack(gradients).mean(dim=0)

    gradient_count = 1

    def operator(self, curvature: Callable[[Linearization], Operator]) -> Operator:
        """v ↦ B v, the mean over the parts."""

        def product(vectors: Tensor) -> Tensor:
            total = torch.zeros_like(vectors)
            for part in self._parts:
                here: GraphLinearization = part.evaluate(self._parameters)
                total += curvature(here)(vectors)
            return total / len(self._parts)

        return product

    def squared_gradients(self) -> Tensor:
        """Raise ValueError: a closure gives no gradients of single examples."""
        raise ValueError("preconditioner: martens needs the gradients of single examples")

    def fisher(self, draw: Draw) -> FisherSample:
        """Raise ValueError: a closure gives no layers."""
        raise ValueError(NO_LAYERS)

    def select(self, trials: Tensor) -> None:
        """Return None: there is one row."""


class ParallelClosures(ClosureBatch):
    """A batch whose numbers are means over ranks, if there are several."""

    @property
    def _group(self) -> dist.ProcessGroup | None:
        """The ranks to average over; None for this one alone."""
        if ranks() == 1:
            return None
        if self.process_group not in (None, True):
            found: dist.ProcessGroup = self.process_group
            return found
        module = self.parts[0].replay.data_parallel
        if module is not None:
            own: dist.ProcessGroup = module.process_group
            return own
        if self.process_group is True:
            return dist.group.WORLD
        raise ValueError(
            f"process_group: this is one of {ranks()} ranks, and the closure runs no "
            "DistributedDataParallel module; give True for the mean over all ranks, a group, or False to "
            "train this rank alone"
        )

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ), the mean over ranks."""
        own = super().value(parameters)
        group = self._group
        return own if group is None else average(own, group)

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Prepare h and its derivatives at θ, as means over ranks."""
        own = super().evaluate(parameters)
        group = self._group
        return own if group is None else DistributedEvaluation(own, group)
