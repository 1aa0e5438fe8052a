"""Losses of the outputs z, and their curvature H_L = ∂²L/∂z²."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

OutputOperator = Callable[[Tensor], Tensor]
"""w ↦ H_L w on tensors of the shape of the outputs."""


class OutputLoss(Protocol):
    """L(z, y), the mean over a batch of a loss of the outputs z and targets y, one number a trial."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, …), (N, …) → (K,)."""
        ...

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L = ∂²L/∂z² at these outputs, block-diagonal over trials."""
        ...


@runtime_checkable
class Likelihood(OutputLoss, Protocol):
    """A loss of a known distribution, whose curvature is an expectation over labels."""

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return vectors s, (S, K, N, C), with Σ_s s sᵀ = H of the loss of each example alone.

        Only the weights of examples among the targets may count.
        """
        ...

    def drawn(self, outputs: Tensor, targets: Tensor, source: torch.Generator) -> Tensor:
        """Return one random vector s, (1, K, N, C), with E s sᵀ = H; its noise is the same in all rows."""
        ...


class SoftmaxCrossEntropy:
    """L = −(1/N) Σ_n (1/T) Σ_t log softmax(z_nt)[y_nt], of logits z (K, N, …, C) and classes y (N, …).

    The axes between are T positions of an example; without them T = 1.
    """

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, …, C), (N, …) → (K,)."""
        log_p = torch.log_softmax(outputs, dim=-1)
        chosen = log_p.gather(-1, targets.expand(outputs.shape[:-1]).unsqueeze(-1))
        return -chosen.flatten(1).mean(dim=-1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L w = (p∘w − p (pᵀw)) / NT at each position, with p = softmax(z); it does not depend on y."""
        # The closed form is cheaper than a double backward through log-softmax.
        p = torch.softmax(outputs.detach(), dim=-1)
        scale = 1 / outputs.shape[1:-1].numel()

        def product(w: Tensor) -> Tensor:
            pw = p * w
            return (pw - p * pw.sum(dim=-1, keepdim=True)) * scale

        return product

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(p_c/T) (e_c − p) for each class c at one position, and 0 at others, (C·T, K, N, …, C)."""
        (trials, examples), classes = outputs.shape[:2], outputs.shape[-1]
        p = torch.softmax(outputs, dim=-1).reshape(trials, examples, -1, classes)
        units = torch.eye(classes, dtype=p.dtype, device=p.device)[:, None, None, None]
        each = (p.movedim(-1, 0) / p.shape[2]).sqrt().unsqueeze(-1) * (units - p)
        places = torch.eye(p.shape[2], dtype=p.dtype, device=p.device)[:, None, None, :, None]
        return (each.unsqueeze(1) * places).reshape(-1, *outputs.shape)

    def drawn(self, outputs: Tensor, targets: Tensor, source: torch.Generator) -> Tensor:
        """Return (p − e_y)/√T, with a class y drawn from p at each position, (1, K, N, …, C)."""
        p = torch.softmax(outputs, dim=-1)
        level = torch.rand(*p.shape[1:-1], 1, generator=source, dtype=torch.float64).to(p)
        # The last class also where rounding leaves the sum of p below the level.
        y = (p.cumsum(dim=-1) < level).sum(dim=-1, keepdim=True).clamp_max(p.shape[-1] - 1)
        # Independent draws have no mean product across positions: E s sᵀ is H of the mean over positions.
        each = (p - torch.zeros_like(p).scatter(-1, y, 1.0)) / math.sqrt(p.shape[2:-1].numel())
        return each.unsqueeze(0)


@runtime_checkable
class SumOfSquares(OutputLoss, Protocol):
    """A loss L = ½ ‖ρ‖² of residuals ρ that are linear in the outputs."""

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ρ of N examples; (K, N, …), (N, …) → (K, M) with M a multiple of N, grouped by example."""
        ...


