"""Curvature matrices of any model: products, solves and scipy against dense matrices, and errors by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.sparse.linalg import aslinearoperator, cg, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim.matrices import CurvatureMatrix, EmpiricalFisher, GaussNewton, Hessian
from tests.closures import cross_entropy
from tests.problems import MODELS, dense_loss, dense_outputs, problem

SIZE = 127  # parameters of the network "conv"
PAGE = Path(__file__).parents[1] / "docs" / "operators.md"


def assert_near(found: Any, expected: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def numbers(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    objective = problem(name)
    return objective.model, objective.inputs, objective.targets


def both_forms(kind: type[CurvatureMatrix], name: str) -> list[CurvatureMatrix]:
    model, x, y = case(name)
    closure = cross_entropy(model, x, y, outputs=kind is GaussNewton)
    return [kind.of(model, x, y), kind(closure, model.named_parameters())]


def dense(kind: type[CurvatureMatrix], name: str) -> tuple[Tensor, Tensor]:
    """∇h and B, by torch.func alone."""
    torch.manual_seed(0)
    objective = problem(name)
    theta = nn.utils.parameters_to_vector(objective.model.parameters()).detach()
    gradient = torch.func.grad(dense_loss(objective))(theta)
    if kind is Hessian:
        return gradient, torch.func.hessian(dense_loss(objective))(theta)
    outputs = dense_outputs(objective)
    n = len(objective.targets)
    if kind is EmpiricalFisher:
        each = torch.func.jacrev(lambda t: F.cross_entropy(outputs(t), objective.targets, reduction="none"))
        return gradient, each(theta).T @ each(theta) / n
    p = outputs(theta).softmax(-1)
    blocks = torch.block_diag(*[torch.diag(q) - torch.outer(q, q) for q in p])  # type: ignore[no-untyped-call]
    jacobian = torch.func.jacrev(outputs)(theta).flatten(0, 1)
    return gradient, jacobian.T @ blocks @ jacobian / n


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher])
def test_all_columns_equal_the_dense_matrix(kind: type[CurvatureMatrix], name: str) -> None:
    gradient, expected = dense(kind, name)
    made = both_forms(kind, name) if kind is not EmpiricalFisher else [kind.of(*case(name))]
    for b in made:
        size = len(gradient)
        assert (b.shape, b.dtype, b.device) == ((size, size), torch.float64, torch.device("cpu"))
        found = b @ torch.eye(size, dtype=torch.float64)
        assert_near(found, expected)
        assert_near(found, found.T)
        assert_near(b.gradient, gradient)
        assert b.loss.shape == () and not b.loss.requires_grad
        assert_near(b.loss, made[0].loss)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_every_form_of_a_vector_gives_the_same_product_in_its_form(kind: type[CurvatureMatrix]) -> None:
    shapes = [p.shape for p in case("conv")[0].parameters()]
    v = numbers(SIZE, 3)
    for b in both_forms(kind, "conv"):
        columns = [b @ v[:, k] for k in range(3)]
        assert torch.equal(b @ v, torch.stack(columns, 1)) and (b @ v[:, :1]).shape == (SIZE, 1)
        flat = torch.split(v[:, 0], [shape.numel() for shape in shapes])
        pieces = [p.reshape(shape) for p, shape in zip(flat, shapes, strict=True)]
        as_list, as_tuple = b @ pieces, b @ tuple(pieces)
        assert isinstance(as_list, list) and isinstance(as_tuple, tuple)
        for found in (as_list, as_tuple):
            assert [p.shape for p in found] == shapes
            assert torch.equal(torch.cat([p.flatten() for p in found]), columns[0])


def test_any_mean_loss_and_any_network_serve() -> None:
    """A transformer, whose attention has a fused kernel without second derivative, and squared errors."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True, dropout=0.0)
    model, x, y = layer.double(), numbers(5, 3, 4), numbers(5, 3, 4, seed=6)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    v = numbers(sum(p.numel() for p in theta.values()))

    def slope(t: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(t, other := list(copy.parameters()))
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.mse_loss(copy(x), y), other)])

    copy = type(layer)(4, 2, dim_feedforward=6, batch_first=True, dropout=0.0).double()
    at = torch.cat([p.flatten() for p in theta.values()])
    difference = (slope(at + 1e-5 * v) - slope(at - 1e-5 * v)) / 2e-5
    by_closure = Hessian(lambda: F.mse_loss(model(x), y), model.parameters())
    by_model = Hessian.of(model, x, y, F.mse_loss)
    assert_near(by_closure @ v, difference, rtol=1e-5, atol=1e-7)
    assert_near(by_model @ v, by_closure @ v)
    assert_near(GaussNewton.of(model, x, y, F.mse_loss) @ v,
          GaussNewton(lambda: (F.mse_loss(z := model(x), y), z), model.parameters()) @ v)  # fmt: skip


