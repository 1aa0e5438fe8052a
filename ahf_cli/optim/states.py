"""Hidden states of a model beside its outputs, for structural damping (Martens and Sutskever 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from ahf_cli.optim.losses import OutputOperator, joined, parted


@runtime_checkable
class HasStates(Protocol):
    """A model that gives its hidden states."""

    def with_states(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs (N, …), and all hidden states in tensors (N, …), by one forward pass."""
        ...


class Both(nn.Module):
    """A model whose outputs are those of another one, and its hidden states."""

    prefix = "model."
    """of the names of parameters"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, HasStates):
            raise ValueError(
                f"damping_matrix: structural needs a model with hidden states (a method `with_states`), got "
                f"{type(model).__name__}"
            )
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return outputs and hidden states."""
        found: tuple[Tensor, ...] = self.model.with_states(x)
        return found


def beside(
    inner: OutputOperator, outputs: Tensor, states: Sequence[Tensor], weight: Tensor
) -> OutputOperator:
    """Return (w, s) ↦ (H_L w, weight/N s), the second derivatives of L and of ½ weight · mean ‖h − h_θ‖².

    Args:
        inner: w ↦ H_L w.
        outputs: z, (K, N, …).
        states: h in parts, (K, N, …).
        weight: (K,).
    """
    share = weight.to(outputs) / outputs.shape[1]
    shares = [share.reshape(-1, *[1] * (h.dim() - 1)) for h in states]

    def product(vector: Tensor) -> Tensor:
        w, *own = parted(vector, (outputs, *states))
        return joined((inner(w), *(a * s for a, s in zip(shares, own, strict=True))))

    return product
