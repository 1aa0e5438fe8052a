"""Losses of the outputs, with their own curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

OutputOperator = Callable[[Tensor], Tensor]
"""w ↦ H_L w on tensors of the shape of the outputs."""


class OutputLoss(Protocol):
    """L(z, y), the mean over a batch of a loss of the outputs z, one number a trial."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, …), (N, …) → (K,)."""
        ...

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L = ∂²L/∂z² at these outputs, block-diagonal over trials."""
        ...

    def fisher(self, outputs: Tensor) -> OutputOperator:
        """F_z, the Fisher matrix of p(y | z) in z, averaged as L is, block-diagonal over trials."""
        ...

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """S with H_L = S Sᵀ, block-diagonal over examples: column r of each block; → (K, R, N, C)."""
        ...


class SoftmaxCrossEntropy:
    """L = −(1/N) Σ_n log softmax(z_n)[y_n], of logits z (K, N, C) and classes y (N,)."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """L; (K, N, C), (N,) → (K,)."""
        log_p = torch.log_softmax(outputs, dim=-1)
        chosen = log_p.gather(-1, targets.expand(outputs.shape[:-1]).unsqueeze(-1))
        return -chosen.squeeze(-1).mean(dim=-1)

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        """H_L w = (p∘w − p (pᵀw)) / N with p = softmax(z); it does not depend on y."""
        p = torch.softmax(outputs.detach(), dim=-1)
        scale = 1 / outputs.shape[-2]

        def product(w: Tensor) -> Tensor:
            pw = p * w
            return (pw - p * pw.sum(dim=-1, keepdim=True)) * scale

        return product

    def fisher(self, outputs: Tensor) -> OutputOperator:
        """F_z w = (1/N) Σ_c p_c s_c (s_cᵀ w), over classes c with their scores s_c = ∇ log p_c = e_c − p."""
        p = torch.softmax(outputs.detach(), dim=-1)
        scores = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p.unsqueeze(-2)  # (…, c, z)
        scale = 1 / outputs.shape[-2]

        def product(w: Tensor) -> Tensor:
            along = (scores * w.unsqueeze(-2)).sum(dim=-1)  # s_cᵀ w
            return ((p * along).unsqueeze(-1) * scores).sum(dim=-2) * scale

        return product

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The R = C − 1 columns of S = (diag(q) − p qᵀ) Q′ / √N, with q = √p.

        diag(q) − p qᵀ times its transpose is N H_L, and q is its null vector; the Householder reflection that
        takes the last unit vector to q takes the null vector out, and leaves C − 1 columns.
        """
        p = torch.softmax(outputs.detach(), dim=-1)
        q, size = p.sqrt(), p.shape[-1]
        columns = q.unsqueeze(-1) * (torch.eye(size, dtype=p.dtype, device=p.device) - p.unsqueeze(-2))
        others = p[..., :-1].sum(dim=-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
        share = q[..., :-1] * (1 + q[..., -1:]) / others  # q_r / (1 − q_C)
        reflected = columns[..., :-1, :] + share.unsqueeze(-1) * columns[..., -1:, :]
        scale: float = outputs.shape[-2] ** -0.5
        return reflected.movedim(-2, 1) * scale


class MeanLoss:
    """L of any function of one trial's outputs and the targets that is a mean over examples.

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
            return autograd_hessian(self.value(z, targets).sum(), z)  # rows are independent of each other

    def fisher(self, outputs: Tensor) -> OutputOperator:
        """Raise ValueError: which distribution the loss belongs to is not known."""
        raise ValueError("curvature: fisher needs a loss of a known distribution, such as cross_entropy")

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Raise ValueError: a factor of H_L is not known."""
        raise ValueError("solver: dual needs a loss with a known factor of H_L, such as cross_entropy")


def autograd_hessian(loss: Tensor, outputs: Tensor) -> OutputOperator:
    """H_L of any loss that is a graph of its outputs, by double backward.

    Raises ValueError where the loss was not computed from these outputs.
    """
    (slope,) = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(
            "the loss was not computed from the outputs that came with it: return the very tensor that the "
            "loss is a function of"
        )
    if not slope.requires_grad:  # a loss that is linear in its outputs
        return torch.zeros_like

    def product(w: Tensor) -> Tensor:
        (result,) = torch.autograd.grad(slope, outputs, w, retain_graph=True, materialize_grads=True)
        return result

    return product