def test_the_fisher_matrix_takes_any_shape_of_outputs() -> None:
    torch.manual_seed(0)
    scalar, tokens = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double(), nn.Linear(4, 2).double()
    for model, x, shape in ((scalar, numbers(5, 4), (5,)), (tokens, numbers(5, 3, 4), (5, 3, 2))):
        y, parameters = numbers(*shape, seed=6), list(model.parameters())
        each = [torch.autograd.grad(F.mse_loss(model(x)[n], y[n]), parameters) for n in range(5)]
        rows = torch.stack([torch.cat([g.flatten() for g in one]) for one in each])
        v = numbers(rows.shape[1])
        assert_near(EmpiricalFisher.of(model, x, y, F.mse_loss) @ v, rows.T @ (rows @ v) / 5)


def test_random_networks_keep_the_noise_of_one_call() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 3)).double()
    b = Hessian(cross_entropy(model, numbers(9, 4), torch.arange(9) % 3), model.parameters())
    v = numbers(b.shape[0])
    with torch.no_grad():
        first = b @ v
        torch.rand(3)
        assert torch.equal(b @ v, first)


@pytest.mark.parametrize("columns", [(), (1,), (4,)])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton, EmpiricalFisher])
def test_a_solution_is_that_of_the_dense_system(
    kind: type[CurvatureMatrix], columns: tuple[int, ...]
) -> None:
    _, matrix = dense(kind, "conv")
    b = kind.of(*case("conv"))
    damping = 0.1 - min(0.0, float(torch.linalg.eigvalsh(matrix)[0]))
    system = matrix + damping * torch.eye(SIZE, dtype=torch.float64)
    # Columns of lengths far apart: the tolerance is relative to each.
    lengths = torch.logspace(-200, 100, columns[0], dtype=torch.float64) if columns else 1.0
    right = numbers(SIZE, *columns) * lengths
    found = b.solve(right, damping, tolerance=1e-10, max_iterations=300)
    assert found.iterations.shape == found.residual.shape == columns
    expected = torch.linalg.solve(system, right / lengths)
    assert_near(found.x / lengths, expected, rtol=1e-7, atol=1e-8)
    assert bool((found.residual / lengths <= 1.1e-10 * (right / lengths).norm(dim=0)).all())
    assert bool((found.iterations > 3).all()) and bool((found.iterations < SIZE).all())


def test_a_solution_has_the_form_of_its_right_hand_side_and_counts_honestly() -> None:
    model, x, y = case("mlp")
    b = GaussNewton.of(model, x, y)
    gradient = torch.autograd.grad(cross_entropy(model, x, y)(), list(model.parameters()))
    flat = b.solve(b.gradient, 0.01, max_iterations=3)
    found = b.solve(gradient, 0.01, max_iterations=3)
    assert isinstance(found.x, tuple) and [p.shape for p in found.x] == [p.shape for p in gradient]
    assert_near(torch.cat([p.flatten() for p in found.x]), flat.x)
    assert int(flat.iterations) == 3 and flat.iterations.shape == ()
    residual = (b.gradient - b @ flat.x - 0.01 * flat.x).norm()
    assert_near(flat.residual, residual)
    assert residual > 1e-5 * b.gradient.norm()
    zero = b.solve(torch.zeros(b.shape[0], dtype=torch.float64), 0.0)
    assert int(zero.iterations) == 0 and not zero.x.any() and float(zero.residual) == 0


