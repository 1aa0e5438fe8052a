"""Cases that follow PyTorchHessianFree's test suite, against dense algebra and closed forms."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev
from torch.nn import functional as F

import ahf_cli.optim.preconditioners as preconditioners
from ahf_cli.optim import CGResult, HessianFree, ModelObjective, Stop, conjugate_gradient
from ahf_cli.optim.cg import MartensRules, Rules
from ahf_cli.optim.layers.chain import Chain
from ahf_cli.optim.losses import MeanLoss
from ahf_cli.optim.matrices import GaussNewton, Hessian
from tests.problems import diagonal_of

ROWS, LAMBDA = 3, 1e-4


def assert_near(found: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def systems(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Badly conditioned positive definite A, (K, P, P), their diagonals and right-hand sides, (K, P)."""
    factors = numbers(ROWS, size, size)
    a = factors @ factors.mT + 1e-3 * torch.eye(size).double()
    return a, a.diagonal(dim1=1, dim2=2).clone(), (a @ numbers(ROWS, size, 1, seed=1))[..., 0]


def run(a: Tensor, b: Tensor, rules: Rules, limit: int, x0: Tensor, m: Tensor | None) -> CGResult:
    """Solve A x = b with A = B + λI, and keep each iterate."""
    lam, keep = torch.full_like(b[:, 0], LAMBDA), range(1, limit + 1)
    operator = lambda v: (a @ v[..., None])[..., 0] - LAMBDA * v  # noqa: E731
    return conjugate_gradient(operator, lam, -b, x0, rules, limit, preconditioner=m, keep=keep)


