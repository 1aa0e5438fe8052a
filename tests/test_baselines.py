"""Recipes without a linear system and natural gradient, against PyTorch and dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev
from torch.nn import functional as F

from ahf_cli.optim import State, compose
from ahf_cli.optim import hessian as exact_hessian
from ahf_cli.optim.explicit import hutchinson_diagonal, rademacher, spatial_average
from ahf_cli.optim.muon import orthogonalized
from ahf_cli.recipes.builtin import RECIPES
from tests.problems import dense_loss, dense_outputs, problem, quadratic, rows

TORCH: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd_momentum": (torch.optim.SGD, {"lr": 0.07, "momentum": 0.8}),
    "nesterov": (torch.optim.SGD, {"lr": 0.07, "momentum": 0.8, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.07}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.07}),
    "adam": (torch.optim.Adam, {"lr": 0.07}),
    "adamw": (torch.optim.AdamW, {"lr": 0.07}),
    "nadam": (torch.optim.NAdam, {"lr": 0.07}),
}


@pytest.fixture
def double() -> Iterator[None]:
    """Let NAdam of torch keep its product of momenta in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", TORCH)
def test_a_first_order_recipe_is_the_optimizer_of_torch_step_by_step(name: str) -> None:
    """Two rows have two learning rates, and each step begins from a saved state."""
    make, options = TORCH[name]
    factors = (1.0, 0.1)
    theta = rows(problem("mlp"), 1)
    recipe, core = RECIPES[name], compose(RECIPES[name].structure)
    values = recipe.complete({k: options[k] for k in recipe.free})
    spread = {k: torch.tensor([v, v], dtype=torch.float64) for k, v in values.items()}
    spread["lr"] *= torch.tensor(factors)
    state = core.init(theta.expand(2, -1).clone(), spread)
    leaves = [nn.Parameter(theta[0].clone()) for _ in factors]
    rates = spread["lr"].tolist()
    theirs = [make([leaf], **{**options, "lr": lr}) for leaf, lr in zip(leaves, rates, strict=True)]
    for step in range(8):
        objective = problem("mlp", seed=step)
        state, info = core.step(State(**state.state_dict()), objective)
        for k, (leaf, optimizer) in enumerate(zip(leaves, theirs, strict=True)):
            optimizer.zero_grad()
            loss = F.cross_entropy(dense_outputs(objective)(leaf), objective.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            torch.testing.assert_close(state.parameters[k], leaf.detach(), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(info.loss[k], loss.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(info.loss_after, objective.value(state.parameters))
    assert info.gradients == 1 and info.products.tolist() == [0, 0] and info.cg_iterations.tolist() == [0, 0]


def test_muon_is_that_of_torch_on_matrices_and_adamw_on_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's iterates in bfloat16; here it stays in float64.  Convolutions are out × in·k² there."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    objective, recipe = problem("conv"), RECIPES["muon"]
    theta, core = rows(objective, 2), compose(RECIPES["muon"].structure)
    state = core.init(theta.clone(), recipe.complete({"lr": 0.01}))
    layout = objective.layout
    pieces = [nn.Parameter(p[0].flatten(1) if p.dim() > 2 else p[0]) for p in layout.split(theta.clone())]
    theirs: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [p for p in pieces if p.dim() == 2], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW([p for p in pieces if p.dim() == 1], lr=0.01, weight_decay=0.01),
    ]
    for step in range(4):
        objective = problem("conv", seed=step)
        before = [p.detach().clone() for p in pieces]
        gradient = objective.evaluate(state.parameters).gradient
        state, info = core.step(state, objective)
        for p, g in zip(pieces, layout.split(gradient), strict=True):
            p.grad = g[0].reshape(p.shape).clone()
        for optimizer in theirs:
            optimizer.step()
        for p, old, u in zip(pieces, before, layout.split(info.update), strict=True):
            torch.testing.assert_close(p.detach() - old, u[0].reshape(p.shape), rtol=1e-6, atol=1e-9)


def test_orthogonalized_matrices_keep_singular_vectors_and_lose_singular_values() -> None:
    for shape in ((2, 5, 3), (2, 3, 5)):
        matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
        inner = u.mT @ orthogonalized(matrices) @ vh.mT
        values = inner.diagonal(dim1=-2, dim2=-1)
        assert values.min() > 0.6 and values.max() < 1.3
        torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-12)


def test_the_probed_diagonal_is_unbiased_with_the_variance_of_independent_signs() -> None:
    """E z⊙Hz = diag H, and for signs Var_i = Σ_{j≠i} H_ij²; a constant probe would give the row sums."""
    objective = problem("conv")
    theta = rows(objective, 1)
    operator = objective.evaluate(theta).operator(exact_hessian)
    dense = hessian(dense_loss(objective))(theta[0])
    count = 800
    drawn = torch.stack([hutchinson_diagonal(operator, rademacher(t, theta))[0] for t in range(count)])
    variance = dense.square().sum(dim=1) - dense.diagonal().square()
    scores = (drawn.mean(dim=0) - dense.diagonal()) / (variance / count).sqrt().clamp_min(1e-12)
    certain = variance < 1e-20  # rows without anything off the diagonal are exact
    assert scores[~certain].abs().max() < 5 and scores[~certain].square().mean() < 1.5
    torch.testing.assert_close(drawn.mean(dim=0)[certain], dense.diagonal()[certain], rtol=0, atol=1e-10)
    assert ((drawn.var(dim=0) / variance)[~certain] - 1).abs().mean() < 0.15
    sums = dense.sum(dim=1) - dense.diagonal()
    assert (sums.abs() > 6 * (variance / count).sqrt())[~certain].any()  # it would have been seen


def test_probes_are_signs_equal_in_all_rows_and_new_at_every_step() -> None:
    like = torch.zeros(3, 2000, dtype=torch.float64)
    first, second = rademacher(1, like), rademacher(2, like)
    assert set(first.flatten().tolist()) == {-1.0, 1.0} and torch.equal(first[0], first[2])
    assert abs(first[0].mean()) < 0.1 and abs((first[0] * second[0]).mean()) < 0.1
    assert torch.equal(first, rademacher(1, like))


def test_spatial_averaging_is_over_the_positions_of_a_kernel_alone() -> None:
    layout = problem("conv").layout
    diagonal = torch.arange(2 * layout.size, dtype=torch.float64).reshape(2, -1)
    averaged, pieces = layout.split(spatial_average(diagonal, layout)), layout.split(diagonal)
    for name, after, before in zip(layout.names, averaged, pieces, strict=True):
        if name in ("conv1.weight", "conv2.weight"):
            mean = before.mean(dim=(3, 4), keepdim=True).expand_as(before)
            torch.testing.assert_close(after, mean)
        else:
            assert torch.equal(after, before)


def test_adahessian_on_a_diagonal_quadratic_is_the_update_of_its_paper() -> None:
    """One probe gives the diagonal of such a Hessian exactly, so two steps are known by hand."""
    diagonal = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    objective = quadratic(torch.diag(diagonal), torch.zeros(3, dtype=torch.float64))
    theta = torch.ones(1, 3, dtype=torch.float64)
    core = compose(RECIPES["adahessian"].structure)
    h = {"lr": 0.5, "beta1": 0.9, "beta2": 0.99, "mu": 1e-3, "hessian_power": 0.5}
    state, info = core.step(core.init(theta, h), objective)
    expected = 1 - 0.5 * diagonal / (diagonal**0.5 + 1e-3)
    torch.testing.assert_close(state.parameters[0], expected)
    assert info.products.item() == 1 and info.gradients == 1
    gradient = diagonal * expected
    mean = (0.9 * 0.1 * diagonal + 0.1 * gradient) / (1 - 0.9**2)
    state, _ = core.step(state, objective)
    torch.testing.assert_close(state.parameters[0], expected - 0.5 * mean / (diagonal**0.5 + 1e-3))


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_fisher_matrix_is_the_mean_of_outer_products_of_scores(name: str) -> None:
    objective = problem(name, examples=5)
    theta = rows(objective, 2)
    evaluation = objective.evaluate(theta)
    vectors = rows(objective, 2, seed=3)
    product = evaluation.operator(RECIPES["natural_gradient"].structure.part("curvature"))(vectors)
    for k in range(2):

        def log_p(t: Tensor) -> Tensor:
            return torch.log_softmax(dense_outputs(objective)(t), dim=-1)

        scores = jacrev(log_p)(theta[k])  # (N, C, P)
        weights = log_p(theta[k]).exp() / len(scores)
        fisher = torch.einsum("nc,ncp,ncq->pq", weights, scores, scores)
        torch.testing.assert_close(product[k], fisher @ vectors[k], rtol=1e-9, atol=1e-11)


def test_natural_gradient_steps_against_the_damped_fisher_inverse_times_the_gradient() -> None:
    objective = problem("softmax_regression", examples=30)
    theta = rows(objective, 1)
    structure = RECIPES["natural_gradient"].derive("n", {"max_iterations": 400}).choices
    core = compose(structure)
    state, info = core.step(core.init(theta, {"lr": 0.3, "damping": 0.1}), objective)
    logits = dense_outputs(objective)
    p = torch.softmax(logits(theta[0]), dim=-1)
    jacobian = jacrev(logits)(theta[0])  # (N, C, P)
    blocks = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    fisher = torch.einsum("ncp,ncd,ndq->pq", jacobian, blocks, jacobian) / len(p)
    gradient = objective.evaluate(theta).gradient[0]
    direction = torch.linalg.solve(fisher + 0.1 * torch.eye(len(fisher), dtype=torch.float64), -gradient)
    torch.testing.assert_close(info.update[0], 0.3 * direction, rtol=2e-2, atol=1e-4)
    assert state.damping.item() == 0.1


def test_clipped_gradients_are_those_of_torch_step_by_step() -> None:
    """Two rows with bounds of their own: one cuts every gradient, one cuts none."""
    objective = problem("mlp")
    theta, bounds = rows(objective, 2), (0.05, 100.0)
    recipe = RECIPES["adam"].derive("clipped", {"gradient_clipping": "norm"})
    core = compose(recipe.structure)
    state = core.init(theta, {**recipe.complete({"lr": 0.05}), "gradient_radius": torch.tensor(bounds)})
    expected = []
    for start, bound in zip(theta, bounds, strict=True):
        leaf = start.clone().requires_grad_()
        pieces = [p[0] for p in objective.layout.split(leaf[None])]
        leaves = [nn.Parameter(p.detach().clone()) for p in pieces]
        theirs = torch.optim.Adam(leaves, lr=0.05)
        path = []
        for step in range(8):
            batch, vector = problem("mlp", seed=step), torch.cat([p.detach().flatten() for p in leaves])
            slope = batch.evaluate(vector[None]).gradient
            for own, g in zip(leaves, batch.layout.split(slope), strict=True):
                own.grad = g[0].clone()
            norm = nn.utils.clip_grad_norm_(leaves, bound)
            assert (norm > bound) == (bound < 1)
            theirs.step()
            path.append(torch.cat([p.detach().flatten() for p in leaves]))
        expected.append(torch.stack(path))
    for step in range(8):
        state, _ = core.step(state, problem("mlp", seed=step))
        for k in range(2):
            torch.testing.assert_close(state.parameters[k], expected[k][step], rtol=1e-9, atol=1e-12)


def test_gradient_clipping_is_for_first_order_recipes() -> None:
    for name, line in (
        ("hf_martens", "gradient_clipping is for first-order recipes, and hf_martens is Hessian-free"),
        ("adahessian", "gradient_clipping must be none for diagonal adahessian, got 'norm'"),
        ("lm", "gradient_clipping must be none for least_squares lm, got 'norm'"),
    ):
        with pytest.raises(ValueError, match=line):
            RECIPES[name].derive("x", {"gradient_clipping": "norm"})
    with pytest.raises(ValueError, match="gradient_clipping must be one of none, norm, got 'value'"):
        RECIPES["adam"].derive("x", {"gradient_clipping": "value"})
    with pytest.raises(ValueError, match=r"gradient_radius must be in \(0, inf\), got 0"):
        RECIPES["adam"].derive("x", {"gradient_clipping": "norm", "gradient_radius": 0.0})
    with pytest.raises(ValueError, match="gradient_radius has no effect in 'x'"):
        RECIPES["adam"].derive("x", {"gradient_radius": 1.0})
