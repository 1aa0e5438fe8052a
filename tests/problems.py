"""Objectives and linear systems with known answers, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ahf_cli.optim import MartensRules, ModelObjective
from ahf_cli.optim.layers.chain import Chain
from ahf_cli.optim.losses import OutputOperator
from ahf_cli.optim.preconditioners import Fitted
from ahf_cli.optim.scaling import DiagonalScaling


class TinyConvNet(nn.Module):
    """A network of 131 parameters with the layers of LeNet; (N, 1, 8, 8) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, 3, 2, bias=False)
        self.fc = nn.Linear(12, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.tanh(self.conv2(x)).flatten(1)
        return self.out(torch.relu(self.fc(x)))  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def softmax_regression() -> nn.Module:
    return nn.Linear(4, 3)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (4,)),
    "softmax_regression": (softmax_regression, (4,)),
    "conv": (TinyConvNet, (1, 8, 8)),
}


def problem(
    name: str, examples: int = 12, seed: int = 0, vectorized: bool | None = None, explicit: bool = True
) -> ModelObjective:
    """A classification batch for one of `MODELS`, by explicit layers where they serve it, or by graphs."""
    make, shape = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (examples,), generator=generator)
    chain = Chain.of if explicit else None
    return ModelObjective(make().double(), x, y, vectorized=vectorized, chain=chain)


def rows(objective: ModelObjective, count: int, seed: int = 1) -> Tensor:
    """Random parameter vectors, (count, P)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(count, objective.layout.size, generator=generator, dtype=torch.float64)


def dense_loss(objective: ModelObjective) -> Callable[[Tensor], Tensor]:
    """θ (P,) ↦ h(θ) through PyTorch's own cross-entropy and layers alone."""

    def loss(theta: Tensor) -> Tensor:
        return nn.functional.cross_entropy(dense_outputs(objective)(theta), objective.targets)

    return loss


def dense_outputs(objective: ModelObjective) -> Callable[[Tensor], Tensor]:
    """θ (P,) ↦ z(θ), (N, C), through PyTorch's own layers alone."""

    def outputs(theta: Tensor) -> Tensor:
        pieces, at = {}, 0
        for name, shape in zip(objective.layout.names, objective.layout.shapes, strict=True):
            pieces[name] = theta[at : at + shape.numel()].reshape(shape)
            at += shape.numel()
        result: Tensor = functional_call(objective.model, pieces, (objective.inputs,))
        return result

    return outputs


def diagonal_of(found: Fitted) -> Tensor:
    """The diagonal of a diagonal preconditioner."""
    assert isinstance(found.scaling, DiagonalScaling)
    return found.scaling.values


class Identity(nn.Module):
    """The network whose outputs are its parameters for all inputs: z(θ) = θ, (P,)."""

    def __init__(self, size: int):
        super().__init__()
        self.theta = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta * 1.0


@dataclass(frozen=True)
class QuadraticLoss:
    """L(z) = ½ zᵀAz − bᵀz of outputs z, (K, P)."""

    matrix: Tensor  # A, (P, P), symmetric
    b: Tensor  # (P,)

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * ((outputs @ self.matrix) * outputs).sum(-1) - outputs @ self.b

    def hessian(self, outputs: Tensor, targets: Tensor) -> OutputOperator:
        return lambda w: w @ self.matrix


def quadratic(matrix: Tensor, b: Tensor) -> ModelObjective:
    """Return h(θ) = ½ θᵀAθ − bᵀθ; its Hessian and its Gauss-Newton matrix are A."""
    nothing = torch.zeros(1, dtype=b.dtype)
    return ModelObjective(Identity(len(b)), nothing, nothing, QuadraticLoss(matrix, b))


def spd(size: int, seed: int = 0) -> Tensor:
    """A random symmetric positive definite matrix with eigenvalues from 0.1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    result: Tensor = (q * torch.logspace(-1, 1, size, dtype=torch.float64)) @ q.T
    return result


def right_hand_sides(count: int, size: int) -> Tensor:
    """Random vectors b of linear systems, (count, size)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


class ResidualRules(MartensRules):
    """Rules of CG without a progress rule: it stops at the residual."""

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        return None
