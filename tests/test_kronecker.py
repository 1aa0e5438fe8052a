"""K-FAC, EKFAC and the low-rank estimate, against dense matrices and loops over examples."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from ahf_cli.config.load import parse
from ahf_cli.errors import InputError
from ahf_cli.optim import ModelObjective, State, compose, gauss_newton
from ahf_cli.optim.kronecker import DECAY, Kfac
from ahf_cli.optim.losses import Likelihood, MeanLoss, SoftmaxCrossEntropy, SquaredError
from ahf_cli.optim.nystrom import Nystrom
from ahf_cli.optim.preconditioners import Fitted, Surroundings
from ahf_cli.recipes.builtin import RECIPES
from tests.problems import dense_loss, dense_outputs, problem, quadratic, rows, spd

DAMPING = 0.3


def regression(model: nn.Module, examples: int = 9, shape: tuple[int, ...] = (4,)) -> ModelObjective:
    source = torch.Generator().manual_seed(3)
    x = torch.randn(examples, *shape, generator=source, dtype=torch.float64)
    y = torch.randn(model.double()(x).shape, generator=source, dtype=torch.float64)
    return ModelObjective(model, x, y, SquaredError())


def fitted(
    h: ModelObjective, theta: Tensor, estimate: Callable[[Surroundings], Fitted], step: int = 0
) -> Fitted:
    here = h.evaluate(theta)
    damping, steps = torch.full((len(theta),), DAMPING, dtype=theta.dtype), torch.full((len(theta),), step)
    return estimate(Surroundings(here, here.operator(gauss_newton), damping, steps))


def dense_ggn(h: ModelObjective, theta: Tensor) -> Tensor:
    """Jᵀ H_L J of one row, (P, P)."""
    jacobian = jacrev(dense_outputs(h))(theta)
    z = dense_outputs(h)(theta)[None]
    assert isinstance(h.loss, Likelihood)
    each = torch.einsum("sknc,ncp->snp", h.loss.roots(z, h.targets), jacobian)
    return torch.einsum("snp,snq->pq", each, each) / len(h.inputs)


def solved(found: Fitted, size: int) -> Tensor:
    """M⁻¹ of row 0, (P, P)."""
    assert found.scaling is not None
    count = next(iter(found.memory.values())).shape[0]
    columns = torch.eye(size, dtype=torch.float64)
    return torch.stack([found.scaling.solve(e.expand(count, -1))[0] for e in columns], dim=1)


def kronecker(memory: Mapping[str, Tensor], name: str) -> Tensor:
    """G ⊗ A of row 0 in the order of [W | b] row by row."""
    return torch.kron(memory[f"{name}.G"][0], memory[f"{name}.A"][0])


def joined(h: ModelObjective, layer: str) -> list[int]:
    """The entries of a layer's [W | b] in a row of θ, in the order of the Kronecker product."""
    index = h.layout.split(torch.arange(h.layout.size)[None])
    named = {name: piece[0] for name, piece in zip(h.layout.names, index, strict=True)}
    weight = named[f"{layer}weight"].flatten(1)
    bias = named.get(f"{layer}bias")
    whole = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)
    return whole.flatten().tolist()


@pytest.mark.parametrize("bias", [True, False])
def test_one_linear_layer_with_a_gaussian_likelihood_is_exact(bias: bool) -> None:
    """F = 2 A ⊗ I there: EKFAC's (F + λI)⁻¹ is exact, and K-FAC's follows from its damped factors."""
    h = regression(nn.Linear(4, 3, bias=bias))
    theta = rows(h, 1)
    dense, order = dense_ggn(h, theta[0]), joined(h, "")
    found = fitted(h, theta, Kfac(exact=True))
    torch.testing.assert_close(kronecker(found.memory, "weight"), dense[order][:, order])
    inverse = solved(fitted(h, theta, Kfac(corrected=True, exact=True)), h.layout.size)
    torch.testing.assert_close(inverse, torch.linalg.inv(dense + DAMPING * torch.eye(len(dense))))
    a, g = (found.memory[f"weight.{key}"][0] for key in "AG")
    pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
    damped = torch.kron(g + DAMPING**0.5 / pi * torch.eye(len(g)), a + pi * DAMPING**0.5 * torch.eye(len(a)))
    torch.testing.assert_close(solved(found, h.layout.size)[order][:, order], torch.linalg.inv(damped))


