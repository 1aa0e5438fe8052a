"""The damped Gauss-Newton system in the space of the outputs.

With the output Hessian H_L = S Sᵀ and A = Sᵀ J, B = Aᵀ A, where A has R·N rows (N examples, R = C − 1 for
softmax cross-entropy) and P columns.  Every vector that CG meets lies in the span of the rows of A, the
gradient g and the start x₀; in coordinates of that span a product with B is one small matrix-vector product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ahf_cli.optim import rows
from ahf_cli.optim.cg import CGResult, Rules, Stop, conjugate_gradient
from ahf_cli.optim.curvature import GaussNewtonOperator
from ahf_cli.optim.descent import LinearSystem
from ahf_cli.optim.layers import LayerCall
from ahf_cli.optim.rows import Layout


@dataclass(frozen=True)
class _Block:
    """The part of A that belongs to one layer, with or without forming it."""

    call: LayerCall
    cotangents: Tensor  # b, (R, N, out, positions)
    inputs: Tensor  # a, (N, in, positions)
    jacobian: Tensor | None  # Σ_positions b aᵀ, (R, N, out, in); None where b and a serve as they are

    @classmethod
    def of(cls, call: LayerCall, cotangents: Sequence[Tensor]) -> _Block:
        """Take a layer's inputs and the cotangents of its output, R tensors of its shape."""
        b = torch.stack([c.flatten(2) if c.dim() > 2 else c.unsqueeze(-1) for c in cotangents])
        a = call.patches()
        return cls(call, b, a, None if a.shape[-1] == 1 else torch.einsum("rnop,nip->rnoi", b, a))

    def double(self) -> _Block:
        """The same numbers in float64."""
        jacobian = None if self.jacobian is None else self.jacobian.double()
        return _Block(self.call, self.cotangents.double(), self.inputs.double(), jacobian)

    def gram(self) -> Tensor:
        """A Aᵀ of this layer; (R·N, R·N)."""
        r, n = self.cotangents.shape[:2]
        at_bias = self.cotangents.sum(dim=-1).reshape(r * n, -1)
        if self.jacobian is not None:
            flat = self.jacobian.reshape(r * n, -1)
            flat = torch.cat([flat, at_bias], dim=1) if self.call.bias is not None else flat
            return flat @ flat.T
        inner = self.inputs[..., 0] @ self.inputs[..., 0].T + (self.call.bias is not None)
        outer = (at_bias @ at_bias.T).reshape(r, n, r, n)
        return (outer * inner[None, :, None, :]).reshape(r * n, r * n)

    def forward(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply A by a vector, given as this layer's tensors; → (R, N)."""
        w = weight.reshape(weight.shape[0], -1)
        if self.jacobian is not None:
            result = torch.einsum("rnoi,oi->rn", self.jacobian, w)
        else:
            result = torch.einsum("rno,no->rn", self.cotangents[..., 0], self.inputs[..., 0] @ w.T)
        return result if bias is None else result + self.cotangents.sum(dim=-1) @ bias

    def transpose(self, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Multiply Aᵀ by c, (R, N); → gradients in the shapes of weight and bias."""
        if self.jacobian is not None:
            weight = torch.einsum("rn,rnoi->oi", c, self.jacobian)
        else:
            weight = torch.einsum("rn,rno->no", c, self.cotangents[..., 0]).T @ self.inputs[..., 0]
        bias = None
        if self.call.bias is not None:
            bias = torch.einsum("rn,rno->o", c, self.cotangents.sum(dim=-1))
        return weight, bias


@dataclass(frozen=True)
class OutputSpace:
    """A of one trial at one θ, by layers."""

    layout: Layout
    blocks: tuple[_Block, ...]

    @classmethod
    def of(cls, operator: GaussNewtonOperator, row: int) -> OutputSpace:
        """Take the layers of an evaluation apart; R backward passes through the activations alone."""
        evaluation = operator.evaluation
        if evaluation.output_factor is None or evaluation.layer_calls is None:
            raise ValueError("solver: dual needs the layers of a ModelObjective; use cg")
        outputs, calls = evaluation.layer_calls(row)
        _check_covered(evaluation.layout, calls)
        layers = [call.output for call in calls]
        factor = evaluation.output_factor()[row]  # S, (R, N, C)
        found = [torch.autograd.grad(outputs, layers, s, retain_graph=True) for s in factor]
        blocks = (
            _Block.of(call, cotangents)
            for call, cotangents in zip(calls, zip(*found, strict=True), strict=True)
        )
        return cls(evaluation.layout, tuple(blocks))

    def double(self) -> OutputSpace:
        """The same A with products in float64."""
        return OutputSpace(self.layout, tuple(block.double() for block in self.blocks))

    def gram(self) -> Tensor:
        """A Aᵀ; (R·N, R·N)."""
        total = self.blocks[0].gram()
        for block in self.blocks[1:]:
            total += block.gram()
        return total

    def forward(self, vector: Tensor) -> Tensor:
        """A v; (P,) → (R·N,)."""
        pieces = [piece[0] for piece in self.layout.split(vector[None])]
        parts = [
            block.forward(
                pieces[block.call.weight], None if block.call.bias is None else pieces[block.call.bias]
            )
            for block in self.blocks
        ]
        return torch.stack(parts).sum(dim=0).flatten()

    def transpose(self, vector: Tensor) -> Tensor:
        """Aᵀ c; (R·N,) → (P,)."""
        r, n = self.blocks[0].cotangents.shape[:2]
        pieces: dict[int, Tensor] = {}
        for block in self.blocks:
            weight, bias = block.transpose(vector.reshape(r, n))
            pieces[block.call.weight] = weight
            if bias is not None and block.call.bias is not None:
                pieces[block.call.bias] = bias
        return self.layout.join([pieces[n] for n in range(len(self.layout.names))])[0]


def _check_covered(layout: Layout, calls: Sequence[LayerCall]) -> None:
    """Raise ValueError unless every parameter is the weight or bias of exactly one layer."""
    used = [n for call in calls for n in (call.weight, call.bias) if n is not None]
    for n, name in enumerate(layout.names):
        if used.count(n) != 1:
            raise ValueError(
                f"solver: dual needs every parameter in exactly one linear or ungrouped conv2d layer, "
                f"and {name} is in {used.count(n)}; use cg"
            )


@dataclass(frozen=True)
class DualNewton:
    """The iterates of CG for (B + λI) δ = −g with the Gauss-Newton matrix, in coordinates of the outputs.

    A vector v = Aᵀc + αg + βx₀ is kept as its coordinates u = (c, α, β) together with M u, where M holds the
    inner products of the spanning vectors; then ⟨v, v′⟩ = uᵀ(M u′) is one short dot product, and B v has the
    coordinates ((M u)[:R·N], 0, 0).  The cost is that of M, whatever the number of iterations.  Trials are
    solved one after the other on any device.

    M is made in the dtype of the parameters and the iteration, with its stop rules, runs in float64: it is
    cheap there, and what separates CG in float32 from exact CG are the roundings of its recurrences.
    Measured in float32 on LeNet, the relative distance to the solution of CG in float64 is at most 1e-3 for
    λ ≥ 1e-3 ‖B‖ (that of CG in float32: 1e-2), 0.06 down to 1e-5 ‖B‖ (0.45) and 0.16 below (0.63), where in
    these coordinates float64 does no better.  Where the roundings of M make it visibly indefinite (a squared
    residual below 0, seen in networks whose outputs hardly depend on the input), it is made in float64.
    """

    rules: Rules
    max_iterations: int = 50
    warm_start_decay: float = 0.95

    def __call__(self, system: LinearSystem) -> CGResult:
        """Solve (B + λI) δ = −g from x₀ = decay · δ_previous; rows that are not active cost nothing.

        Raises:
            ValueError: another curvature than `ggn`, an objective that does not show its layers, or a
                parameter that is not in exactly one linear or ungrouped conv2d layer.
        """
        operator, gradient, damping = system.operator, system.gradient, system.damping
        if system.preconditioner is not None:
            raise ValueError("solver: dual takes no preconditioner")
        if not isinstance(operator, GaussNewtonOperator):
            raise ValueError("solver: dual needs curvature ggn, got another operator")
        start = self.warm_start_decay * system.previous
        results = [
            self._solve(OutputSpace.of(operator, k), gradient[k], damping[k : k + 1], start[k])
            if going
            else _inactive(gradient[k : k + 1])
            for k, going in enumerate(system.active.tolist())
        ]
        solutions, residuals, *counts = zip(
            *((r.solution, r.residual, r.iterations, r.products, r.stop) for r in results), strict=True
        )
        iterations, products, stops = (torch.cat(column) for column in counts)
        return CGResult(torch.cat(solutions), torch.cat(residuals), iterations, products, stops)

    def _solve(self, space: OutputSpace, g: Tensor, damping: Tensor, start: Tensor) -> CGResult:
        basis, damping = torch.stack([g, start]), damping.double()
        found = self._iterate(_inner_products(space, basis), damping)
        if g.dtype != torch.float64 and bool(_dot(found.residual, found.residual) < 0):
            space, basis = space.double(), basis.double()
            found = self._iterate(_inner_products(space, basis), damping)

        def expanded(pair: Tensor) -> Tensor:
            u = pair[0, : pair.shape[1] // 2].to(basis)
            return (space.transpose(u[:-2]) + u[-2:] @ basis)[None].to(g)

        return replace(found, solution=expanded(found.solution), residual=expanded(found.residual))

    def _iterate(self, small: Tensor, damping: Tensor) -> CGResult:
        """Run CG on pairs (u, M u), the last two coordinates being those of g and x₀; M as given."""
        size = len(small)

        def paired(u: Tensor) -> Tensor:
            return torch.cat([u, small @ u])[None]

        def product(pair: Tensor) -> Tensor:
            return paired(F.pad(pair[0, size:-2], (0, 2)))

        g, start = paired(_unit(small, -2)), paired(_unit(small, -1))
        warm = small[-1, -1] > 0
        return conjugate_gradient(
            product, damping, g, torch.where(warm, start, 0), self.rules, self.max_iterations, dot=_dot
        )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨v, v′⟩ = uᵀ(M u′) of pairs (u, M u); (1, 2·size) → (1,)."""
    size = a.shape[1] // 2
    return rows.dot(a[:, :size], b[:, size:])


def _unit(like: Tensor, place: int) -> Tensor:
    unit = torch.zeros_like(like[0])
    unit[place] = 1
    return unit


def _inner_products(space: OutputSpace, basis: Tensor) -> Tensor:
    """M, the inner products of the rows of A, g and x₀, in float64; (R·N + 2, R·N + 2)."""
    images = torch.stack([space.forward(v) for v in basis]).double()  # (2, R·N)
    basis = basis.double()
    return torch.cat(
        [torch.cat([space.gram().double(), images.T], dim=1), torch.cat([images, basis @ basis.T], dim=1)]
    )


def _inactive(gradient: Tensor) -> CGResult:
    """What CG finds in a row that takes no part: x = 0 and r = −g."""
    none = torch.zeros(1, dtype=torch.int64, device=gradient.device)
    return CGResult(torch.zeros_like(gradient), -gradient, none, none, none + int(Stop.INACTIVE))
