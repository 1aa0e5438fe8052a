"""K-FAC on differential equations, against torch.func and dense Jacobians, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd, jacrev

from ahf_cli.optim import ModelObjective, compose, gauss_newton
from ahf_cli.optim.kronecker import Kfac
from ahf_cli.optim.layer_statistics import Draw
from ahf_cli.optim.losses import LeastSquares
from ahf_cli.optim.preconditioners import Surroundings
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.recipes.recipe import Recipe
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.equations import Equation, Residuals, Term, drawn
from ahf_cli.tasks.jets import Jet
from ahf_cli.tasks.poisson import inside
from ahf_cli.tasks.task import Task
from tests.problems import rows

SECOND = (1.0, -0.5)
DAMPING = 0.3


def _inner(u: Jet, x: Tensor) -> Tensor:
    return u.second + 3 * u.value * u.gradient[..., 0] - x[..., 1]


def _edge(u: Jet, x: Tensor) -> Tensor:
    return u.value - x.prod(dim=-1)


def two_terms(counts: tuple[int, int] = (4, 3)) -> Equation:
    terms = [
        Term(name, count, lambda random, n: inside(random, n, 2), residual, weight)
        for name, count, residual, weight in zip(
            ("inner", "edge"), counts, (_inner, _edge), (1.0, 4.0), strict=True
        )
    ]
    return Equation(tuple(terms), lambda x: x.prod(dim=-1), SECOND)


def problem(equation: Equation, net: nn.Module | None = None, seeds: int = 1) -> ModelObjective:
    """The equation's points, in row 0 ordered by term; with several seeds a batch of its own for each row."""
    net = net or nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    batches = [drawn("two", equation, (seed,)) for seed in range(seeds)]
    # Points of row k have moved by k places, so that the weights of the rows differ.
    x, y = (
        torch.stack([getattr(b, name).roll(k, 0) for k, b in enumerate(batches)])
        for name in ("images", "labels")
    )
    own = seeds > 1
    model = Residuals(net, equation).double()
    return ModelObjective(
        model, x if own else x[0], y if own else y[0], LeastSquares(), own_batches=own, chain=None
    )


def layer_vectors(h: ModelObjective, theta: Tensor, layer: int, n: int) -> tuple[Tensor, Tensor]:
    """The d + 2 inputs (T, in + 1) and cotangents (T, out) of a layer at point n, from Taylor expansions.

    Outputs y + Σ t_i y_i + ½ t_0² s/c_0 of the layer have the value y, the first derivatives y_i, and the
    second-order term s, at t = 0.
    """
    model = h.model
    assert isinstance(model, Residuals)
    named = {name: p[0] for name, p in zip(h.layout.names, h.layout.split(theta[None]), strict=True)}
    own = {name.removeprefix("net."): p for name, p in named.items()}
    before, module, after = model.net[:layer], model.net[layer], model.net[layer + 1 :]
    x, kind = h.inputs[n, :-1], int(h.inputs[n, -1])
    c = torch.tensor(model.equation.second, dtype=torch.float64)

    def through(part: nn.Sequential, z: Tensor) -> Tensor:
        """A part of the network keeps the names of its layers."""
        weights = {key: own[key] for key, _ in part.named_parameters()}
        return functional_call(part, weights, (z,), strict=True)  # type: ignore[no-any-return]

    def a(x: Tensor) -> Tensor:
        return through(before, x)

    curves = torch.einsum("oii,i->o", hessian(a)(x), c)
    inputs = torch.stack([a(x), *jacfwd(a)(x).T, curves])
    ones = torch.tensor([[1.0], *[[0.0]] * (len(x) + 1)], dtype=torch.float64)
    weight, bias = own[f"{layer}.weight"], own[f"{layer}.bias"]
    outputs = inputs @ weight.T + ones * bias
    assert isinstance(module, nn.Linear)

    def residual(y: Tensor) -> Tensor:
        def u(t: Tensor) -> Tensor:
            return through(after, y[0] + t @ y[1:-1] + 0.5 * t[0] ** 2 * y[-1] / c[0])[0]

        at = torch.zeros_like(x)
        jet = Jet(u(at), jacrev(u)(at), hessian(u)(at).diagonal() @ c)
        return model.equation.terms[kind].residual(jet, x)

    return torch.cat([inputs, ones], dim=1), jacrev(residual)(outputs)