def test_the_blocks_of_a_linear_network_are_those_of_the_dense_fisher_matrix() -> None:
    """Without curves the cotangents do not depend on the inputs, and each block is a Kronecker product."""
    h = regression(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2, bias=False), nn.Linear(2, 3)))
    theta = rows(h, 1)
    dense = dense_ggn(h, theta[0])
    for corrected in (False, True):
        found = fitted(h, theta, Kfac(corrected=corrected, exact=True))
        inverse = solved(found, h.layout.size)
        for layer in ("0.", "1.", "2."):
            order = joined(h, layer)
            block = dense[order][:, order]
            torch.testing.assert_close(kronecker(found.memory, f"{layer}weight"), block)
            if corrected:
                expected = torch.linalg.inv(block + DAMPING * torch.eye(len(block)))
                torch.testing.assert_close(inverse[order][:, order], expected)
                others = [n for n in range(h.layout.size) if n not in order]
                assert not inverse[order][:, others].any()


class Reference:
    """Inputs and output cotangents of every layer, example by example, by retained gradients."""

    def __init__(self, h: ModelObjective, theta: Tensor):
        self.inputs: dict[str, list[Tensor]] = {}
        self.cotangents: dict[str, list[Tensor]] = {}
        named = {n: p[0] for n, p in zip(h.layout.names, h.layout.split(theta[None]), strict=True)}
        outputs: list[tuple[str, Tensor]] = []

        def hook(name: str) -> Any:
            def seen(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
                y.requires_grad_() if not y.requires_grad else None
                y.retain_grad()
                self.inputs.setdefault(name, []).append(args[0][0].detach())
                outputs.append((name, y))

            return seen

        layers = [(n, m) for n, m in h.model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        handles = [m.register_forward_hook(hook(n)) for n, m in layers]
        assert isinstance(h.loss, Likelihood)
        for x in h.inputs:
            outputs.clear()
            z = functional_call(h.model, named, (x[None],))
            for s in h.loss.roots(z.detach()[None], h.targets)[:, 0, 0]:
                for _, y in outputs:
                    y.grad = None
                z[0].backward(s, retain_graph=True)
                for name, y in outputs:
                    assert y.grad is not None
                    self.cotangents.setdefault(name, []).append(y.grad[0].clone())
        for handle in handles:
            handle.remove()


def test_factors_of_convolutions_are_sums_over_patches_and_means_over_positions() -> None:
    h = problem("conv", examples=5)
    theta = rows(h, 2)
    found = fitted(h, theta, Kfac(exact=True))
    for k in range(2):
        by_hand = Reference(h, theta[k])
        for name, size in (("conv1", 3), ("conv2", 2)):
            patches = torch.cat([F.unfold(x[None], size)[0].T for x in by_hand.inputs[name]])
            if name == "conv1":  # the other convolution has no bias
                patches = torch.cat([patches, torch.ones(len(patches), 1)], dim=1)
            g = torch.cat([y.flatten(1).T for y in by_hand.cotangents[name]])
            torch.testing.assert_close(found.memory[f"{name}.weight.A"][k], patches.T @ patches / 5)
            positions = by_hand.cotangents[name][0][0].numel()
            torch.testing.assert_close(found.memory[f"{name}.weight.G"][k], g.T @ g / (5 * positions))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_products_with_the_factors_are_those_of_curvlinops(name: str) -> None:
    h = problem(name, examples=7)
    theta, v = rows(h, 1), rows(h, 1, seed=5)
    with torch.no_grad():
        for p, piece in zip(h.model.parameters(), h.layout.split(theta), strict=True):
            p.copy_(piece[0])
    operator = importlib.import_module("curvlinops").KFACLinearOperator(
        h.model, nn.CrossEntropyLoss(), list(h.model.parameters()), [(h.inputs, h.targets)],
        fisher_type="type-2", separate_weight_and_bias=False,
    )  # fmt: skip
    theirs = torch.cat([p.flatten() for p in operator @ [piece[0] for piece in h.layout.split(v)]])
    memory = fitted(h, theta, Kfac(exact=True)).memory
    for layer in {n.removesuffix("weight").removesuffix("bias") for n in h.layout.names}:
        order = joined(h, layer)
        ours = kronecker(memory, f"{layer}weight") @ v[0][order]
        torch.testing.assert_close(ours, theirs[order].detach())


def test_ekfac_has_the_diagonal_of_the_fisher_matrix_in_its_basis() -> None:
    h = problem("conv", examples=5)
    theta = rows(h, 1)
    found = fitted(h, theta, Kfac(corrected=True, exact=True))
    dense = dense_ggn(h, theta[0])
    for layer in ("conv1.", "conv2.", "fc.", "out."):
        order = joined(h, layer)
        basis = torch.kron(*(found.memory[f"{layer}weight.{key}"][0] for key in ("g", "a")))
        diagonal = (basis.T @ dense[order][:, order] @ basis).diagonal()
        torch.testing.assert_close(found.memory[f"{layer}weight.s"][0].flatten(), diagonal)


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(), SquaredError()])
def test_vectors_of_a_loss_have_its_curvature_and_drawn_ones_have_it_in_the_mean(loss: Likelihood) -> None:
    z = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(3, dtype=torch.int64) if isinstance(loss, SoftmaxCrossEntropy) else torch.zeros(3, 4)
    units = torch.eye(4, dtype=torch.float64)
    curvature = torch.stack([3 * loss.hessian(z, y)(e.expand_as(z)) for e in units], dim=-1)
    roots = loss.roots(z, y)
    torch.testing.assert_close(torch.einsum("sknc,sknd->kncd", roots, roots), curvature)
    many = [loss.drawn(z, y, torch.Generator().manual_seed(n))[0] for n in range(4000)]
    mean = torch.stack([torch.einsum("knc,knd->kncd", s, s) for s in many]).mean(dim=0)
    # Entries are of size 1, and a mean of 4,000 of them has a standard error of at most 2/√4000.
    torch.testing.assert_close(mean, curvature, rtol=0, atol=4 * 2 / 4000**0.5)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("name", ["kfac", "ekfac", "hf_nystrom"])