class Watched(MartensRules):
    """Rules that stop at ‖r‖ ≤ ε ‖b‖, or also at slow progress, and remember φ of each iterate."""

    def __init__(self, share: float, progress: bool = False):
        self.share, self.progress = share, progress

    def residual_tolerance(self, squared: Tensor) -> Tensor:
        return self.share**2 * squared

    def progress_stop(self, phi: list[Tensor]) -> Tensor | None:
        self.phi = list(phi)
        return super().progress_stop(phi) if self.progress else None


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", [1e-3, 1e-9])
@pytest.mark.parametrize("size", [3, 10, 50])
def test_cg_stops_at_the_first_good_iterate(size: int, share: float, scaled: bool, warm: bool) -> None:
    a, diagonal, b = systems(size)
    start = 2 * numbers(ROWS, size, seed=2) * warm
    for rules in (Watched(share), Watched(share, progress=True)):
        found = run(a, b, rules, 15 * size, start, diagonal if scaled else None)
        for k, n in enumerate(found.iterations.tolist()):
            path = [start[k], *(x[k] for x, _ in found.kept[:n])]
            phi = [float(0.5 * x @ a[k] @ x - b[k] @ x) for x in path]
            assert_near([float(p[k]) for p in rules.phi[: n + 1]], phi, atol=1e-10)
            left = [float((b[k] - a[k] @ x).norm() / b[k].norm()) for x in path]
            solved = [m for m, r in enumerate(left) if r <= share]
            back = {m: max(10, -(-m // 10)) for m in range(11, n + 1) if rules.progress}
            slow = [m for m, j in back.items() if phi[m] < 0 and (phi[m] - phi[m - j]) / phi[m] < 5e-4 * j]
            assert [n] == (solved if found.stop[k] == Stop.RESIDUAL else slow) and not (solved and slow)
            assert torch.equal(found.solution[k], path[n])


@pytest.mark.parametrize("scale", [1.0, 4.0, 2.0**-40])
def test_the_unit_of_a_preconditioner_does_not_matter(scale: float) -> None:
    a, diagonal, b = systems(50)
    plain, same = (run(a, b, Watched(1e-6), 99, 0 * b, m) for m in (None, torch.full_like(b, scale)))
    assert torch.equal(plain.solution, same.solution) and torch.equal(plain.iterations, same.iterations)
    for start in (0 * b, numbers(ROWS, 50, seed=2)):
        exact = run(torch.diag_embed(diagonal), b, Watched(1e-13), 9, start, scale * diagonal)
        assert exact.iterations.tolist() == [1] * ROWS
        assert_near(exact.solution, b / diagonal)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5, 1.0])
def test_cg_minimizes_on_krylov_spaces_until_curvature_is_negative(shift: float, scaled: bool) -> None:
    a, _, b = systems(8)
    a = a + (0.05 - shift) * torch.eye(8).double()
    m = numbers(ROWS, 8, seed=3).abs() + 0.5 if scaled else torch.ones_like(b)
    found = run(a, b, Watched(0.0), 6, 0 * b, m if scaled else None)
    for k in range(ROWS):
        space, definite, x = (b[k] / m[k])[:, None], 0, b[k]
        for n in range(1, 7):
            q = torch.linalg.qr(space)[0]
            inner = q.T @ a[k] @ q
            if torch.linalg.eigvalsh(inner)[0] <= 0:
                break
            definite, x = n, q @ torch.linalg.solve(inner, q.T @ b[k])
            assert_near(found.kept[n - 1][0][k], x, rtol=1e-6, atol=1e-8)
            space = torch.cat([q, (a[k] @ q[:, -1] / m[k])[:, None]], 1)
        assert found.iterations[k] == definite
        assert found.stop[k] == (Stop.NEGATIVE_CURVATURE if definite < 6 else Stop.MAX_ITERATIONS)
        assert_near(found.solution[k], x, rtol=1e-6, atol=1e-8)


class Problem:
    """Squared errors of a network whose first layer is frozen, with their dense derivatives."""

    def __init__(self, curvature: str, reduction: str = "mean", decay: float = 0.0):
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
        self.model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), inner, nn.Linear(5, 3)).double()
        self.model[0].requires_grad_(False)
        self.own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.parameters = list(self.own.values())
        self.curvature, self.reduction, self.decay = curvature, reduction, decay

    @property
    def theta(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.parameters).detach()

    def split(self, v: Tensor) -> list[Tensor]:
        pieces = torch.split(v, [p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def loss(self, x: Tensor, y: Tensor, share: float = 1) -> Any:
        loss = share * F.mse_loss(z := self.model(x), y, reduction=self.reduction)
        return (loss, z) if self.curvature == "ggn" else loss

    def dense(self, x: Tensor, y: Tensor) -> Any:
        """Return h as a function of θ, ∇h and B, by torch.func alone."""

        def outputs(t: Tensor) -> Tensor:
            named = dict(zip(self.own, self.split(t), strict=True))
            return functional_call(self.model, named, (x,))  # type: ignore[no-any-return]

        def h(t: Tensor) -> Tensor:
            return F.mse_loss(outputs(t), y, reduction=self.reduction) + 0.5 * self.decay * (t @ t)

        if self.curvature == "hessian":
            return h, grad(h)(self.theta), hessian(h)(self.theta)
        j = jacrev(outputs)(self.theta).flatten(0, 1)
        inner = 2 * j.T @ j / (len(j) if self.reduction == "mean" else 1)
        return h, grad(h)(self.theta), inner + self.decay * torch.eye(len(inner)).double()


def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return numbers(n, 7, seed=seed), numbers(n, 3, seed=seed + 100)


@pytest.mark.parametrize(("rule", "decay"), [("constant", 0.0), ("levenberg_marquardt", 0.1)])
@pytest.mark.parametrize("preconditioner", ["none", "gradient", "given"])
@pytest.mark.parametrize("search", ["none", "armijo"])
@pytest.mark.parametrize("backtracking", ["none", "martens"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_steps_agree_with_dense_algebra_for_all_options(
    curvature: str, backtracking: str, search: str, preconditioner: str, rule: str, decay: float
) -> None:
    own, lam = Problem(curvature, decay=decay), 1.5 if curvature == "hessian" else 0.1
    frozen, tries = [p.clone() for p in own.model[0].parameters()], [2.0 * 0.8**i for i in range(60)]
    given: Any = {"given": lambda: [1 + p.detach() ** 2 for p in own.parameters]}
    optimizer = HessianFree(
        own.parameters, 2.0, lam, decay, preconditioner=given.get(preconditioner, preconditioner),
        curvature=curvature, backtracking=backtracking, line_search=search, damping_rule=rule,
    )  # fmt: skip
    for step in range(2):
        before, (h, g, b) = own.theta, own.dense(*batch(16, step))
        assert_near(optimizer.step(partial(own.loss, *batch(16, step))), h(before))
        u, info = own.theta - before, optimizer.last_step
        assert info is not None and info.damping.item() == pytest.approx(lam, rel=1e-12)
        delta, slope = info.direction[0], float((g @ info.direction[0]).clamp(max=0))
        last = torch.cat([optimizer.state[p]["direction"].flatten() for p in own.parameters])
        assert h(before + delta) <= h(before + last) + 1e-14 and (backtracking != "none" or delta.equal(last))
        falls = (a for a in tries if h(before + a * delta) <= h(before) + 0.01 * a * slope)
        assert_near(info.step_size[0].item(), 2.0 if search == "none" else next(falls, 0.0))
        ratio = (h(before + u) - h(before)) / (g @ u + 0.5 * u @ b @ u)
        found = (info.update[0], info.gradient[0], info.step_size * delta, info.loss_after[0])
        assert_near(found, (u, g, u, h(before + u)))
        assert_near(info.reduction_ratio[0], ratio, 1e-7)
        lam *= 1 if rule == "constant" else 1.5 if ratio < 0.25 else 2 / 3 if ratio > 0.75 else 1
        assert_near(optimizer.damping, lam)
    assert_near(list(own.model[0].parameters()), frozen, 0, 0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("preconditioner", ["none", "gradient", "given"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_an_iteration_has_its_closed_form(curvature: str, preconditioner: str, reduction: str) -> None:
    """δ = −(gᵀd / dᵀ(B + λI)d) d with d = M⁻¹g."""
    own, (x, y), lam = Problem(curvature, reduction), batch(16), 2.0
    _, g, b = own.dense(x, y)
    squares = {"none": 1 - lam + 0 * g, "gradient": g.square(), "given": own.theta.abs()}
    m = (squares[preconditioner] + lam) ** 0.75
    chosen: Any = (lambda: own.split(m)) if preconditioner == "given" else preconditioner
    optimizer = HessianFree(own.parameters, damping=lam, preconditioner=chosen, max_iterations=1)
    d = g / m
    expected = -(g @ d) / (d @ b @ d + lam * (d @ d)) * d
    assert_near(optimizer.direction(partial(own.loss, x, y)), own.split(expected))
    kind: Any = GaussNewton if curvature == "ggn" else Hessian
    assert_near(kind(partial(own.loss, x, y), own.parameters) @ torch.eye(len(g)).double(), b)


@pytest.mark.parametrize(("n", "chain"), [(1, Chain.of), (16, Chain.of), (16, None), (130, None)])
def test_the_fisher_diagonal_of_squared_errors_is_a_loop_over_examples(n: int, chain: Any) -> None:
    own, (x, y), lam = Problem("ggn"), batch(n), torch.tensor([0.3], dtype=torch.float64)
    losses = [F.mse_loss(own.model(a), b) for a, b in zip(x, y, strict=True)]
    each = [nn.utils.parameters_to_vector(torch.autograd.grad(h, own.parameters)) for h in losses]
    expected, last, inner = torch.stack(each).square().mean(dim=0), own.model[1:], own.model[0](x)
    here = ModelObjective(last, inner, y, MeanLoss(F.mse_loss), chain=chain).evaluate(own.theta[None])
    at = preconditioners.Surroundings(here, lambda v: v, lam, torch.ones(1).long())
    assert_near(diagonal_of(preconditioners.martens(at))[0], (expected + lam) ** 0.75)
    assert n > 1 or diagonal_of(preconditioners.gradient(at)).allclose((expected + lam) ** 0.75, 1e-9)


@pytest.mark.parametrize("preconditioner", ["none", "gradient", "hutchinson"])
@pytest.mark.parametrize("outputs", [False, True])
def test_rosenbrock_is_solved_without_a_rise(outputs: bool, preconditioner: str) -> None:
    p = nn.Parameter(torch.tensor([-1.0, 3.0], dtype=torch.float64))
    optimizer = HessianFree([p], preconditioner=preconditioner)

    def closure() -> Any:
        z = torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])
        return (z @ z, z) if outputs else z @ z

    losses = [float(optimizer.step(closure)) for _ in range(32)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-20


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[7, 8], [4, 3, 7]])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_weighted_parts_are_the_batch(curvature: str, sizes: list[int], reduction: str, apart: bool) -> None:
    inner, twin, n = Problem(curvature, reduction), Problem(curvature, reduction), sum(sizes)
    made: Any = [HessianFree(p.parameters, 1.0, 0.5, 0.01, max_iterations=4) for p in (inner, twin)]
    shares = [len(sizes) * (size / n if reduction == "mean" else 1) for size in sizes]
    for step in range(2):
        batches = [batch(n, seed) for seed in (step, step + 50)[: 1 + apart]]  # the second for the curvature
        parts = [zip(torch.split(x, sizes), torch.split(y, sizes), shares, strict=True) for x, y in batches]
        loss = made[0].step(*[[partial(inner.loss, *part) for part in parts_of] for parts_of in parts])
        assert_near(loss, made[1].step(*[partial(twin.loss, *both) for both in batches]))
        assert_near(inner.theta, twin.theta)