class SquaredError:
    """L = (1/N) Σ_n ‖z_n − y_n‖², of outputs z (K, N, …) and targets y (N, …)."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, …), (N, …) → (K,)."""
        return (outputs - targets).square().flatten(2).sum(dim=-1).mean(dim=-1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L w = (2/N) w."""
        scale = 2 / outputs.shape[1]
        return lambda w: scale * w

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ρ = √(2/N) (z − y); (K, N, …), (N, …) → (K, M)."""
        return math.sqrt(2 / outputs.shape[1]) * (outputs - targets).flatten(1)

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √2 e_c for each output c, (C, K, N, …)."""
        entries = outputs[0, 0].numel()
        units = math.sqrt(2) * torch.eye(entries, dtype=outputs.dtype, device=outputs.device)
        return units.view(entries, 1, 1, *outputs.shape[2:]).expand(entries, *outputs.shape)

    def drawn(self, outputs: Tensor, targets: Tensor, source: torch.Generator) -> Tensor:
        """Return √2 times random signs, (1, K, N, …)."""
        signs = torch.randint(0, 2, outputs.shape[1:], generator=source).to(outputs) * 2 - 1
        return (math.sqrt(2) * signs).expand_as(outputs).unsqueeze(0)


class PixelCrossEntropy:
    """L = −(1/N) Σ_n Σ_i (y_ni log p_ni + (1 − y_ni) log(1 − p_ni)), p = σ(z), with y in [0, 1]."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, …), (N, …) → (K,)."""
        # log σ(z) and log σ(−z) are finite where p or 1 − p rounds to 0.
        each = targets * logsigmoid(outputs) + (1 - targets) * logsigmoid(-outputs)
        return -each.flatten(2).sum(dim=-1).mean(dim=-1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L w = p ∘ (1 − p) ∘ w / N; it does not depend on y."""
        z = outputs.detach()
        curvature = torch.sigmoid(z) * torch.sigmoid(-z) / z.shape[1]
        return lambda w: curvature * w

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √(p_c (1 − p_c)) e_c for each output c, (C, K, N, …)."""
        deviation = (torch.sigmoid(outputs) * torch.sigmoid(-outputs)).sqrt()
        entries = outputs[0, 0].numel()
        units = torch.eye(entries, dtype=outputs.dtype, device=outputs.device)
        return units.view(entries, 1, 1, *outputs.shape[2:]) * deviation

    def drawn(self, outputs: Tensor, targets: Tensor, source: torch.Generator) -> Tensor:
        """Return p − y, the gradient for independent y of 0 or 1 drawn from p, (1, K, N, …)."""
        p = torch.sigmoid(outputs)
        level = torch.rand(outputs.shape[1:], generator=source, dtype=torch.float64).to(p)
        return (p - (level < p).to(p)).unsqueeze(0)


class LeastSquares:
    """L = (1/N) Σ_n ½ w_n r_n², of residuals r and weights w.

    An output is (r, u), with the solution u beside its residual; a target begins with w.
    """

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """ρ = √(w/N) r; (K, N, 2), (N, …) → (K, N)."""
        return (targets[..., 0] / outputs.shape[1]).sqrt() * outputs[..., 0]

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, 2), (N, …) → (K,)."""
        return 0.5 * self.residuals(outputs, targets).square().sum(dim=-1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L (a, b) = (w a/N, 0)."""
        scale = targets[..., 0] / outputs.shape[1]

        def product(w: Tensor) -> Tensor:
            along = scale * w[..., 0]
            return torch.stack([along, torch.zeros_like(along)], dim=-1)

        return product

    def roots(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return √w (1, 0), (1, K, N, 2)."""
        root = targets[..., 0].sqrt().expand(outputs.shape[:-1])
        return torch.stack([root, torch.zeros_like(root)], dim=-1).unsqueeze(0)

    def drawn(self, outputs: Tensor, targets: Tensor, source: torch.Generator) -> Tensor:
        """Return the root: it is a single vector, and its sign does not matter."""
        return self.roots(outputs, targets)


class MeanLoss:
    """L from any function of one trial's outputs and the targets that is a mean over examples.

    Args:
        function: (N, …), (N, …) → (), differentiable twice.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        self.function = function

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, …), (N, …) → (K,)."""
        return torch.stack([self.function(own, targets) for own in outputs.unbind(0)])

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L = ∂²L/∂z² at these outputs, by double backward."""
        z = outputs.detach().requires_grad_()
        with torch.enable_grad():
            # The rows are independent, so the sum has the gradient of each row.
            return autograd_hessian(self.value(z, targets).sum(), z)


def autograd_hessian(loss: Tensor, outputs: Tensor | Sequence[Tensor]) -> OutputOperator:
    """Return H_L of any loss that is a graph of its outputs, by double backward.

    Several outputs are one vector, in their order; see `joined`.  Raises ValueError if the loss is not a
    function of these outputs.
    """
    z = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    # Each output is a variable of its own, also if another one was made from it.
    apart = no_gradient_through if len(z) > 1 else nullcontext
    with apart(z):
        found = torch.autograd.grad(loss, z, create_graph=True, allow_unused=True)
    if all(slope is None for slope in found):
        raise ValueError(
            "the loss was not computed from the outputs of the closure: return the tensor that the loss uses"
        )
    # A loss that is linear in an output, or does not use it, has no curvature there.
    curved = [(n, slope) for n, slope in enumerate(found) if slope is not None and slope.requires_grad]

    def product(w: Tensor) -> Tensor:
        if not curved:
            return torch.zeros_like(w)
        pieces = parted(w, z)
        with apart(z):
            found = torch.autograd.grad(
                [slope for _, slope in curved], z, [pieces[n] for n, _ in curved],
                retain_graph=True, materialize_grads=True,
            )  # fmt: skip
        return joined(found)

    return product


@contextmanager
def no_gradient_through(outputs: Sequence[Tensor]) -> Iterator[None]:
    """Cut the backward pass at these tensors."""

    def cut(number: int) -> Callable[[tuple[Tensor, ...]], tuple[Tensor | None, ...]]:
        return lambda gradients: tuple(None if n == number else g for n, g in enumerate(gradients))

    handles = [z.grad_fn.register_prehook(cut(z.output_nr)) for z in outputs if z.grad_fn is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """Return one output as it is, and several as one vector."""
    return outputs[0] if len(outputs) == 1 else torch.cat([z.reshape(-1) for z in outputs])


def parted(vector: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the inverse of `joined`: the parts of a vector in the shapes of these outputs."""
    if len(outputs) == 1:
        return (vector,)
    pieces = torch.split(vector, [z.numel() for z in outputs])
    return tuple(piece.view(z.shape) for piece, z in zip(pieces, outputs, strict=True))