def test_rows_are_independent_and_a_saved_state_continues_bitwise(name: str, vectorized: bool) -> None:
    recipe = RECIPES[name].derive("x", {"renewal": 4})
    core = compose(recipe.choices)
    theta = rows(problem("conv"), 3)
    states = [core.init(part, recipe.complete({})) for part in (theta, theta[1:2])]
    for step in range(9):
        h = problem("conv", seed=step, vectorized=vectorized)
        states = [core.step(State(**state.state_dict()), h)[0] for state in states]
    torch.testing.assert_close(states[0].parameters[1], states[1].parameters[0], rtol=1e-8, atol=1e-10)
    assert (states[0].parameters - theta).abs().max() > 1e-3


class Normed(nn.Module):
    """A layer that is called twice, and one whose parameters have no Kronecker factors; (N, 4) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm, self.out = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.twice(torch.tanh(self.twice(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_repeated_layer_sums_its_calls_and_other_layers_have_a_diagonal(vectorized: bool) -> None:
    h = regression(Normed())
    h.vectorized = vectorized
    theta = rows(h, 2)
    found = fitted(h, theta, Kfac(exact=True))
    for k in range(2):
        by_hand = Reference(h, theta[k])
        a = torch.stack(by_hand.inputs["twice"])
        a = torch.cat([a, torch.ones(len(a), 1)], dim=1)
        torch.testing.assert_close(found.memory["twice.weight.A"][k], a.T @ a / 9)
        g = torch.stack(by_hand.cotangents["twice"])
        torch.testing.assert_close(found.memory["twice.weight.G"][k], g.T @ g / (9 * 2))
        dense = dense_ggn(h, theta[k]).diagonal()
        pieces = dict(zip(h.layout.names, h.layout.split(found.memory["rest"][k : k + 1]), strict=True))
        known = dict(zip(h.layout.names, h.layout.split(dense[None]), strict=True))
        for name, piece in pieces.items():
            own = known[name] if name.startswith("norm") else torch.zeros_like(piece)
            torch.testing.assert_close(piece, own)
    assert found.scaling is not None
    ones = found.scaling.solve(torch.ones_like(theta))
    norm = h.layout.split(ones)[h.layout.names.index("norm.bias")]
    rest = h.layout.split(found.memory["rest"])[h.layout.names.index("norm.bias")]
    torch.testing.assert_close(norm, 1 / (rest + DAMPING))


def test_factors_move_as_means_and_are_renewed_on_time() -> None:
    """Renewals at steps 0, 1, 2, 4, 8: weights 1 − 1/n, and one more gradient counts there."""
    recipe = RECIPES["kfac"].derive("x", {"renewal": 4})
    core, theta = compose(recipe.choices), rows(problem("mlp"), 1)
    state = core.init(theta, recipe.complete({}))
    before: Tensor | None = None
    for step in range(9):
        h = problem("mlp", seed=step)
        here = state.parameters
        state, info = core.step(state, h)
        renewed = step in (0, 1, 2, 4, 8)
        assert (info.gradients, info.losses, info.products.item()) == (2 if renewed else 1, 0, 0)
        own = state.moments["0.weight.A"]
        if renewed:
            new = fitted(h, here, Kfac(1), step).memory["0.weight.A"]
            count = int(state.moments["renewals"])
            share = min(1 - 1 / count, DECAY)
            expected = new if before is None else share * before + (1 - share) * new
            torch.testing.assert_close(own, expected)
        elif before is not None:
            assert torch.equal(own, before)
        before = own


@pytest.mark.parametrize("name", ["kfac", "ekfac", "hf_nystrom"])
def test_the_update_is_the_preconditioned_mean_of_gradients_within_the_radius(name: str) -> None:
    recipe = RECIPES[name]
    core = compose(recipe.choices)
    values = recipe.complete({"lr": 0.2, "damping": 0.5, "radius": 0.05})
    state = core.init(rows(problem("mlp"), 1), values)
    mean = torch.zeros_like(state.parameters)
    for step in range(3):
        h = problem("mlp", seed=step)
        mean = 0.9 * mean + 0.1 * h.evaluate(state.parameters).gradient
        found = core.solve(state, h).cg.solution
        here = h.evaluate(state.parameters)
        at = Surroundings(
            here, here.operator(gauss_newton), state.damping, state.step, state.moments
        )  # fmt: skip
        scaling = core.preconditioner(at)
        assert scaling is not None and scaling.scaling is not None
        expected = -scaling.scaling.solve(mean / (1 - 0.9 ** (step + 1)))
        torch.testing.assert_close(found, expected)
        state, info = core.step(state, h)
        wanted = 0.2 * expected
        torch.testing.assert_close(info.update, wanted * min(1.0, 0.05 / wanted.norm().item()))


def test_a_rule_for_the_damping_takes_one_product_and_one_loss() -> None:
    recipe = RECIPES["kfac"].derive("x", {"damping_rule": "levenberg_marquardt", "clipping": "none"})
    core, h = compose(recipe.choices), problem("mlp")
    theta = rows(h, 1)
    state, info = core.step(core.init(theta, recipe.complete({"lr": 1.0, "damping": 0.5})), h)
    assert (info.products.item(), info.losses) == (1, 1)
    dense = dense_ggn(h, theta[0])
    u, g = info.update[0], h.evaluate(theta).gradient[0]
    model = g @ u + 0.5 * u @ dense @ u
    torch.testing.assert_close(info.reduction_ratio[0], (dense_loss(h)(theta[0] + u) - info.loss[0]) / model)
    assert state.damping.item() != 0.5


def test_a_low_rank_estimate_is_exact_for_a_matrix_of_that_rank() -> None:
    source = torch.Generator().manual_seed(0)
    half = torch.randn(7, 3, generator=source, dtype=torch.float64)
    matrix, h = half @ half.T, problem("mlp")
    damping = torch.tensor([0.3, 2.0], dtype=torch.float64)
    theta = torch.zeros(2, 7, dtype=torch.float64)
    here = quadratic(matrix, torch.zeros(7, dtype=torch.float64)).evaluate(theta)
    at = Surroundings(here, lambda v: v @ matrix, damping, torch.zeros(2).long())
    for rank, products in ((3, 3), (5, 5), (20, 7)):
        found = Nystrom(10, rank)(at)
        assert found.products == products and found.scaling is not None
        v = torch.randn(2, 7, generator=source, dtype=torch.float64)
        expected = torch.stack(
            [
                torch.linalg.solve(matrix + lam * torch.eye(7), own)
                for lam, own in zip(damping, v, strict=True)
            ]
        )
        torch.testing.assert_close(found.scaling.solve(v), expected, rtol=1e-6, atol=1e-8)
    later = Nystrom(10, 3)(replace(at, step=torch.full((2,), 4), memory=dict(Nystrom(10, 3)(at).memory)))
    assert later.products == 0
    assert h.layout.size > 7


def test_as_preconditioners_they_keep_the_solution_and_save_iterations() -> None:
    """Inputs of sizes 0.1 to 10 make the system ill-conditioned; 494 iterations without a preconditioner."""
    net = nn.Sequential(nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 10))
    h = regression(net, examples=300, shape=(20,))
    h.inputs = h.inputs * torch.logspace(-1, 1, 20)
    theta = 0.3 * rows(h, 1)
    gradient = h.evaluate(theta).gradient[0]
    dense = dense_ggn(h, theta[0]) + 1e-3 * torch.eye(h.layout.size)
    expected = torch.linalg.solve(dense, -gradient)
    iterations = {}
    for name in ("none", "kfac", "nystrom"):
        choices = {
            "preconditioner": name, "regularization": "none", "max_iterations": 1000, "backtracking": "none",
            "cg_rules": "forcing", **({"rank": 35} if name == "nystrom" else {}),
        }  # fmt: skip
        core = compose(RECIPES["hf_martens"].derive("x", choices).choices)
        state = core.init(theta, {"lr": 1.0, "damping": 1e-3})
        state = replace(state, first_gradient=1e24 * gradient.square().sum()[None])  # ‖r‖ ≤ 1e-6 ‖g‖
        found = core.solve(state, h).cg
        torch.testing.assert_close(found.solution[0], expected, rtol=1e-3, atol=1e-4)
        iterations[name] = found.iterations.item()
    assert iterations["kfac"] < 0.4 * iterations["none"] and iterations["nystrom"] < 0.8 * iterations["none"]


def test_damping_towards_the_last_direction_solves_its_system_and_models_the_loss() -> None:
    matrix, b = spd(6, seed=1), torch.arange(6.0, dtype=torch.float64)
    h = quadratic(matrix, b)
    recipe = RECIPES["hf"].derive(
        "x", {"solver": "spring", "curvature_batch": "same", "max_iterations": 60, "damping_rule": "constant"}
    )
    core = compose(recipe.choices)
    state = core.init(torch.ones(2, 6, dtype=torch.float64), recipe.complete({"damping": 0.7, "lr": 0.3}))
    values = state.hyperparameters | {"recall": torch.tensor([0.0, 0.8], dtype=torch.float64)}
    state = replace(state, hyperparameters=values)
    for _ in range(3):
        before, (state, info) = state, core.step(state, h)
        for k, recall in enumerate((0.0, 0.8)):
            g = h.evaluate(before.parameters).gradient[k]
            pull = 0.7 * recall * before.direction[k]
            delta = torch.linalg.solve(matrix + 0.7 * torch.eye(6), pull - g)
            torch.testing.assert_close(info.direction[k], delta, rtol=1e-5, atol=1e-7)
            model = g @ delta + 0.5 * delta @ matrix @ delta
            torch.testing.assert_close(info.model_value[k], model, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "hf", "renewal": 5}, "renewal has no effect with solver cg and preconditioner none"),
        ({"base": "kfac", "rank": 5}, "rank has no effect with solver kfac and preconditioner none"),
        ({"base": "kfac", "renewal": 0}, "renewal must be an integer ≥ 1, got 0"),
        (
            {"base": "kfac", "preconditioner": "martens"},
            "solver: kfac needs preconditioner none, got 'martens'",
        ),
        ({"base": "kfac", "reduction_ratio": "direction"}, "solver: kfac needs reduction_ratio update"),
        ({"base": "hf", "recall": 0.5}, "recall has no effect in 'x'"),
    ],
)
def test_wrong_choices_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse({"study": "s", "recipes": {"x": changes}}, "file")
    assert message in str(caught.value)


def test_a_loss_without_a_distribution_is_refused() -> None:
    h = ModelObjective(nn.Linear(4, 3), torch.zeros(5, 4), torch.zeros(5, 3), MeanLoss(F.mse_loss))
    with pytest.raises(ValueError, match="need a loss with a distribution"):
        fitted(h, torch.zeros(1, 15), Kfac())
