"""The torch optimizers in programs as people write them: what trains, and what is refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from ahf_cli.optim import AdaptiveHessianFree, HessianFree, Layout, gauss_newton
from ahf_cli.optim.closure import ClosureObjective
from tests.closures import conv_problem, cross_entropy

Closure = Callable[[], Any]


def mlp(seed: int = 1, inputs: int = 6, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs)).double()


def classes(examples: int = 64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(examples, 6, dtype=torch.float64)
    return x, (x @ torch.randn(6, 3, dtype=torch.float64)).argmax(1)


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def trained(model: nn.Module, closure: Closure, steps: int = 5, **options: Any) -> Tensor:
    optimizer = HessianFree(model.parameters(), **options)
    for _ in range(steps):
        optimizer.step(closure)
    return vector(model)


def with_inner_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Closure:
    def closure() -> Tensor:
        at = x.clone().requires_grad_()
        z = model(at)
        (slope,) = torch.autograd.grad(z.sum(), at, create_graph=True)
        return F.cross_entropy(z, y) + 0.1 * slope.square().mean()

    return closure


def residual_of_an_equation(model: nn.Module, x: Tensor, y: Tensor) -> Closure:
    """Ask for u'' = −sin t of u(t), the first output."""

    def closure() -> Any:
        t = x.clone().requires_grad_()
        u = model(t)[:, :1]
        (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), t, create_graph=True)
        residual = second[:, 0] + t[:, 0].sin()
        return residual.square().mean() + u.square().mean(), (residual, u)

    return closure


@pytest.mark.parametrize("make", [with_inner_gradient, residual_of_an_equation])
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_closure_may_differentiate(make: Callable[..., Closure], around: Any) -> None:
    model, (x, y) = mlp(), classes()
    optimizer, losses = HessianFree(model.parameters()), []
    with around():
        for _ in range(12):
            losses.append(float(optimizer.step(make(model, x, y))))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 * losses[0]


def backward_form(name: str, optimizer: HessianFree, model: nn.Module, x: Tensor, y: Tensor) -> Closure:
    """Write a closure as for `torch.optim.LBFGS`."""

    def closure() -> Any:
        optimizer.zero_grad()
        if name == "in parts":
            total = 0.0
            for a, b in zip(x.chunk(4), y.chunk(4), strict=True):
                loss = F.cross_entropy(model(a), b) / 4
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            return total
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"the loss": loss, "detached": loss.detach(), "a number": loss.item()}[name]

    return closure


@pytest.mark.parametrize("name", ["the loss", "detached", "a number", "in parts"])
def test_a_closure_may_call_backward(name: str) -> None:
    model, (x, y) = mlp(), classes()
    twin = copy.deepcopy(model)
    optimizer = HessianFree(model.parameters())
    for _ in range(5):
        optimizer.step(backward_form(name, optimizer, model, x, y))
    torch.testing.assert_close(vector(model), trained(twin, cross_entropy(twin, x, y)))


@pytest.mark.parametrize("form", [tuple, list, lambda z: {"one": z[0], "more": [z[1], None]}])
def test_several_outputs_are_one_vector(form: Any) -> None:
    model, (x, y) = mlp(outputs=5), classes()
    twin = copy.deepcopy(model)

    def several() -> Any:
        z = model(x)
        a, b = z[:, :3], z[:, 3:]
        return F.cross_entropy(a, y) + b.square().mean(), form((a, b))

    def one() -> Any:
        z = twin(x)
        return F.cross_entropy(z[:, :3], y) + z[:, 3:].square().mean(), z

    found = trained(model, several, curvature="ggn")
    torch.testing.assert_close(found, trained(twin, one, curvature="ggn"))


def test_an_output_may_be_made_from_another_one() -> None:
    body, head = mlp(0, 6, 4), mlp(1, 4, 1)
    model, (x, _) = nn.ModuleList([body, head]), classes(12)
    layout = Layout.of(model.named_parameters())

    def closure() -> Any:
        inner = body(x)
        z = head(inner)
        loss = z.square().mean() + 0.1 * inner.square().mean()
        return loss, (z, inner, loss)

    def outputs(theta: Tensor) -> Tensor:
        named = {n: piece[0] for n, piece in zip(layout.names, layout.split(theta[None]), strict=True)}
        part = [{k[2:]: v for k, v in named.items() if k[0] == str(n)} for n in range(2)]
        inner = torch.func.functional_call(body, part[0], (x,))
        return torch.cat([torch.func.functional_call(head, part[1], (inner,)).flatten(), inner.flatten()])

    objective = ClosureObjective(closure, list(model.parameters()), layout, True, True)
    v = torch.randn(1, layout.size, dtype=torch.float64)
    found = objective.evaluate(vector(model)[None]).operator(gauss_newton)(v)[0]
    jacobian = torch.func.jacrev(outputs)(vector(model))
    weights = torch.cat([torch.full((12,), 2 / 12), torch.full((48,), 0.2 / 48)]).double()
    torch.testing.assert_close(found, jacobian.T @ (weights * (jacobian @ v[0])))


def test_gradients_accumulated_outside_are_not_lost_in_silence() -> None:
    model, (x, y) = mlp(), classes()
    optimizer = HessianFree(model.parameters())

    def closure() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(3):  # the gradient that a step leaves behind is no accumulation
        optimizer.step(closure)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="accumulate by a list of closures"):
        optimizer.step(closure)


def test_backward_serves_other_tensors_and_obeys_zero_grad() -> None:
    """An attack on the inputs, a discarded term, and an inner loop, as `torch.optim.LBFGS` takes them."""
    model, (x, y) = mlp(), classes()
    twin, other = copy.deepcopy(model), nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = HessianFree(model.parameters())

    def attacked() -> Tensor:
        at = x.clone().requires_grad_()
        F.cross_entropy(model(at), y).backward()  # type: ignore[no-untyped-call]
        assert at.grad is not None
        away = x + 0.01 * at.grad.sign()
        optimizer.zero_grad()
        inner = torch.optim.SGD([other], lr=0.1)
        for _ in range(2):
            inner.zero_grad()
            other.square().sum().backward()  # type: ignore[no-untyped-call]
            inner.step()
        loss = F.cross_entropy(model(away), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def plain() -> Tensor:
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(twin(at), y), at)
        return F.cross_entropy(twin(x + 0.01 * slope.sign()), y)

    for _ in range(4):
        optimizer.step(attacked)
    torch.testing.assert_close(vector(model), trained(twin, plain, 4))
    assert float(other.detach().abs().max()) < 1


def test_gradients_that_the_closure_changes_are_refused() -> None:
    model, (x, y) = mlp(), classes()

    def masked() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        for p in model.parameters():
            assert p.grad is not None
            p.grad.mul_(0.5)
        return loss

    def half() -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward(inputs=list(model.parameters())[:2])  # type: ignore[no-untyped-call]
        return loss

    assert_refused(masked, model, "the closure changes p.grad")
    assert_refused(half, model, "for a part of its parameters")
    assert_refused(lambda: model(x).backward(), model, "needs a scalar")


@pytest.mark.parametrize("form", [lambda z: (z, z), lambda z: {"a": z, "b": (z, z)}])
def test_an_output_with_two_names_counts_once(form: Any) -> None:
    model, (x, y) = mlp(), classes()
    twin = copy.deepcopy(model)

    def closure() -> Any:
        z = model(x)
        return F.cross_entropy(z, y), form(z)

    torch.testing.assert_close(trained(model, closure), trained(twin, cross_entropy(twin, x, y, True)))


def test_loss_and_outputs_may_be_results_of_one_operation() -> None:
    model, (x, y) = mlp(), classes()

    def closure() -> Any:
        z = model(x)
        both = torch.cat([F.cross_entropy(z, y).reshape(1), z.flatten()])
        loss, outputs = torch.split(both, [1, z.numel()])
        return loss, outputs

    layout = Layout.of(model.named_parameters())
    objective = ClosureObjective(closure, list(model.parameters()), layout, False, False)
    assert objective.evaluate(vector(model)[None]).has_outputs


def test_curvature_of_a_product_with_a_penalty_is_symmetric() -> None:
    model, (x, y) = mlp(inputs=6, outputs=3), classes(20)
    layout = Layout.of(model.named_parameters())

    def closure() -> Any:
        z = model(x)
        return F.cross_entropy(z, y) * (1 + sum(p.square().sum() for p in model.parameters())), z

    objective = ClosureObjective(closure, list(model.parameters()), layout, True, False)
    operator = objective.evaluate(vector(model)[None]).operator(gauss_newton)
    matrix = torch.cat([operator(row[None]) for row in torch.eye(layout.size, dtype=torch.float64)])
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("unit", [1e-25, 1e20, 1e25])
def test_losses_beyond_the_squares_of_float32_train(unit: float) -> None:
    model, (x, y) = mlp().float(), classes()
    optimizer = HessianFree(model.parameters(), damping=unit)
    plain = cross_entropy(model, x.float(), y, outputs=True)

    def closure() -> Any:
        loss, z = plain()
        return unit * loss, z

    losses = [float(optimizer.step(closure)) / unit for _ in range(10)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.2 * losses[0]


def test_a_corner_of_a_norm_is_left_by_the_gradient() -> None:
    model, (x, y) = mlp(), classes()
    nn.init.zeros_(list(model.parameters())[2])

    def closure() -> Tensor:
        norms = torch.stack([p.norm() for p in model.parameters()])
        return F.cross_entropy(model(x), y) + 0.01 * norms.sum()

    optimizer = HessianFree(model.parameters())
    losses = [float(optimizer.step(closure)) for _ in range(12)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 * losses[0]


def test_a_problem_may_begin_at_zero_with_the_loss_zero() -> None:
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    optimizer = HessianFree([w])
    for _ in range(20):
        optimizer.step(lambda: 0.5 * w @ matrix @ w - w.sum())
    torch.testing.assert_close(w.detach(), 1 / matrix.diagonal(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outputs", [False, True])
def test_parts_of_a_batch_are_the_batch(outputs: bool) -> None:
    model, (x, y) = mlp(), classes()
    twin = copy.deepcopy(model)
    parts = [cross_entropy(model, a, b, outputs) for a, b in zip(x.chunk(4), y.chunk(4), strict=True)]
    optimizer = HessianFree(model.parameters())
    other = HessianFree(twin.parameters())
    for _ in range(4):
        loss = optimizer.step(iter(parts))
        torch.testing.assert_close(loss, other.step(cross_entropy(twin, x, y, outputs)))
        torch.testing.assert_close(vector(model), vector(twin), rtol=1e-10, atol=1e-10)


def test_a_penalty_in_the_loss_has_its_curvature() -> None:
    model, (x, y) = mlp(), classes()
    twin = copy.deepcopy(model)

    def penalized() -> Any:
        z = model(x)
        return F.cross_entropy(z, y) + sum(p.square().sum() for p in model.parameters()), z

    options: dict[str, Any] = {"curvature": "ggn", "damping": 1e-3}
    plain = cross_entropy(twin, x, y, outputs=True)
    found = trained(model, penalized, **options)
    torch.testing.assert_close(found, trained(twin, plain, weight_decay=2.0, **options))


def test_curvature_beside_the_outputs_is_exact() -> None:
    """A second head that the closure does not return: B is the Gauss-Newton matrix plus its Hessian."""
    body, head, other = mlp(0, 6, 4), mlp(1, 4, 3), mlp(2, 4, 2)
    model, (x, y) = nn.ModuleList([body, head, other]), classes(20)
    layout = Layout.of(model.named_parameters())

    def loss_of(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        named = {n: piece[0] for n, piece in zip(layout.names, layout.split(theta[None]), strict=True)}
        part = [{k[2:]: v for k, v in named.items() if k[0] == str(n)} for n in range(3)]
        inner = torch.func.functional_call(body, part[0], (x,))
        z = torch.func.functional_call(head, part[1], (inner,))
        rest = torch.func.functional_call(other, part[2], (inner,)).pow(4).mean()
        return F.cross_entropy(z, y), z, rest + part[1]["2.weight"].pow(4).sum()

    def closure() -> Any:
        inner = body(x)
        z = head(inner)
        loss = F.cross_entropy(z, y) + other(inner).pow(4).mean()
        return loss + dict(head.named_parameters())["2.weight"].pow(4).sum(), z

    objective = ClosureObjective(closure, list(model.parameters()), layout, True, True)
    theta = vector(model)
    v = torch.randn(layout.size, dtype=torch.float64)
    found = objective.evaluate(theta[None]).operator(gauss_newton)(v[None])[0]
    jacobian = torch.func.jacrev(lambda t: loss_of(t)[1].flatten())(theta)
    z = loss_of(theta)[1].flatten()
    curved = torch.func.hessian(lambda a: F.cross_entropy(a.view(20, 3), y))(z)
    rest = torch.func.hessian(lambda t: loss_of(t)[2])(theta)
    torch.testing.assert_close(found, jacobian.T @ curved @ jacobian @ v + rest @ v)


def assert_refused(closure: Closure, model: nn.Module, message: str) -> None:
    before = vector(model)
    optimizer = HessianFree(model.parameters())
    for call in (optimizer.step, optimizer.direction):
        with pytest.raises(RuntimeError, match=message):
            call(closure)
    assert torch.equal(vector(model), before) and not optimizer.state


def test_a_closure_that_is_no_function_of_the_parameters_is_refused() -> None:
    model, (x, y) = mlp(), classes()
    stale = F.cross_entropy(model(x), y)
    outputs = model(x)
    source = torch.Generator().manual_seed(0)

    def other_batch() -> Tensor:
        chosen = torch.randint(64, (8,), generator=source)
        return F.cross_entropy(model(x[chosen]), y[chosen])

    assert_refused(lambda: stale, model, "returned the same tensor twice")
    assert_refused(lambda: F.cross_entropy(outputs, y), model, "did not change along its gradient")
    assert_refused(other_batch, model, r"gave the losses \S+ and \S+ at the same parameters")
    assert_refused(lambda: nn.Parameter(torch.ones(())) * 2.0, model, "depends on no optimized parameter")


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_batch_normalization_in_a_checkpoint_counts_a_step_once(curvature: str) -> None:
    x, y = classes()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    twin = copy.deepcopy(model)

    def closure() -> Any:
        z = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
        return F.cross_entropy(z, y), z

    found = trained(model, closure, 3, curvature=curvature)
    expected = trained(twin, cross_entropy(twin, x, y, True), 3, curvature=curvature)
    torch.testing.assert_close(found, expected)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_threads_do_not_touch_each_other() -> None:
    x, y = classes()

    def train(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
        return trained(model, cross_entropy(model, x, y), 6)

    expected = [train(seed) for seed in range(3)]
    found: dict[int, Tensor] = {}
    models = {}
    for seed in range(3):  # made here: the generator of initial weights is the process's
        torch.manual_seed(seed)
        models[seed] = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()

    def run(seed: int) -> None:
        found[seed] = trained(models[seed], cross_entropy(models[seed], x, y), 6)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        torch.testing.assert_close(found[seed], expected[seed])


def test_a_parameter_may_have_no_entries() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(0, 5))
    optimizer = HessianFree([p, q])
    losses = [float(optimizer.step(lambda: p.square().sum() + q.sum())) for _ in range(4)]
    assert losses[-1] < losses[0] and optimizer.state[q]["direction"].shape == (0, 5)


@pytest.mark.parametrize("ratio", ["direction", "update"])
@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_the_unit_of_the_loss_does_not_matter(unit: float, ratio: str) -> None:
    model, (x, y) = mlp(), classes()
    found = []
    for scale in (1.0, unit):
        own = copy.deepcopy(model)
        plain = cross_entropy(own, x, y)

        def closure(plain: Closure = plain, scale: float = scale) -> Tensor:
            return scale * plain()  # type: ignore[no-any-return]

        optimizer = HessianFree(own.parameters(), damping=scale, reduction_ratio=ratio)
        for _ in range(15):
            optimizer.step(closure)
        found.append((vector(own), optimizer.damping / scale))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-7)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.long)])
@pytest.mark.parametrize("ratio", ["direction", "update"])
def test_damping_returns_to_its_start_at_a_minimum(ratio: str, dtype: torch.dtype) -> None:
    p, target = nn.Parameter(torch.full((3,), 5.0, dtype=dtype)), torch.zeros(3, dtype=dtype)

    def loss() -> Tensor:
        away = p - target
        return away.square().sum() + away.pow(4).sum() + 1

    optimizer = HessianFree([p], reduction_ratio=ratio, damping=3.0)
    for _ in range(300):
        optimizer.step(loss)
    assert optimizer.damping == 3.0
    target += 3
    fresh = HessianFree([nn.Parameter(p.detach().clone())], reduction_ratio=ratio, damping=3.0)
    (q,) = fresh.param_groups[0]["params"]

    def fresh_loss() -> Tensor:
        away = q - target
        return away.square().sum() + away.pow(4).sum() + 1  # type: ignore[no-any-return]

    followed = [float(optimizer.step(loss)) for _ in range(30)]
    first = [float(fresh.step(fresh_loss)) for _ in range(30)]
    assert followed[-1] == pytest.approx(first[-1], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("ratio", ["direction", "update"])
def test_a_thousand_steps_in_float32_never_rise(ratio: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x @ torch.randn(20, 3)).argmax(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = HessianFree(model.parameters(), reduction_ratio=ratio)
    losses = [float(optimizer.step(cross_entropy(model, x, y, True))) for _ in range(1000)]
    assert max(losses) == losses[0] and losses[-1] < 1e-4


def test_a_step_uphill_by_the_gradient_is_refused() -> None:
    x, y = classes()
    model = mlp(7)
    optimizer = HessianFree(model.parameters(), damping=0.1, max_iterations=3)
    for step in range(12):
        chosen = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(step))
        optimizer.step(cross_entropy(model, x[chosen], y[chosen]))
        assert optimizer.last_step is not None
        assert float(optimizer.last_step.loss_after) <= float(optimizer.last_step.loss)


@pytest.mark.parametrize("make", [HessianFree, AdaptiveHessianFree])
def test_schedulers_scale_the_steps_of_both_classes(make: Any) -> None:
    model, x, y = conv_problem()
    start, steps = copy.deepcopy(model.state_dict()), []
    for factor in (1.0, 0.25, 0.0):
        model.load_state_dict(start)
        optimizer = make(model.parameters(), line_search="none", clipping="none")
        lr_scheduler.LambdaLR(optimizer, lambda epoch, factor=factor: factor)  # type: ignore[misc]
        before = vector(model)
        optimizer.step(cross_entropy(model, x, y))
        steps.append(vector(model) - before)
    torch.testing.assert_close(steps[1], 0.25 * steps[0])
    assert steps[0].norm() > 0 and steps[2].norm() == 0


def test_the_state_of_another_structure_is_refused() -> None:
    model, x, y = conv_problem()
    one, other = HessianFree(model.parameters(), curvature="ggn"), HessianFree(model.parameters())
    one.step(cross_entropy(model, x, y, True))
    message = "of another structure: curvature was 'ggn' there, and is 'automatic' here"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(one.state_dict())
    assert not other.state
