"""Inputs and output cotangents of linear layers and convolutions, for factors of the Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ahf_cli.optim.fast_operations import faster_operations
from ahf_cli.optim.losses import Likelihood
from ahf_cli.optim.rows import Layout

Cotangents = Callable[[Tensor], Tensor]
"""outputs z, (K, N, C) ↦ vectors s, (S, K, N, C), whose Σ_s s sᵀ is the curvature of each example's loss."""
EXAMPLES = 128
"""Number of examples whose gradients are in memory at once."""
NO_LAYERS = "kfac and ekfac need the layers of a model, and a closure gives none"
LEAST = 32
"""Examples that a part of a batch has at least."""


@dataclass(frozen=True)
class Draw:
    """The labels and examples that statistics take."""

    step: int
    """gives the labels: they are a pure function of the step, so that a run can be resumed"""
    exact: bool = False
    """whether all of the curvature of the loss counts in place of drawn labels"""
    part: int = 1
    """the first N/part examples of a batch count, and at least `LEAST`"""

    def taken(self, examples: int) -> int:
        """Return the number of examples."""
        return min(examples, max(LEAST, examples // self.part))

    def vectors(self, loss: Likelihood, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return vectors s, (S, K, N, C), with Σ_s s sᵀ = H of the loss of each example, or in the mean."""
        if self.exact:
            return loss.roots(outputs, targets)
        return loss.drawn(outputs, targets, torch.Generator().manual_seed(self.step))


@dataclass(frozen=True)
class LayerStatistics:
    """A layer y = W a + b at all examples n and positions t, where a convolution's a is a patch."""

    weight: int
    """number of W in the layout"""
    bias: int | None
    inputs: Tensor  # a with a last entry 1 for b, 0 where b does not enter, (K, N, T, in)
    cotangents: Tensor  # ∂(sᵀz)/∂y for each s, (S, K, N, T, out)

    def after(self, other: LayerStatistics | None) -> LayerStatistics:
        """Return one layer for two calls of it: their positions are joined."""
        if other is None:
            return self
        pairs = ((other.inputs, self.inputs), (other.cotangents, self.cotangents))
        inputs, cotangents = (torch.cat(pair, dim=-2) for pair in pairs)
        return LayerStatistics(self.weight, self.bias, inputs, cotangents)


@dataclass(frozen=True)
class FisherSample:
    """The pieces of F = (1/N) Σ_n Σ_s J_nᵀ s sᵀ J_n on one batch."""

    layers: tuple[LayerStatistics, ...]
    rest: Tensor | None
    """diagonal of F for the parameters of other layers, else 0, (K, P); None without other layers"""
    shift: Tensor | float = 0.0
    """curvature w of a penalty beside F, (K,)"""
    mean: Callable[[Tensor], Tensor] = lambda value: value
    """mean over the ranks that share a batch"""


class SharedLayers(nn.Module):
    """A model whose linear layers serve T vectors of each example; b enters the first of them alone."""

    def forward(self, inputs: Tensor, stacked: bool = False) -> Tensor:
        """Return z; `stacked` calls each layer once, on (N, T, in), so that the vectors are positions."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in the forward pass."""

    module: nn.Linear | nn.Conv2d
    name: str
    shape: torch.Size  # of its output, (N, …)
    first_only: bool = False  # whether b enters at the first position alone


def sample(
    model: nn.Module, layout: Layout, tensors: Sequence[Tensor], inputs: Tensor, cotangents: Cotangents,
    vectorized: bool,
) -> FisherSample:  # fmt: skip
    """Return the statistics of a batch.

    Args:
        model: the network; `layout` gives its parameters.
        layout: where the parameters lie in a row.
        tensors: θ as tensors (K, *shape).
        inputs: x, (K or 1, N, …).
        cotangents: draws the vectors s.
        vectorized: let K trials run as one batched computation.

    Raises:
        ValueError: the model has no layer with Kronecker factors.
    """
    trials = len(tensors[0])
    x = inputs.expand(trials, *inputs.shape[1:])
    calls = _calls(model, layout, [t[0] for t in tensors], x[0])
    if not calls:
        kind = type(model).__name__
        raise ValueError(f"kfac and ekfac need a model with linear layers or convolutions, got {kind}")
    zeros = [tensors[0].new_zeros(trials, *call.shape, requires_grad=True) for call in calls]

    def run(own: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        return _recorded(model, layout, calls, own, values)

    with torch.enable_grad(), faster_operations(x.device):
        frozen = [t.detach() for t in tensors]
        if vectorized and trials > 1:
            z, *seen = vmap(run)(x, *frozen, *zeros)
        else:
            found = [run(*row) for row in zip(x, *frozen, *zeros, strict=True)]
            z, *seen = (torch.stack(column) for column in zip(*found, strict=True))
        drawn = cotangents(z.detach())
        slopes = [torch.autograd.grad(z, zeros, s, retain_graph=True) for s in drawn]
    layers: dict[int, LayerStatistics] = {}
    for n, (call, a) in enumerate(zip(calls, seen, strict=True)):
        layer = _statistics(layout, call, a.detach(), torch.stack([g[n] for g in slopes]))
        layers[layer.weight] = layer.after(layers.get(layer.weight))
    covered = {n for layer in layers.values() for n in (layer.weight, layer.bias)}
    others = [n for n in range(len(layout.names)) if n not in covered]
    return FisherSample(
        tuple(layers.values()), _diagonal(model, layout, others, frozen, x, drawn) if others else None
    )


def _layer(module: nn.Module) -> bool:
    """Return whether the module is a layer with Kronecker factors."""
    if type(module) is nn.Linear:
        return True
    plain = type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
    return plain and not isinstance(module.padding, str)


_CALLS: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], list[LayerCall]]] = WeakKeyDictionary()
"""The calls of each model by the shape of its inputs, so that the shapes are found once."""


def _calls(model: nn.Module, layout: Layout, tensors: Sequence[Tensor], x: Tensor) -> list[LayerCall]:
    """Return the calls of layers whose weight belongs to one layer alone, by a forward pass at one θ."""
    known = _CALLS.setdefault(model, {})
    if (key := tuple(x.shape)) in known:
        return known[key]
    named = ((f"{name}." if name else "", module) for name, module in model.named_modules())
    layers = {name: module for name, module in named if _layer(module)}
    own = [module.weight for module in layers.values()]
    layers = {
        name: module
        for name, module in layers.items()
        if f"{name}weight" in layout.names and sum(module.weight is w for w in own) == 1
    }
    found: list[LayerCall] = []

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        shared = isinstance(model, SharedLayers)
        return lambda module, args, output: found.append(LayerCall(module, name, output.shape, shared))  # type: ignore[arg-type]

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            functional_call(model, dict(zip(layout.names, tensors, strict=True)), (x,), _stacked(model))
    finally:
        for handle in handles:
            handle.remove()
    known[key] = found
    return found


def _recorded(
    model: nn.Module, layout: Layout, calls: Sequence[LayerCall], x: Tensor, values: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return z and the inputs of the calls; the last values are added to the outputs of the calls."""
    count = len(layout.names)
    added, seen = iter(values[count:]), []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(args[0])
        return output + next(added)

    handles = [module.register_forward_hook(hook) for module in dict.fromkeys(c.module for c in calls)]
    try:
        named = dict(zip(layout.names, values[:count], strict=True))
        z: Tensor = functional_call(model, named, (x,), _stacked(model))
    finally:
        for handle in handles:
            handle.remove()
    return z, *seen


def _stacked(model: nn.Module) -> dict[str, bool]:
    """Return the arguments of a forward pass whose calls of layers have hooks."""
    return {"stacked": True} if isinstance(model, SharedLayers) else {}


def _statistics(layout: Layout, call: LayerCall, a: Tensor, g: Tensor) -> LayerStatistics:
    """Return inputs and cotangents with one axis of positions; a (K, N, …), g (S, K, N, …)."""
    module, trials, examples = call.module, *a.shape[:2]
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        patches = F.unfold(
            a.flatten(0, 1), module.kernel_size, module.dilation, module.padding, module.stride
        )  # (K·N, in·k², T)
        a = patches.mT.reshape(trials, examples, -1, patches.shape[1])
        g = g.flatten(4).mT
    else:
        a = a.reshape(trials, examples, -1, a.shape[-1])
        g = g.reshape(*g.shape[:3], -1, g.shape[-1])
    bias = None
    if module.bias is not None:
        bias = layout.names.index(f"{call.name}bias")
        one = torch.ones_like(a[..., :1])
        if call.first_only:
            one[..., 1:, :] = 0
        a = torch.cat([a, one], dim=-1)
    return LayerStatistics(layout.names.index(f"{call.name}weight"), bias, a, g)


def _diagonal(
    model: nn.Module, layout: Layout, others: Sequence[int], tensors: Sequence[Tensor], x: Tensor,
    drawn: Tensor,
) -> Tensor:  # fmt: skip
    """Return (1/N) Σ_n Σ_s (J_nᵀ s)² for some parameters and 0 for all else, (K, P)."""
    found = []
    for k in range(len(x)):
        fixed = {name: t[k] for name, t in zip(layout.names, tensors, strict=True)}

        def along(
            own: tuple[Tensor, ...], one: Tensor, s: Tensor, fixed: dict[str, Tensor] = fixed
        ) -> Tensor:
            named = {**fixed, **dict(zip((layout.names[n] for n in others), own, strict=True))}
            z: Tensor = functional_call(model, named, (one[None],))[0]
            return (z * s).sum()

        each = vmap(grad(along), in_dims=(None, 0, 0), chunk_size=EXAMPLES)
        own = tuple(tensors[n][k] for n in others)
        squares = [[g.square().mean(dim=0) for g in each(own, x[k], s[k])] for s in drawn]
        sums = {n: sum(column[1:], column[0]) for n, *column in zip(others, *squares, strict=True)}
        pieces = [sums.get(n, tensors[n].new_zeros(shape)) for n, shape in enumerate(layout.shapes)]
        found.append(layout.join(pieces)[0])
    return torch.stack(found)
