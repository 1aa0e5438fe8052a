"""Parts of a step: ratios, moments, step sizes and damping rules against values by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ahf_cli.optim import QuadraticModel
from ahf_cli.optim.damping import Change, ConstantDamping, LevenbergMarquardt, RatioAtUpdate
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
    ("dtype", "actual", "predicted", "refused", "ratio"),
    [
        (torch.float32, 0.0, 0.0, False, 1.0),
        (torch.float32, 0.0, -5e-7, False, 1.0),
        (torch.float32, -(2.0**-20), -5e-7, False, 1.0),
        (torch.float32, 0.0, 0.0, True, math.nan),
        (torch.float32, 0.0, -1e-3, False, 0.0),
        (torch.float32, 0.5, -5e-7, False, -1e6),
        (torch.float64, -(2.0**-20), -(2.0**-19), False, 0.5),
        (torch.float64, 0.0, -1e-15, False, 1.0),
    ],
)
def test_the_ratio_of_a_step_that_rounding_hides_is_its_limit(
    dtype: torch.dtype, actual: float, predicted: float, refused: bool, ratio: float
) -> None:
    h, refusal = torch.ones(1, dtype=dtype), torch.tensor([refused])
    u = torch.ones(1, 1, dtype=dtype)
    model = QuadraticModel(torch.zeros_like, gradient=predicted * u, direction=u, residual=u, damping=h)
    change = Change(h, h + actual, lambda s: h, model, u, None, refusal)
    found, products = RatioAtUpdate()(change)
    assert products == 1 and found.item() == pytest.approx(ratio, rel=1e-6, nan_ok=True)


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
    ],
)
def test_a_damping_rule_gives_its_value_by_hand(
    rule: Callable[[Tensor, Tensor], Tensor], damping: float, ratio: float, after: float
) -> None:
    found = rule(torch.tensor([damping], dtype=torch.float64), torch.tensor([ratio], dtype=torch.float64))
    assert found.item() == pytest.approx(after, rel=1e-14)


def test_the_hyperbolic_step_is_half_of_itself_after_tau_steps() -> None:
    lr, tau = torch.tensor([0.4, 0.4]), torch.tensor([1.0, 100.0])
    rule = HyperbolicStep()
    found = [rule(lr, {"lr": lr, "halving": tau}, torch.tensor([t, t])).tolist() for t in (1, 2, 101)]
    assert found[0] == pytest.approx([0.4, 0.4]) and found[1] == pytest.approx([0.2, 0.4 / 1.01])
    assert found[2] == pytest.approx([0.4 / 101, 0.2])
