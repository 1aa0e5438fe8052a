"""`loss.backward()` within a closure: it names the loss, and computes gradients of other tensors only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ahf_cli.optim.unsupported import nodes

ACCUMULATED = (
    "p.grad holds the gradient of an earlier backward(), which a step does not add: "
    "accumulate by a list of closures, or call zero_grad() in the closure"
)
CHANGED = (
    "the closure changes p.grad, or calls backward() for a part of its parameters, which has no effect here: "
    "put every term into the loss"
)


class Differentiated(TorchFunctionMode):
    """Within this context `backward` leaves the graph of the parameters to the products of the step.

    A call notes its tensor as a term of the loss if it reaches a parameter.  Later calls add to it, and
    `zero_grad` between them removes it, as both do for `p.grad`.  Other leaves, such as inputs, get their
    gradients at once.

    Args:
        parameters: the optimized parameters.
        exact: whether `p.grad` gets the gradient within the closure; else a tensor of ones stands for it.
    """

    def __init__(self, parameters: Sequence[Tensor], exact: bool):
        super().__init__()
        self.parameters, self.exact = parameters, exact
        self.losses: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Take `backward`; leave everything else as it is."""
        kwargs = kwargs or {}
        if func is not Tensor.backward:
            return func(*args, **kwargs)
        names = ("gradient", "retain_graph", "create_graph", "inputs")
        with torch._C.DisableTorchFunction():
            self._note(args[0], **dict(zip(names, args[1:], strict=False)) | kwargs)
        return None

    def _note(
        self,
        loss: Tensor,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        if gradient is None and loss.numel() != 1:
            raise RuntimeError(f"backward() needs a scalar or its argument gradient, got {tuple(loss.shape)}")
        if self.losses and not any(p.grad is not None and bool(p.grad.any()) for p in self.parameters):
            self.losses.clear()  # zero_grad() since the last call
        known = {id(p) for p in self.parameters}
        leaves = _leaves(loss) if inputs is None else [inputs] if isinstance(inputs, Tensor) else list(inputs)
        own = [leaf for leaf in leaves if id(leaf) in known]
        others = [leaf for leaf in leaves if id(leaf) not in known]
        if own:
            term = loss.sum() if gradient is None else (loss * gradient).sum()
            self.losses.append(term)
            found: Sequence[Tensor | None] = [torch.ones_like(leaf) for leaf in own]
            if self.exact:
                found = torch.autograd.grad(term, own, retain_graph=True, allow_unused=True)
            for leaf, g in zip(own, found, strict=True):
                if g is not None:
                    leaf.grad = g.detach() if leaf.grad is None else leaf.grad + g.detach()
        if others:
            torch.autograd.backward(
                loss, gradient, retain_graph=True, create_graph=create_graph, inputs=others
            )

    @property
    def loss(self) -> Tensor | None:
        """The sum of the terms; None without a call."""
        return torch.stack([term.reshape(()) for term in self.losses]).sum() if self.losses else None

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Let the body write into `p.grad`, and put the earlier gradients back.

        Raises RuntimeError if the body adds to gradients of the caller.
        """
        before = [p.grad for p in self.parameters]
        foreign = [g is not None and not hasattr(g, "of_a_step") and bool(g.any()) for g in before]
        for p, keep in zip(self.parameters, foreign, strict=True):
            if not keep:
                p.grad = None
        try:
            yield
            left = [p.grad is not None and bool(p.grad.any()) for p in self.parameters]
            if self.losses and any(a and b for a, b in zip(foreign, left, strict=True)):
                raise RuntimeError(ACCUMULATED)
            self.found = [p.grad for p in self.parameters]
        finally:
            for p, g in zip(self.parameters, before, strict=True):
                p.grad = g

    def check(self, loss: Tensor) -> None:
        """Raise RuntimeError if the closure left other gradients in `p.grad` than those of its loss."""
        if not self.losses or not bool(torch.isfinite(loss)):
            return
        slopes = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        wrong, size = 0.0, 0.0
        for found, slope in zip(self.found, slopes, strict=True):
            if slope is not None:
                size += float(slope.double().square().sum())
            if found is not None or slope is not None:
                away = _or_zero(found, slope) - _or_zero(slope, found)
                wrong += float(away.double().square().sum())
        if not wrong <= 1e-6 * size:
            raise RuntimeError(CHANGED)


def own_gradient(gradient: Tensor) -> Tensor:
    """Mark a gradient that a step left behind, and return it."""
    gradient.of_a_step = True  # type: ignore[attr-defined]
    return gradient


def _leaves(loss: Tensor) -> list[Tensor]:
    """Return the leaves of a graph."""
    return [leaf for node in nodes(loss) if (leaf := getattr(node, "variable", None)) is not None]


def _or_zero(a: Tensor | None, like: Tensor | None) -> Tensor:
    if a is not None:
        return a
    assert like is not None
    return torch.zeros_like(like)
