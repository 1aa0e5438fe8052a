"""Parts of a step: ratios, moments, step sizes and damping rules against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ahf_cli.optim import QuadraticModel
from ahf_cli.optim.damping import (
    Change,
    ConstantDamping,
    DampingRule,
    LevenbergMarquardt,
    Reduction,
    ScaledLevenbergMarquardt,
    guarded,
    rounding_of,
    towards,
)
from ahf_cli.optim.moments import ScaleByAdam
from ahf_cli.optim.published import PublishedDamping, PublishedMoments
from ahf_cli.optim.step_size import (
    ConjugateSmoothnessStep,
    HyperbolicStep,
    RepairedConjugateSmoothnessStep,
    conjugate_smoothness,
    eq3,
)
from tests.problems import problem, quadratic, rows, spd


@pytest.mark.parametrize(
    ("dtype", "actual", "predicted", "whole", "refused", "ratio"),
    [
        # A step too short to be judged, of a direction that promises a fall.
        (torch.float32, 0.0, 0.0, -1e-3, False, 1.0),
        (torch.float32, -(2.0**-20), -5e-7, -1e-3, False, 1.0),
        (torch.float64, 0.0, -1e-15, -1e-3, False, 1.0),
        # Nothing to gain: unknown.
        (torch.float32, 0.0, -5e-7, -5e-7, False, math.nan),
        (torch.float32, 2.0**-20, 0.0, 0.0, True, math.nan),
        # A refused step, and changes that rounding does not explain.
        (torch.float32, 0.0, 0.0, -1e-3, True, math.nan),
        (torch.float32, 0.0, -1e-3, -1e-3, False, 0.0),
        (torch.float32, 0.5, -5e-7, -1e-3, False, -1e6),
        (torch.float64, -(2.0**-20), -(2.0**-19), -1e-3, False, 0.5),
    ],
)
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_the_ratio_of_two_rounding_errors_is_its_limit_or_unknown(
    dtype: torch.dtype,
    actual: float,
    predicted: float,
    whole: float,
    refused: bool,
    ratio: float,
    unit: float,
) -> None:
    h, refusal = torch.full((1,), unit, dtype=dtype), torch.tensor([refused])
    u = torch.ones(1, 1, dtype=dtype)
    model = QuadraticModel(
        torch.zeros_like, gradient=whole * unit * u, direction=u, residual_along=-whole * h, damping=0 * h
    )
    change = Change(h, h + actual * unit, lambda s: h, model, u, u, None, refusal)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(rounding_of(change), eps * h)
    found, unknown = guarded(Reduction(h + actual * unit - h, predicted * h), change)
    assert found.item() == pytest.approx(ratio, rel=1e-6, nan_ok=True)
    assert bool(unknown) == (abs(whole) < 1e-5)


def test_rounding_is_measured_where_the_loss_cancels() -> None:
    weights = torch.full((1, 2), 1.0)

    def loss_at(s: Tensor) -> Tensor:  # a difference of large numbers: its error is far above ε |h|
        return (1e4 * (weights + s)[:, 0] - 1e4 * (weights + s)[:, 1]).abs() + 1e-3

    u = torch.zeros(1, 2)
    model = QuadraticModel(
        torch.zeros_like, gradient=u, direction=u, residual_along=torch.zeros(1), damping=torch.ones(1)
    )
    change = Change(loss_at(u), loss_at(u), loss_at, model, weights, u, torch.ones(1), torch.tensor([False]))
    assert 1e-5 < float(rounding_of(change)) < 1e-2


def test_unknown_ratios_bring_the_damping_back_to_its_start() -> None:
    damping, initial = torch.tensor([9.0, 0.1, 1.1, 0.9, 1.0]), torch.ones(5)
    for _ in range(8):
        damping = towards(damping, initial)
    assert torch.equal(damping, initial)
    torch.testing.assert_close(towards(torch.tensor([9.0, 0.1]), initial[:2]), torch.tensor([6.0, 0.15]))


def test_adam_moments_equal_torch_adam() -> None:
    parameter = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    b1 = 0.2
    adam = torch.optim.Adam([parameter], lr=0.1, betas=(b1, 0.3), eps=1e-2)
    values = {k: torch.tensor([v], dtype=torch.float64) for k, v in
              {"epsilon": 0.5, "sigma": 1.0, "beta2": 0.3, "mu": 1e-2}.items()}  # fmt: skip
    transform, ours = ScaleByAdam(), torch.zeros(1, 6, dtype=torch.float64)
    moments = transform.init(ours)
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 6):
        gradient = torch.randn(6, generator=generator, dtype=torch.float64)
        parameter.grad = -gradient
        adam.step()
        out, moments = transform(gradient[None], moments, values, torch.tensor([t]))
        ours = ours + 0.1 * out
        torch.testing.assert_close(ours[0], parameter.detach())


def test_published_moments_have_their_values_by_hand() -> None:
    values = {k: torch.tensor([v], dtype=torch.float64) for k, v in
              {"epsilon": 2.0, "sigma": 1.0, "beta2": 0.5, "mu": 0.25}.items()}  # fmt: skip
    transform = PublishedMoments()  # β₁ = ½: m ← δ + m, v ← δ² + v
    out, moments = transform(
        torch.tensor([[2.0]]).double(), transform.init(torch.zeros(1, 1).double()), values, torch.tensor([1])
    )
    assert out.item() == pytest.approx(2 / 2.25)
    out, _ = transform(torch.tensor([[1.0]]).double(), moments, values, torch.tensor([2]))
    assert out.item() == pytest.approx(3 / (5**0.5 + 0.25))


def test_eq3_has_its_value_by_hand_and_is_zero_below_its_threshold() -> None:
    values = {k: torch.tensor([v], dtype=torch.float64) for k, v in
              {"epsilon": 2.0, "sigma": 1.0, "smoothness": 0.5}.items()}  # fmt: skip
    t = torch.tensor([3])  # β₁ = ½, β₁ᵗ = ⅛; negative where G < (ε/2)(1 − β₁²) = ¾
    norm = torch.tensor([2.0], dtype=torch.float64)
    denominator = 3 * 0.5 * (7 / 8) ** 2
    assert eq3(norm, values, t).item() == pytest.approx(4 * (2 - 2 * 3 / 8) / denominator)
    assert RepairedConjugateSmoothnessStep()(norm, values, t).item() == pytest.approx(
        4 * (2 - 1.5 * 2 * 3 / 8) / denominator
    )
    rule = ConjugateSmoothnessStep()
    assert rule(torch.tensor([0.7501]).double(), values, t) > 0
    assert rule(torch.tensor([0.7499]).double(), values, t) == 0
    assert eq3(torch.tensor([0.7499]).double(), values, t) < 0


def test_conjugate_smoothness_of_a_quadratic_is_its_curvature() -> None:
    matrix, b = spd(5), torch.ones(5, dtype=torch.float64)
    objective, x = quadratic(matrix, b), rows(problem("mlp"), 2)[:, :5]
    u = torch.ones_like(x)
    gradient = x @ matrix - b
    found = conjugate_smoothness(objective.value(x), objective.value(x + u), (gradient * u).sum(-1), u)
    torch.testing.assert_close(found, ((u @ matrix) * u).sum(-1) / 5)


@pytest.mark.parametrize(
    ("rule", "damping", "ratio", "after"),
    [
        (LevenbergMarquardt(), 4.0, 0.2, 6.0),
        (LevenbergMarquardt(), 4.0, 0.25, 4.0),
        (LevenbergMarquardt(), 4.0, 0.75, 4.0),
        (LevenbergMarquardt(), 3.0, 0.8, 2.0),
        (LevenbergMarquardt(), 4.0, torch.nan, 6.0),
        (LevenbergMarquardt(), 4.0, torch.inf, 6.0),
        (LevenbergMarquardt(), 1e-10, 2.0, 1e-10),
        (LevenbergMarquardt(), 9e9, -1.0, 1e10),
        (PublishedDamping(), 4.0, 0.2, 6.0),
        (PublishedDamping(), 3.0, 0.8, 2.0),
        (PublishedDamping(), 0.1, 0.2, 0.1),
        (PublishedDamping(), 4.0, torch.nan, 4.0),
        (PublishedDamping(), 9e9, -1.0, 13.5e9),
        (ConstantDamping(), 4.0, 0.2, 4.0),
        (ScaledLevenbergMarquardt(), 9e-8, -1.0, 9e-8 * 1.5),
        (ScaledLevenbergMarquardt(), 1e-10, 2.0, 2e-10 / 3),
        (ScaledLevenbergMarquardt(), 5.1e-11, 2.0, 5e-11),
        (ScaledLevenbergMarquardt(), 4.9e9, -1.0, 5e9),
    ],
)
def test_a_damping_rule_gives_its_value_by_hand(
    rule: DampingRule, damping: float, ratio: float, after: float
) -> None:
    initial = torch.tensor([0.5], dtype=torch.float64)
    found = rule(
        torch.tensor([damping], dtype=torch.float64), torch.tensor([ratio], dtype=torch.float64), initial
    )
    assert found.item() == pytest.approx(after, rel=1e-14)


def test_the_hyperbolic_step_is_half_of_itself_after_tau_steps() -> None:
    lr, tau = torch.tensor([0.4, 0.4]), torch.tensor([1.0, 100.0])
    rule = HyperbolicStep()
    found = [rule(lr, {"lr": lr, "halving": tau}, torch.tensor([t, t])).tolist() for t in (1, 2, 101)]
    assert found[0] == pytest.approx([0.4, 0.4]) and found[1] == pytest.approx([0.2, 0.4 / 1.01])
    assert found[2] == pytest.approx([0.4 / 101, 0.2])
