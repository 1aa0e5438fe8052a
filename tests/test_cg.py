"""Conjugate gradient against dense solves, its stop rules against hand-made systems."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ahf_cli.optim import CGResult, MartensRules, Operator, Stop, conjugate_gradient
from ahf_cli.optim.cg import RelativeMartensRules, Rules, Select, no_selection
from ahf_cli.optim.published import IndefiniteMartensRules, PublishedRules, TruncatedPublishedRules
from tests.problems import ResidualRules, right_hand_sides, spd


def solve(
    matrix: Tensor, b: Tensor, damping: float | Tensor = 1.0, start: Tensor | None = None, **options: object
) -> tuple[Tensor, list[str], Tensor]:
    lam = torch.as_tensor(damping, dtype=b.dtype).expand(len(b)).clone()
    x0 = torch.zeros_like(b) if start is None else start
    rules = options.pop("rules", MartensRules())
    result = conjugate_gradient(lambda v: v @ matrix, lam, -b, x0, rules, **options)  # type: ignore[arg-type]
    dense = b - result.solution @ matrix - lam[:, None] * result.solution
    ok = torch.isfinite(result.solution).all(1)
    torch.testing.assert_close(result.residual[ok], dense[ok], rtol=1e-6, atol=1e-8)
    return result.solution, [Stop(int(s)).name for s in result.stop], result.iterations


@pytest.mark.parametrize("warm", [False, True])
def test_solution_equals_a_dense_solve(warm: bool) -> None:
    matrix, b = spd(20), right_hand_sides(3, 20)
    start = right_hand_sides(3, 20) * 0.1 if warm else None
    x, stops, _ = solve(matrix, b, 0.5, start, rules=ResidualRules(), max_iterations=200)
    dense = torch.linalg.solve(matrix + 0.5 * torch.eye(20, dtype=torch.float64), b.T).T
    torch.testing.assert_close(x, dense, rtol=1e-9, atol=1e-11)
    assert stops == ["RESIDUAL"] * 3


def test_a_solved_system_needs_no_iteration() -> None:
    x, stops, iterations = solve(spd(5), torch.zeros(1, 5, dtype=torch.float64))
    assert (x == 0).all() and stops == ["RESIDUAL"] and iterations.tolist() == [0]


@pytest.mark.parametrize(
    ("dtype", "small", "large"), [(torch.float32, 0.9e-10, 1.1e-10), (torch.float64, 0.9e-15, 1.1e-15)]
)
def test_residual_tolerance_is_that_of_the_dtype(dtype: torch.dtype, small: float, large: float) -> None:
    for size, stop in ((small, "RESIDUAL"), (large, "MAX_ITERATIONS")):
        b = torch.tensor([[size, 0.0]], dtype=dtype)
        _, stops, _ = solve(torch.diag(torch.tensor([1.0, 2.0], dtype=dtype)), b, max_iterations=1)
        assert stops == [stop]
    assert PublishedRules().residual_tolerance(torch.ones(1, dtype=torch.float64)) == 1e-80
    assert PublishedRules().residual_tolerance(torch.ones(1)) == torch.tensor(1e-20)


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_a_relative_limit_of_the_residual_knows_no_unit(unit: float) -> None:
    b = right_hand_sides(2, 12)
    lam = torch.full((2,), 0.1, dtype=torch.float64)
    found = conjugate_gradient(
        lambda v: unit * (v @ spd(12)), unit * lam, -unit * b, torch.zeros_like(b), RelativeMartensRules(), 60
    )
    plain = conjugate_gradient(
        lambda v: v @ spd(12), lam, -b, torch.zeros_like(b), RelativeMartensRules(), 60
    )
    torch.testing.assert_close(found.solution, plain.solution)
    assert torch.equal(found.iterations, plain.iterations) and torch.equal(found.stop, plain.stop)


def test_negative_curvature_at_once_gives_damped_steepest_descent() -> None:
    b = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    x, stops, iterations = solve(-4 * torch.eye(2, dtype=torch.float64), b, damping=0.5)
    torch.testing.assert_close(x, b / 0.5)
    assert stops == ["NEGATIVE_CURVATURE"] and iterations.tolist() == [0]


def test_negative_curvature_later_returns_the_iterate_before_it() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, -1.5], dtype=torch.float64))
    b = torch.tensor([[1.0, 1.0, 0.1]], dtype=torch.float64)
    x, stops, iterations = solve(matrix, b, damping=0.1)
    assert stops == ["NEGATIVE_CURVATURE"] and iterations.item() >= 1
    limited, _, _ = solve(matrix, b, damping=0.1, max_iterations=int(iterations))
    torch.testing.assert_close(x, limited)


def test_published_rules_go_on_at_negative_curvature() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, -1.5], dtype=torch.float64))
    b = torch.tensor([[1.0, 1.0, 0.1]], dtype=torch.float64)
    x, stops, _ = solve(matrix, b, 0.1, rules=PublishedRules(), max_iterations=3)
    torch.testing.assert_close(x, b / (torch.diag(matrix) + 0.1))  # three steps solve it, definite or not
    assert stops == ["MAX_ITERATIONS"]


@pytest.mark.parametrize(
    ("rules", "curvature", "progress"),
    [
        (IndefiniteMartensRules(), PublishedRules(), MartensRules()),
        (TruncatedPublishedRules(), MartensRules(), PublishedRules()),
    ],
)
def test_rules_that_are_half_published_stop_by_both_halves(
    rules: Rules, curvature: Rules, progress: Rules
) -> None:
    """Negative curvature follows one pair of rules, and the stop follows the other pair."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, -1.5], dtype=torch.float64))
    b = torch.tensor([[1.0, 1.0, 0.1]], dtype=torch.float64)
    x, stops, _ = solve(matrix, b, 0.1, rules=rules, max_iterations=3)
    expected, why, _ = solve(matrix, b, 0.1, rules=curvature, max_iterations=3)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)
    assert stops == why
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        steps = torch.rand(30, generator=generator, dtype=torch.float64) ** 8
        phi = [seed % 2 - value[None] for value in steps.cumsum(0)]  # a bad warm start in every other
        for n in range(1, 31):
            assert str(rules.progress_stop(phi[:n])) == str(progress.progress_stop(phi[:n]))
    one = torch.ones(1, dtype=torch.float64)
    assert rules.residual_tolerance(one) == progress.residual_tolerance(one)