def fitted(h: ModelObjective, theta: Tensor, estimate: Kfac) -> dict[str, Tensor]:
    here = h.evaluate(theta)
    damping, steps = torch.full((len(theta),), DAMPING).double(), torch.zeros(len(theta), dtype=torch.int64)
    return dict(estimate(Surroundings(here, here.operator(gauss_newton), damping, steps)).memory)


def test_factors_are_sums_over_the_value_and_all_derivatives() -> None:
    h = problem(two_terms())
    theta, count = rows(h, 1), len(h.inputs)
    drawn_labels, exact = (fitted(h, theta, Kfac(exact=exact)) for exact in (False, True))
    for layer in (0, 2):
        found = [layer_vectors(h, theta[0], layer, n) for n in range(count)]
        a = sum(a.T @ a for a, _ in found) / count
        g = sum(w * g.T @ g for (_, g), w in zip(found, h.targets[:, 0], strict=True)) / (4 * count)
        for memory in (drawn_labels, exact):
            torch.testing.assert_close(memory[f"net.{layer}.weight.A"][0], a)
            torch.testing.assert_close(memory[f"net.{layer}.weight.G"][0], g)
    assert float(h.targets[0, 0]) != float(h.targets[-1, 0])


def blocks(h: ModelObjective, theta: Tensor, name: str) -> Tensor:
    """∂ρ/∂[W | b] of a layer, (N, out, in + 1)."""
    pieces = h.layout.split(h.jacobian(theta, 0))
    named = dict(zip(h.layout.names, pieces, strict=True))
    return torch.cat([named[f"{name}.weight"], named[f"{name}.bias"][..., None]], dim=-1)


def test_the_sum_over_vectors_is_the_jacobian_and_ekfac_has_its_diagonal() -> None:
    deep = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 1))
    h = problem(two_terms(), deep)
    theta = rows(h, 1)
    layers = h.evaluate(theta).fisher(Draw(0)).layers
    memory = fitted(h, theta, Kfac(corrected=True))
    for layer, name in zip(layers, ("net.0", "net.2", "net.4"), strict=True):
        jacobian = blocks(h, theta, name)
        summed = torch.einsum("nto,nti->noi", layer.cotangents[0, 0], layer.inputs[0])
        torch.testing.assert_close(summed / len(h.inputs) ** 0.5, jacobian)
        turned = memory[f"{name}.weight.g"][0].T @ jacobian @ memory[f"{name}.weight.a"][0]
        torch.testing.assert_close(memory[f"{name}.weight.s"][0], turned.square().sum(dim=0))


def test_a_block_is_exact_if_each_term_sees_one_vector_at_the_same_points() -> None:
    """Without a unit, J_n is the vector of its term, and A is independent of the cotangents."""

    def points(random: object, n: int) -> object:
        return torch.linspace(0.1, 0.8, n).double()[:, None].numpy()

    residuals = (
        lambda u, x: 2 * u.value - x[..., 0],
        lambda u, x: 2 * u.gradient[..., 0] + 1,
        lambda u, x: 2 * u.second + 0 * u.value,
    )
    terms = tuple(Term(str(n), 4, points, residual) for n, residual in enumerate(residuals))  # type: ignore[arg-type]
    h = problem(Equation(terms, lambda x: x[..., 0], (1.0,)), nn.Sequential(nn.Linear(1, 1)))
    theta = rows(h, 1)
    memory, jacobian = fitted(h, theta, Kfac()), blocks(h, theta, "net.0")[:, 0]
    dense = jacobian.T @ jacobian
    block = torch.kron(memory["net.0.weight.G"][0], memory["net.0.weight.A"][0])
    torch.testing.assert_close(block, dense)
    assert float(dense[0, 1]) > 0.1


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("seeds", [1, 3])
def test_each_row_has_the_statistics_of_its_own_weights_and_points(seeds: int, vectorized: bool) -> None:
    h = problem(two_terms(), seeds=seeds)
    h.vectorized = vectorized
    theta = rows(h, 3)
    memory = fitted(h, theta, Kfac())
    for k in range(3):
        x, y = (t[k] if seeds > 1 else t for t in (h.inputs, h.targets))
        alone = fitted(ModelObjective(h.model, x, y, h.loss, chain=None), theta[k : k + 1], Kfac())
        for name, value in alone.items():
            torch.testing.assert_close(memory[name][k], value[0])


