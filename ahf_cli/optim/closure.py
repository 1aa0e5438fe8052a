"""h(θ) of a closure: the loss of any model at given values of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ahf_cli.optim.backward import Differentiated
from ahf_cli.optim.calls import Ambient, Replay, backward_surroundings, surroundings
from ahf_cli.optim.linearization import GraphLinearization
from ahf_cli.optim.losses import autograd_hessian, no_gradient_through
from ahf_cli.optim.operators import Operator
from ahf_cli.optim.rows import Layout
from ahf_cli.optim.unsupported import cut_graph, explained

Closure = Callable[[], Any]
"""() ↦ the loss, or (loss, outputs), at the present values of the parameters."""

FORM = "the closure must return the scalar loss, or (loss, outputs)"
FREED = (
    "the closure freed the graph of its loss: call loss.backward(), which is intercepted, or no backward at "
    "all; torch.autograd.backward is not supported"
)

OUTSIDE = (
    "a tensor of the graph changed after its use: compute the loss within the closure, from the present "
    "parameters"
)


class Call(NamedTuple):
    """The result of a closure."""

    loss: Tensor
    outputs: tuple[Tensor, ...]


class ClosureObjective:
    """h(θ), an `Objective` of K = 1 rows: it writes θ into the parameters and calls the closure.

    All calls of one step are one function of θ: by `Replay` they draw the same noise and read the same
    buffers.  All build graphs, because a closure may differentiate within (Sobolev losses, equations).

    Args:
        closure: returns the loss, or (loss, outputs); outputs are a tensor, or tensors in lists,
            dictionaries or tuples.  `backward()` and `zero_grad()` within do nothing but name the loss.
        parameters: the leaves, in the order of the layout.
        layout: where each parameter lies in θ.
        needs_outputs: whether Gauss-Newton products follow.
        check: whether to search for faults of the closure, which costs a gradient and two losses.
        ambient: autocast of the caller; default: the present setting.

    Raises:
        TypeError: by `value` and `evaluate`, if the closure returns something else.
        ValueError: by `evaluate`, if outputs are needed and absent or without their graph.
        RuntimeError: by `evaluate`, if the loss has no graph or a sparse gradient.  If it is computed outside
            the closure, ignores the parameters, or is not the same in two calls.
    """

    def __init__(
        self,
        closure: Closure,
        parameters: list[Tensor],
        layout: Layout,
        needs_outputs: bool,
        check: bool,
        ambient: Ambient | None = None,
    ):
        self.closure, self.parameters, self.layout = closure, parameters, layout
        self.needs_outputs, self.check = needs_outputs, check
        device = parameters[0].device
        self.replay = Replay(device)
        self._ambient = ambient or Ambient.of(device)
        self._recomputes = False  # whether a backward pass may run parts again, as a checkpoint does

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) without a graph; (1, P) → (1,).  The parameters keep their values."""
        before = [p.data for p in self.parameters]
        try:
            # Exchanging the storage, unlike writing into it, leaves graphs at the present values usable.
            for p, value in zip(self.parameters, self.layout.split(parameters), strict=True):
                p.data = value[0]
            return self._call().loss.detach().reshape(1).to(parameters)
        finally:
            for p, data in zip(self.parameters, before, strict=True):
                p.data = data

    def evaluate(self, parameters: Tensor) -> GraphLinearization:
        """Prepare h and its derivatives at the present values of the parameters, which θ must equal."""
        with torch.enable_grad():
            loss, outputs = self._call()
            self._check_loss(loss)
            around = self._around if self._recomputes else nullcontext
            if outputs or self.needs_outputs:
                outputs = _with_graph(outputs, self.needs_outputs)
            if self.check:
                with around():
                    self._check_repetition(loss, parameters)
            losses = loss.reshape(1).to(parameters)
            return GraphLinearization(
                self.layout,
                self.parameters,
                losses,
                outputs,
                lambda: autograd_hessian(losses, outputs),
                beside=lambda: self._beside(losses, outputs),
                around=around,
            )

    @torch.no_grad()
    def assign(self, parameters: Tensor) -> None:
        """Write θ, (1, P), into the parameters."""
        for p, value in zip(self.parameters, self.layout.split(parameters), strict=True):
            p.copy_(value[0])

    def _call(self) -> Call:
        noted = Differentiated(self.parameters, exact=self.check)
        device = self.parameters[0].device
        with torch.enable_grad(), surroundings(self.replay, self._ambient, device, noted) as operations:
            result = self.closure()
        self._recomputes = operations.hooked
        call = _split(result, noted.loss)
        if self.check:
            noted.check(call.loss)
        return call

    def _around(self) -> AbstractContextManager[None]:
        return backward_surroundings(self.replay, self.parameters[0].device)

    def _check_loss(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise RuntimeError(
                "the loss depends on no optimized parameter: return it with its graph, "
                "not detached or from no_grad"
            )
        if self.check and (line := cut_graph(loss)) is not None:
            raise RuntimeError(line)

    def _check_repetition(self, loss: Tensor, parameters: Tensor) -> None:
        """Search for a loss without parameters, and for calls that differ."""
        gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        named = list(zip(self.layout.names, gradients, strict=True))
        if all(g is None for _, g in named):
            raise RuntimeError("the loss depends on no optimized parameter")
        if sparse := [name for name, g in named if g is not None and g.layout != torch.strided]:
            raise RuntimeError(
                f"the gradient of {', '.join(sparse)} is sparse and has no second derivative: "
                "make the embedding with sparse=False"
            )
        again = self._call().loss
        if again is loss:
            raise RuntimeError(
                "the closure returned the same tensor twice: compute the loss within the closure"
            )
        if not bool(torch.isfinite(loss)):
            return
        digits = 1e-3 if loss.dtype != torch.float64 else 1e-9
        first, second = float(loss.detach()), float(again.detach())
        if abs(first - second) > digits * abs(first):
            raise RuntimeError(
                f"the closure gave the losses {first:.6g} and {second:.6g} at the same parameters: "
                "all calls of a step need the same batch and noise"
            )
        g = self.layout.join(
            [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
        ).to(parameters)
        length = float(g.norm())
        if 0 < length < float("inf"):
            far = max(0.1 * abs(first) / length, 0.1 * float(parameters.norm())) or 1.0
            # Three lengths: a loss with flat parts may be equal at one of them.
            moved = (float(self.value(parameters - n * far / length * g)) for n in (1, 10, 100))
            if all(second == first for second in moved):
                raise RuntimeError(
                    "the loss did not change along its gradient: compute the model within the closure"
                )

    def _beside(self, losses: Tensor, outputs: Sequence[Tensor]) -> Operator | None:
        """Return v ↦ ∇²R v for the part R of h that does not pass through the outputs; None without one."""
        reached = leaves_beside(losses, outputs, self.parameters)
        if not reached:
            return None
        leaves = [self.parameters[n] for n in reached]
        with no_gradient_through(outputs):
            slopes = torch.autograd.grad(
                losses.sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
            )
        curved = [(n, leaf, s) for n, leaf, s in zip(reached, leaves, slopes, strict=True) if s.requires_grad]
        if not curved:
            return None

        def product(vectors: Tensor) -> Tensor:
            pieces = self.layout.split(vectors)
            with no_gradient_through(outputs):  # else a product of both parts has no symmetric B
                images = torch.autograd.grad(
                    [s for *_, s in curved], [leaf for _, leaf, _ in curved],
                    [pieces[n].reshape(leaf.shape) for n, leaf, _ in curved],
                    retain_graph=True, materialize_grads=True,
                )  # fmt: skip
            full = [torch.zeros_like(piece) for piece in pieces]
            for (n, *_), image in zip(curved, images, strict=True):
                full[n] = image
            return self.layout.join(full)

        return product


def leaves_beside(losses: Tensor, outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[int]:
    """Return the numbers of the parameters that the loss reaches without passing through an output."""
    known = {id(p): n for n, p in enumerate(parameters)}
    stop = {(z.grad_fn, z.output_nr) for z in outputs}
    left, seen, found = [(losses.grad_fn, 0)], set(), set()
    while left:
        edge = left.pop()
        node = edge[0]
        if node is None or edge in stop or node in seen:
            continue
        # A node with several outputs counts as seen by all, except by an edge of an output.
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in known:
            found.add(known[id(variable)])
        left += node.next_functions
    return sorted(found)


@contextmanager
def graphs_in_use() -> Iterator[None]:
    """Turn PyTorch's message on a freed graph into a clear one."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        freed = "backward through the graph a second time" in text
        line = FREED if freed else OUTSIDE if "modified by an inplace operation" in text else explained(error)
        if line is None:
            raise
        raise RuntimeError(line) from error


def _split(result: Any, differentiated: Tensor | None) -> Call:
    """Split the result of a closure into loss and outputs; raises TypeError for another form."""
    loss, outputs = result, None
    if isinstance(result, tuple | list):
        if len(result) != 2:
            raise TypeError(f"{FORM}, got {len(result)} items")
        loss, outputs = result
    if differentiated is not None:
        loss = differentiated  # the closure called backward(), and may return a number or a detached tensor
    if not isinstance(loss, Tensor):
        raise TypeError(f"{FORM}, got {type(loss).__name__} for the loss")
    if loss.numel() != 1:
        raise TypeError(f"{FORM}, got a loss of shape {tuple(loss.shape)}")
    if not loss.is_floating_point():
        raise TypeError(f"{FORM}, got a loss of {loss.dtype}")
    if outputs is None:
        return Call(loss, ())
    found = tree_leaves(outputs)
    if wrong := [type(z).__name__ for z in found if not isinstance(z, Tensor | None)]:
        raise TypeError(f"the outputs must be tensors, got {wrong[0]}")
    # Each tensor once, and without the loss, as in `return out.loss, out`.
    seen, own = {_identity(loss)}, []
    for z in found:
        if z is not None and _identity(z) not in seen:
            seen.add(_identity(z))
            own.append(z)
    return Call(loss, tuple(own))


def _identity(z: Tensor) -> tuple[object, int]:
    """Return a key that two names of one tensor share."""
    return (id(z), 0) if z.grad_fn is None else (z.grad_fn, z.output_nr)


def _with_graph(outputs: tuple[Tensor, ...], needed: bool) -> tuple[Tensor, ...]:
    """Return the outputs that depend on parameters; raises ValueError if none is there and one is needed."""
    if needed and not outputs:
        raise ValueError("curvature: ggn needs the outputs: return (loss, outputs) from the closure")
    curved = tuple(z for z in outputs if z.requires_grad)
    if not curved:
        raise ValueError(
            "the outputs have no graph: return them as the model made them, not detached or from no_grad"
        )
    return curved