def test_solve_refuses_a_system_that_is_not_positive_definite() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    b = Hessian(lambda: p[0] ** 2 - p[1] ** 2, [p])  # eigenvalues 2 and −2
    right = torch.ones(2, dtype=torch.float64)
    line = "damping: B + λI is not positive definite; give a larger one, got 1.0"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        b.solve(right, 1.0)
    assert_near(b.solve(right, 3.0).x, torch.tensor([1 / 5, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_scipy_takes_the_matrix(kind: type[CurvatureMatrix]) -> None:
    _, matrix = dense(kind, "conv")
    right = numbers(SIZE)
    for b in both_forms(kind, "conv"):
        operator = b.to_scipy()
        assert operator.shape == (SIZE, SIZE) and operator.dtype == "float64"
        found = eigsh(operator, k=3, which="LA", return_eigenvectors=False)
        assert_near(torch.from_numpy(found).sort()[0], torch.linalg.eigvalsh(matrix)[-3:], rtol=1e-8)
        block = numbers(SIZE, 2)
        for product in (operator @ block.numpy(), operator.H @ block.numpy(), operator.T @ block.numpy()):
            assert_near(torch.from_numpy(product), matrix @ block)
        backwards = right.flip(0).numpy()[::-1]
        assert_near(torch.from_numpy(operator @ backwards), matrix @ right)
        assert_near(torch.from_numpy(operator @ backwards.reshape(-1, 1)), (matrix @ right)[:, None])
        with pytest.raises(TypeError, match="^v: must be torch.float64 on cpu, got torch.complex128"):
            operator @ right.to(torch.complex128).numpy()
    b = GaussNewton.of(*case("conv"))
    shifted = b.to_scipy() + 0.1 * aslinearoperator(torch.eye(SIZE, dtype=torch.float64).numpy())
    x, info = cg(shifted, right.numpy(), rtol=1e-12)
    assert info == 0
    own = b.solve(right, 0.1, tolerance=1e-12, max_iterations=200).x
    assert_near(torch.from_numpy(x), own, rtol=1e-8, atol=1e-10)


def test_float32_is_served() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    b = Hessian(lambda: (p**3).sum(), [("weight", p)])
    assert_near(b @ torch.tensor([1.0, 1.0]), torch.tensor([6.0, 12.0]))
    assert b.dtype == torch.float32 and b.to_scipy().dtype == "float32"
    tiny = torch.tensor([6e-30, 0.0])  # its square is 0 in float32
    assert_near(b.solve(tiny, 0.0).x, torch.tensor([1e-30, 0.0]), rtol=1e-6, atol=0)


def in_place(p: Tensor) -> None:
    p.mul_(2)


def behind_the_counter(p: Tensor) -> None:
    p.data.mul_(2)


def other_storage(p: Tensor) -> None:
    p.data = p.data * 2


def other_dtype(p: Tensor) -> None:
    p.data = p.data.float()


@pytest.mark.parametrize("change", [in_place, behind_the_counter, other_storage, other_dtype])
@pytest.mark.parametrize("form", [0, 1])
@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_parameters_that_changed_are_an_error(
    kind: type[CurvatureMatrix], form: int, change: Callable[[Tensor], None]
) -> None:
    b = both_forms(kind, "mlp")[form]
    v, before = torch.ones(b.shape[0], dtype=torch.float64), b.loss.clone()
    b @ v
    with torch.no_grad():
        change(b._parameters[2][1])
    uses: list[Callable[[], Any]] = [
        lambda: b @ v, lambda: b.gradient, lambda: b.solve(v, 9.0), lambda: b.to_scipy() @ v.numpy()
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(RuntimeError, match="^2.weight changed after the matrix was made: make a new"):
            use()
    assert torch.equal(b.loss, before)


def test_a_batch_that_changed_is_an_error() -> None:
    model, x, y = case("mlp")
    v = numbers(43)
    by_model, by_closure = Hessian.of(model, x, y), Hessian(cross_entropy(model, x, y), model.parameters())
    before = by_model @ v
    with torch.inference_mode():
        kept = x.clone()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="^the batch changed after"):
        by_model @ v
    with pytest.raises(RuntimeError, match="^a tensor of the graph changed after"):
        by_closure @ v
    assert_near(Hessian.of(model, kept, y) @ v, before)


PLAIN = nn.Linear(2, 1).double()
X = torch.ones(3, 2, dtype=torch.float64)
UNTYPED: Any = Hessian
BOTH = list(PLAIN.parameters())
ONE = torch.ones(3, dtype=torch.float64)


def loss() -> Tensor:
    return PLAIN(X).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("v", "error", "line"),
    [
        (ONE[:2], ValueError, "v: must have shape (3,) or (3, k), got (2,)"),
        (torch.ones(3, 0, dtype=torch.float64), ValueError, "v: must have shape (3,) or (3, k), got (3, 0)"),
        (torch.ones((), dtype=torch.float64), ValueError, "v: must have shape (3,) or (3, k), got ()"),
        (ONE.reshape(1, 3), ValueError, "v: must have shape (3,) or (3, k), got (1, 3)"),
        (ONE.float(), TypeError, "v: must be torch.float64 on cpu, got torch.float32 on cpu"),
        (ONE / 0, ValueError, "v: must be finite, got 3 numbers that are NaN or infinite"),
        (ONE * float("nan"), ValueError, "v: must be finite, got 3 numbers that are NaN or infinite"),
        ([ONE[:2]], ValueError, "v: must have the shapes [(1, 2), (1,)], got [(2,)]"),
        ([1.0, 2.0], TypeError, "v: must be a tensor, or a list of tensors, got list"),
        (None, TypeError, "v: must be a tensor, or a list of tensors, got NoneType"),
    ],
)
def test_a_bad_vector_is_one_line(v: Any, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(line)}$"):
        Hessian(loss, PLAIN.parameters()) @ v


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"damping": -1.0}, "damping: must be a number ≥ 0, got -1.0"),
        ({"damping": float("nan")}, "damping: must be a number ≥ 0, got nan"),
        ({"damping": "1"}, "damping: must be a number ≥ 0, got '1'"),
        ({"damping": 1.0, "tolerance": 0.0}, "tolerance: must be a number in (0, 1), got 0.0"),
        ({"damping": 1.0, "max_iterations": 0}, "max_iterations: must be a number whole and ≥ 1, got 0"),
        ({"damping": 1.0, "max_iterations": 1.5}, "max_iterations: must be a number whole and ≥ 1, got 1.5"),
    ],
)
def test_a_bad_number_is_one_line(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        Hessian(loss, PLAIN.parameters()).solve(ONE, **values)
    with pytest.raises(ValueError, match="^b: must have shape"):
        Hessian(loss, PLAIN.parameters()).solve(ONE[:2], 1.0)


def frozen() -> nn.Module:
    model = nn.Linear(2, 1).double()
    model.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "error", "line"),
    [
        (lambda: UNTYPED(3, BOTH), TypeError, "closure: must be callable and return the loss, got int"),
        (lambda: Hessian(loss, []), TypeError, "parameters: must be one tensor or more, got none"),
        (lambda: UNTYPED(loss, [3.0]), TypeError, "parameters: must be one tensor or more, got float"),
        (lambda: Hessian(loss, [PLAIN.bias] * 2), ValueError, "a parameter is there twice"),
        (lambda: Hessian(lambda: PLAIN, BOTH), TypeError, "the closure must return the scalar loss"),
        (lambda: Hessian(lambda: loss() / 0, BOTH), ValueError, "loss: must be finite, got inf"),
        (lambda: GaussNewton(loss, BOTH), ValueError, "curvature: ggn needs the outputs"),
        (lambda: Hessian.of(frozen(), X, ONE), ValueError, "bias: requires_grad is False"),
        (lambda: Hessian.of(nn.Tanh(), X, ONE), TypeError, "parameters: must be one tensor or more"),
        (lambda: UNTYPED.of(PLAIN, [1.0], ONE), TypeError, "inputs: must be a tensor, got list"),
        (lambda: EmpiricalFisher(loss, BOTH), TypeError, "EmpiricalFisher: needs single examples"),
    ],
)
def test_a_bad_argument_is_one_line(make: Callable[[], Any], error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=re.escape(line)):
        make()


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    b, found = names["B"], names["solution"]
    assert 3 < int(found.iterations) < 60 and float(found.residual) <= 1.1e-5 * float(b.gradient.norm())
    assert re.match(r"\d+ iterations, residual \d.\de-0\d\nlargest eigenvalues: \[", capsys.readouterr().out)
