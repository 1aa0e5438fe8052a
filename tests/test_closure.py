"""h(θ) of a closure: products for 14 networks, one function of θ in a step, errors by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli.optim import AdaptiveHessianFree, HessianFree, Layout
from ahf_cli.optim.closure import ClosureObjective
from ahf_cli.optim.operators import gauss_newton
from ahf_cli.optim.operators import hessian as exact_hessian
from tests.closures import assert_same_state, cross_entropy
from tests.networks import BATCH, CLASSES, MODELS, batch, convolutional

Loss = Callable[[], Any]


def objective_of(model: nn.Module, closure: Loss) -> tuple[ClosureObjective, Tensor]:
    layout = Layout.of(model.named_parameters())
    objective = ClosureObjective(closure, list(model.parameters()), layout, needs_outputs=True, check=True)
    return objective, layout.join([p.detach() for p in model.parameters()])


def plain(model: nn.Module, theta: Tensor, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a copy of the model at θ, and its outputs with the noise of seed 5, by PyTorch alone."""
    model = copy.deepcopy(model)
    nn.utils.vector_to_parameters(theta[0], model.parameters())
    torch.manual_seed(5)
    return model, model(x)


# Spectral normalization holds its singular vectors constant: its gradient is not the slope of its loss.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "spectral_norm"])
def test_products_are_differences_of_gradients_and_outputs(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, (x, y) = make().double(), batch(shape)
    objective, theta = objective_of(model, cross_entropy(model, x, y, outputs=True))
    start, v = copy.deepcopy(model), torch.randn_like(theta) / theta.norm()
    step = 1e-5

    def gradient(at: Tensor) -> Tensor:
        other, z = plain(start, at, x)
        return objective.layout.join(torch.autograd.grad(F.cross_entropy(z, y), list(other.parameters())))

    hessian = (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)
    tangent = (plain(start, theta + step * v, x)[1] - plain(start, theta - step * v, x)[1]) / (2 * step)
    other, z = plain(start, theta, x)
    p = z.softmax(1)
    curved = (p * tangent - p * (p * tangent).sum(1, keepdim=True)) / BATCH
    ggn = objective.layout.join(torch.autograd.grad(z, list(other.parameters()), curved.detach()))

    torch.manual_seed(5)
    evaluation = objective.evaluate(theta)
    torch.testing.assert_close(evaluation.gradient, gradient(theta))
    torch.testing.assert_close(evaluation.operator(exact_hessian)(v), hessian, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(evaluation.operator(gauss_newton)(v), ggn, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(objective.value(theta)[0], evaluation.loss[0])


@pytest.mark.parametrize("name", ["dropout", "batch_norm", "spectral_norm"])
def test_a_step_is_one_call_to_generators_and_buffers(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, (x, y) = make().double(), batch(shape)
    once = copy.deepcopy(model)
    optimizer = HessianFree(model.parameters(), curvature="ggn", reduction_ratio="update")
    torch.manual_seed(7)
    loss = optimizer.step(cross_entropy(model, x, y, outputs=True))
    after_step = torch.rand(3)
    torch.manual_seed(7)
    torch.testing.assert_close(F.cross_entropy(once(x), y), loss)
    assert torch.equal(torch.rand(3), after_step)
    for (key, a), b in zip(model.named_buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=key)


@pytest.mark.parametrize("name", ["dropout", "batch_norm", "spectral_norm"])
def test_calls_of_a_step_are_one_function(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, (x, y) = make().double(), batch(shape)
    objective, theta = objective_of(model, cross_entropy(model, x, y, outputs=True))
    loss, away = objective.evaluate(theta).loss, objective.value(theta + 0.1)
    assert torch.equal(objective.value(theta + 0.1), away)
    torch.testing.assert_close(objective.value(theta), loss)


def test_two_closures_draw_one_after_the_other() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    drawn: dict[str, list[float]] = {"gradient": [], "curvature": []}

    def closure(name: str) -> Callable[[], Tensor]:
        def draw() -> Tensor:
            drawn[name].append(float(torch.rand(())))
            return (p**2).sum()

        return draw

    torch.manual_seed(1)
    HessianFree([p]).step(closure("gradient"), closure("curvature"))
    after = torch.rand(())
    torch.manual_seed(1)
    first, second = torch.rand(()), torch.rand(())
    assert set(drawn["gradient"]) == {float(first)} and set(drawn["curvature"]) == {float(second)}
    assert torch.equal(after, torch.rand(()))


def test_a_closure_that_raises_leaves_everything_as_it_was() -> None:
    torch.manual_seed(0)
    make, shape = MODELS["batch_norm"]
    model, (x, y) = make().double(), batch(shape)
    optimizer, calls = HessianFree(model.parameters()), []

    def closure() -> Tensor:
        calls.append(1)
        loss = F.cross_entropy(model(x), y)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss

    parameters = [p.detach().clone() for p in model.parameters()]
    buffers = list(model.buffers())
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.buffers(), buffers, strict=True))
    before = F.cross_entropy(copy.deepcopy(model)(x), y)
    torch.testing.assert_close(optimizer.step(closure), before)


@pytest.mark.parametrize("around_step", [False, True])
@pytest.mark.parametrize("name", ["conv", "attention"])
def test_a_closure_under_autocast_descends(name: str, around_step: bool) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, (x, y) = make(), batch(shape, torch.float32)
    optimizer = HessianFree(model.parameters(), curvature="ggn", damping=1.0)
    plain_closure, dtypes = cross_entropy(model, x, y, outputs=True), set()

    def closure() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, z = plain_closure()
        dtypes.add(z.dtype)
        return loss, z

    first, previous = None, None
    for _ in range(10):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around_step):
            loss = float(optimizer.step(closure))
        info = optimizer.last_step
        assert info is not None
        # Parameters that were cast before the step give the loss before it.
        assert float(info.loss_after) != loss and previous in (None, pytest.approx(loss, abs=1e-6))
        first, previous = first or loss, float(info.loss_after)
    assert first is not None and loss < first - 0.02 and dtypes == {torch.bfloat16}


def test_gradient_accumulation_is_a_sum_of_losses() -> None:
    torch.manual_seed(0)
    model, (x, y) = convolutional().double(), batch(MODELS["conv"][1])
    twin = copy.deepcopy(model)

    def accumulated() -> Tensor:
        parts = zip(torch.split(x, 4), torch.split(y, 4), strict=True)
        return torch.stack([F.cross_entropy(model(a), b) * len(a) / len(x) for a, b in parts]).sum()

    whole = cross_entropy(twin, x, y)
    one, other = HessianFree(model.parameters()), HessianFree(twin.parameters())
    for _ in range(3):
        torch.testing.assert_close(one.step(accumulated), other.step(whole))


def test_a_closure_may_return_a_list() -> None:
    torch.manual_seed(0)
    inner, (x, y) = convolutional().double(), batch(MODELS["conv"][1])

    def model(x: Tensor) -> dict[str, Tensor]:
        return {"logits": inner(x)}

    def closure() -> list[Tensor]:
        logits = model(x)["logits"]
        return [F.cross_entropy(logits, y), logits]

    optimizer = HessianFree(inner.parameters(), curvature="ggn")
    losses = [float(optimizer.step(closure)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_loops_may_share_an_optimizer_and_optimizers_a_loop() -> None:
    torch.manual_seed(0)
    model, (x, y) = convolutional().double(), batch(MODELS["conv"][1])
    optimizer = HessianFree(model.parameters())
    for part in (slice(0, 6), slice(6, None)):
        closure = cross_entropy(model, x[part], y[part])
        losses = [float(optimizer.step(closure)) for _ in range(4)]
        assert losses[-1] < losses[0]
    whole = cross_entropy(model, x, y)
    body = HessianFree(list(model.parameters())[:-2])
    head = AdaptiveHessianFree(list(model.parameters())[-2:])
    losses = [float(part.step(whole)) for _ in range(5) for part in (body, head)]
    assert losses[-1] < losses[0]


def test_no_grad_around_a_step_changes_nothing() -> None:
    torch.manual_seed(0)
    model, (x, y) = convolutional().double(), batch(MODELS["conv"][1])
    closure = cross_entropy(model, x, y)
    expected = HessianFree(model.parameters()).direction(closure)
    with torch.no_grad():
        optimizer = HessianFree(model.parameters())
        found = optimizer.direction(closure)
        assert not found[0].requires_grad
        assert float(optimizer.step(closure)) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def freed(loss: Tensor) -> Tensor:
    torch.autograd.backward(loss)
    return loss


BAD: dict[str, tuple[str, Callable[[Tensor, Tensor], Any], str]] = {
    "no loss": ("hessian", lambda loss, z: None, "got NoneType for the loss"),
    "a number": ("hessian", lambda loss, z: loss.item(), "got float for the loss"),
    "order": ("ggn", lambda loss, z: (z, loss), rf"scalar loss.*got a loss of shape \({BATCH}, {CLASSES}\)"),
    "three": ("ggn", lambda loss, z: (loss, z, z), "got 3 items"),
    "integer": ("hessian", lambda loss, z: loss.long(), "got a loss of torch.int64"),
    "detached": ("hessian", lambda loss, z: loss.detach(), "depends on no optimized"),
    "autograd": ("hessian", lambda loss, z: freed(loss), "the closure freed the graph"),
    "autograd ggn": ("ggn", lambda loss, z: (freed(loss), z), "the closure freed the graph"),
    "loss only": ("ggn", lambda loss, z: loss, r"ggn needs the outputs: return \(loss, outputs\)"),
    "detached outputs": ("ggn", lambda loss, z: (loss, z.detach()), "the outputs have no graph"),
    "text": ("ggn", lambda loss, z: (loss, {"z": "z"}), "the outputs must be tensors, got str"),
    "other outputs": ("ggn", lambda loss, z: (loss, z * 1), "not computed from the outputs"),
}


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", BAD)
def test_bad_closures_are_named_at_every_step(name: str, steps_before: int) -> None:
    torch.manual_seed(0)
    curvature, spoilt, message = BAD[name]
    model, (x, y) = convolutional().double(), batch(MODELS["conv"][1])
    optimizer = HessianFree(model.parameters(), curvature=curvature)
    good = cross_entropy(model, x, y, outputs=True)
    for _ in range(steps_before):
        optimizer.step(good)
    before = copy.deepcopy(optimizer.state_dict())
    for call in (optimizer.step, optimizer.direction):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            call(lambda: spoilt(*good()))
    assert_same_state(optimizer.state_dict(), before)


def test_a_sparse_gradient_is_named() -> None:
    table, ids = nn.Embedding(5, 3, sparse=True), torch.tensor([0, 1, 1])
    optimizer = HessianFree(table.named_parameters())
    with pytest.raises(RuntimeError, match=r"gradient of weight is sparse .* sparse=False"):
        optimizer.step(lambda: table(ids).square().sum())


@pytest.mark.parametrize("given", [(None,), (torch.ones(()),), (torch.ones(()).sum, torch.ones(()))])
def test_something_else_than_a_closure_is_named(given: Any) -> None:
    optimizer = HessianFree([nn.Parameter(torch.ones(2))])
    for call in (optimizer.step, optimizer.direction):
        with pytest.raises(TypeError, match="needs a closure that returns the loss, or a list"):
            call(*given)