def test_a_part_of_the_points_is_never_taken_since_it_may_lack_a_term() -> None:
    h = problem(two_terms((200, 20)))
    theta = rows(h, 1)
    assert Draw(0, part=4).taken(220) == 55 and not h.inputs[:55, -1].any()
    whole, part = (fitted(h, theta, Kfac(part=n)) for n in (1, 4))
    for name, value in whole.items():
        assert torch.equal(value, part[name])


HF_KFAC = RECIPES["hf_careful"].derive("hf_kfac", {"preconditioner": "kfac"})


@pytest.mark.parametrize("recipe", [RECIPES["kfac"], HF_KFAC], ids=lambda recipe: recipe.name)
def test_a_fit_has_no_layers_and_is_refused(recipe: Recipe) -> None:
    data = load(None, "paper", None, DATA_SETS["lanczos"])
    own = Task.on(data, "lanczos", len(data.train), "cpu", torch.float64, "least_squares")
    core = compose(recipe.choices)
    state = core.init(own.initial(0)[None], recipe.complete({}))
    with pytest.raises(ValueError, match="need a model with linear layers or convolutions, got Parameters"):
        core.step(state, own.batch([0], 1, 0))


def poisson() -> Task:
    points = load(None, "paper", None, DATA_SETS["poisson2d_sin"])
    return Task.on(points, "tanh_64", len(points.train), "cpu", torch.float64, "least_squares")


def test_as_a_preconditioner_it_keeps_the_solution_with_the_documented_iterations() -> None:
    own = poisson()
    h, theta = own.batch([0], 1, 0), own.initial(0)[None]
    gradient, jacobian = h.evaluate(theta).gradient[0], h.jacobian(theta, 0)
    expected = torch.linalg.solve(jacobian.T @ jacobian + 0.01 * torch.eye(len(gradient)), -gradient)
    for name, iterations in (("none", 9), ("kfac", 21)):
        choices = {
            "preconditioner": name, "regularization": "none", "max_iterations": 1000, "backtracking": "none",
            "cg_rules": "forcing",
        }  # fmt: skip
        core = compose(RECIPES["hf_martens"].derive("x", choices).choices)
        state = core.init(theta, {"lr": 1.0, "damping": 0.01})
        state = replace(state, first_gradient=1e24 * gradient.square().sum()[None])  # ‖r‖ ≤ 1e-6 ‖g‖
        found = core.solve(state, h).cg
        torch.testing.assert_close(found.solution[0], expected, rtol=1e-3, atol=1e-4)
        assert abs(int(found.iterations.item()) - iterations) <= 2  # docs/equations.md


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_it_trains_a_network_on_poissons_equation(name: str) -> None:
    own, recipe = poisson(), RECIPES[name]
    core = compose(recipe.choices)
    state = core.init(own.initial(0)[None], recipe.complete({"lr": 1.0, "damping": 1e-2}))
    h = own.batch([0], 1, 0)
    before = float(h.value(state.parameters))
    for _ in range(60):
        state, _ = core.step(state, h)
    assert float(h.value(state.parameters)) < 0.1 * before