def test_progress_rules_stop_where_their_formulas_say() -> None:
    falling = [torch.tensor([-(1 - 0.5**n)], dtype=torch.float64) for n in range(40)]
    martens, published = MartensRules(), PublishedRules()
    for n in range(1, 40):
        phi = falling[: n + 1]
        k = max(10, -(-n // 10))
        stop = martens.progress_stop(phi)
        expected = None if n <= k else bool((phi[n] - phi[n - k]) / phi[n] < k * 5e-4)
        assert (None if stop is None else bool(stop)) == expected
        stop = published.progress_stop(phi)
        expected = None if n < 12 else bool((phi[n] - phi[n - 10]) / phi[n] < 1e-4)
        assert (None if stop is None else bool(stop)) == expected
    # A bad warm start, φ > 0: Martens goes on, the released code stops at its first look.
    bad = [torch.tensor([10.0 - n]) for n in range(13)] + [torch.tensor([1.0])]
    assert not bool(martens.progress_stop(bad)) and bool(
        published.progress_stop(bad[:-1] + [torch.tensor([0.5])])
    )


def test_long_runs_look_back_further() -> None:
    # n = 120: k = 12.  φ fell between 12 and 10 iterations ago, so a look back of 10 would stop.
    phi = [torch.tensor([-1.0 if n < 110 else -2.0], dtype=torch.float64) for n in range(121)]
    assert bool(MartensRules().progress_stop(phi)) is False
    stops = [MartensRules().progress_stop(phi + phi[-1:] * more) for more in (0, 4)]
    assert [bool(stop) for stop in stops] == [False, True]


def test_rows_do_not_touch_and_looking_rarely_changes_nothing() -> None:
    matrix, b = spd(12), right_hand_sides(4, 12)
    b[1] *= 1e-16  # done at once
    b[2] = torch.nan  # lost at once
    lam = torch.tensor([0.1, 1.0, 1.0, 30.0], dtype=torch.float64)
    together = conjugate_gradient(lambda v: v @ matrix, lam, -b, torch.zeros_like(b), MartensRules())
    rarely = conjugate_gradient(
        lambda v: v @ matrix, lam, -b, torch.zeros_like(b), MartensRules(), check_every=7
    )
    for name in ("solution", "residual", "iterations", "products", "stop"):
        torch.testing.assert_close(
            getattr(together, name), getattr(rarely, name), rtol=0, atol=0, equal_nan=True
        )
    for k in (0, 1, 3):
        alone = conjugate_gradient(
            lambda v: v @ matrix, lam[k : k + 1], -b[k : k + 1], torch.zeros_like(b[:1]), MartensRules()
        )
        torch.testing.assert_close(together.solution[k], alone.solution[0], rtol=1e-12, atol=1e-14)
        assert together.stop[k] == alone.stop[0] and together.iterations[k] == alone.iterations[0]
    assert Stop(int(together.stop[2])) is Stop.NOT_FINITE


def test_inactive_rows_are_left_alone() -> None:
    b = right_hand_sides(2, 5)
    result = conjugate_gradient(
        lambda v: v @ spd(5), torch.ones(2, dtype=torch.float64), -b, torch.zeros_like(b), MartensRules(),
        active=torch.tensor([True, False]),
    )  # fmt: skip
    assert (result.solution[1] == 0).all() and result.products[1] == 0
    assert Stop(int(result.stop[1])) is Stop.INACTIVE and result.iterations[0] > 0


@pytest.mark.parametrize("keep", [(), (4, 9)])
def test_rows_that_go_on_alone_change_nothing(keep: tuple[int, ...]) -> None:
    size = 30
    generator = torch.Generator().manual_seed(5)
    factors = torch.randn(6, size, size, generator=generator, dtype=torch.float64)
    matrices = factors @ factors.mT / size
    b = right_hand_sides(6, size)
    b[2] = torch.nan
    lam = torch.tensor([1e-3, 10.0, 1.0, 0.1, 1e-2, 1.0], dtype=torch.float64)
    diagonal = torch.rand(6, size, generator=generator, dtype=torch.float64) + 0.5
    asked: list[list[int]] = []

    def operator(trials: Tensor) -> Operator:
        asked.append(trials.tolist())
        return lambda v: torch.einsum("kij,kj->ki", matrices[trials], v)

    def run(select: Select) -> CGResult:
        return conjugate_gradient(
            lambda v: torch.einsum("kij,kj->ki", matrices, v), lam, -b, torch.full_like(b, 0.1),
            MartensRules(), active=torch.tensor([True] * 5 + [False]), preconditioner=diagonal, keep=keep,
            select=select,
        )  # fmt: skip

    crowd, alone = run(no_selection), run(operator)
    assert len(asked) > 1 and all(len(a) > len(b) for a, b in pairwise(asked)), asked
    assert 2 not in asked[-1] and 5 not in asked[0]  # lost, and inactive
    for name in ("solution", "residual", "iterations", "products", "stop"):
        torch.testing.assert_close(getattr(crowd, name), getattr(alone, name), equal_nan=True)
    assert len(crowd.kept) == len(alone.kept) == len(keep)
    for one, other in zip(crowd.kept, alone.kept, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
