"""Groups, schedulers, saved states and copies of the torch optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from ahf_cli.optim import AdaptiveHessianFree, HessianFree
from tests.closures import OPTIMIZERS, assert_same_state, conv_problem, cross_entropy, needs_outputs

Either = HessianFree | AdaptiveHessianFree


def weights(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def parameter(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.ones(2, dtype=dtype))


SCHEDULERS: dict[str, tuple[Callable[[HessianFree], Any], list[float]]] = {
    "step": (lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5), [0.8, 0.4, 0.2]),
    "lambda": (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: epoch / 2), [0.0, 0.4, 0.8]),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 2), [0.8, 0.4, 0.0]),
    "one cycle": (
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.8, total_steps=3, pct_start=2 / 3, cycle_momentum=False, anneal_strategy="linear",
            final_div_factor=1.0,
        ),
        [0.032, 0.8, 0.032],
    ),
}  # fmt: skip


@pytest.mark.parametrize("start", [0.8, torch.tensor(0.8)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_act_at_the_next_step(name: str, start: Any) -> None:
    model, x, y = conv_problem()
    named = list(model.named_parameters())
    optimizer = HessianFree([{"params": named[:2], "name": "conv1"}, {"params": named[2:]}], lr=start)
    make, expected = SCHEDULERS[name]
    scheduler, found = make(optimizer), []
    for _ in expected:
        before = weights(model)
        optimizer.step(cross_entropy(model, x, y, False))
        assert optimizer.last_step is not None
        moved = (weights(model) - before).norm() / optimizer.last_step.direction.norm()
        found.append(float(moved))
        scheduler.step()
    assert found == pytest.approx(expected, abs=1e-6) and not optimizer.diverged


def group(**values: Any) -> list[dict[str, Any]]:
    return [{"params": [parameter()], **values}]


TWICE = parameter()
BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "lr of a group": (lambda: group(lr=-5), {}, r"lr must be in \(0, inf\), got -5"),
    "lr of zero": (lambda: group(lr=0), {}, r"lr must be in \(0, inf\), got 0"),
    "text": (group, {"lr": "a"}, "lr must be a number, got 'a'"),
    "text in a group": (lambda: group(damping="a"), {}, "damping must be a number, got 'a'"),
    "truth": (group, {"lr": True}, "lr must be a number, got True"),
    "vector": (group, {"lr": torch.ones(2)}, "lr must be a number, got tensor"),
    "nan": (group, {"damping": float("nan")}, "damping must be in .*got nan"),
    "key": (lambda: group(lrr=1.0), {}, "unknown key 'lrr' in a parameter group; did you mean 'lr'"),
    "other key": (lambda: group(momentum=0.9), {}, "unknown key 'momentum'.*known: lr, damping"),
    "differing": (lambda: [*group(), *group(lr=0.1)], {}, r"lr must be equal in all.*1.0 and 0.1"),
    "empty": (list, {}, "empty parameter list"),
    "twice": (lambda: [TWICE, TWICE], {}, "a parameter is there twice: give tied weights once"),
    "in two groups": (lambda: [{"params": TWICE}, {"params": TWICE}], {}, "more than one parameter group"),
    "half": (lambda: [parameter(torch.float16)], {}, "float32 or float64, got torch.float16.*autocast"),
    "bfloat16": (lambda: [("w", parameter(torch.bfloat16))], {}, "got torch.bfloat16 for w"),
    "complex": (
        lambda: [parameter(torch.complex64)],
        {},
        "got torch.complex64 for parameter 0: keep.*view_as_real",
    ),
    "sparse": (lambda: [nn.Parameter(torch.eye(2).to_sparse())], {}, "must be dense, got torch.sparse_coo"),
    "frozen": (lambda: [parameter().requires_grad_(False)], {}, "leave frozen parameters out"),
    "mixed": (lambda: [parameter(), parameter(torch.float64)], {}, "one dtype and device"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_groups_are_named_at_construction_and_when_added(name: str) -> None:
    make, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        HessianFree(make(), **options)
    if options or name in ("empty", "differing", "in two groups"):
        return
    optimizer, given = HessianFree([("first", parameter())] if name == "bfloat16" else [parameter()]), make()
    with pytest.raises(ValueError, match=message.replace("parameter 0", "parameter 1")):
        optimizer.add_param_group(given[0] if isinstance(given[0], dict) else {"params": given})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("value", [-1.0, "a", float("nan")])
def test_bad_values_set_later_are_named(value: Any) -> None:
    p = parameter()
    optimizer = HessianFree([p])
    optimizer.param_groups[0]["lr"] = value
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.step(lambda: p.square().sum())


def test_parameters_that_join_later_take_part() -> None:
    model, x, y = conv_problem()
    first, last = list(model.parameters())[:-2], list(model.parameters())[-2:]
    optimizer = HessianFree(first)
    closure = cross_entropy(model, x, y, False)
    before = float(optimizer.step(closure))
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.add_param_group({"params": last})
    assert optimizer.param_groups[1]["lr"] == 0.5
    optimizer.step(closure)
    assert float(optimizer.step(closure)) < before


def test_a_frozen_layer_is_left_out() -> None:
    model, x, y = conv_problem()
    first = next(model.children()).requires_grad_(False)
    with pytest.raises(ValueError, match=r"conv1.weight, conv1.bias: requires_grad is False"):
        HessianFree(model.named_parameters())
    optimizer = HessianFree([p for p in model.parameters() if p.requires_grad])
    before, closure = weights(first), cross_entropy(model, x, y, False)
    losses = [float(optimizer.step(closure)) for _ in range(5)]
    assert losses[-1] < losses[0] and torch.equal(weights(first), before)


def saved(optimizer: Either) -> dict[str, Any]:
    """Return a state that was written to a file and read again."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def by_state(name: str, model: nn.Module, optimizer: Either) -> tuple[nn.Module, Either]:
    other = copy.deepcopy(model)
    restored = OPTIMIZERS[name](other.parameters())
    restored.load_state_dict(saved(optimizer))
    return other, restored


COPIES: dict[str, Callable[[str, nn.Module, Either], tuple[nn.Module, Either]]] = {
    "state": by_state,
    "deepcopy": lambda name, *both: copy.deepcopy(both),
    "pickle": lambda name, *both: pickle.loads(pickle.dumps(both)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_continue_bitwise(name: str, way: str) -> None:
    model, x, y = conv_problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        optimizer.step(cross_entropy(model, x, y, needs_outputs(name)))
    other, twin = COPIES[way](name, model, optimizer)
    for _ in range(3):
        optimizer.step(cross_entropy(model, x, y, needs_outputs(name)))
        twin.step(cross_entropy(other, x, y, needs_outputs(name)))
    assert torch.equal(weights(model), weights(other))
    assert twin.damping == optimizer.damping


def test_a_loaded_state_keeps_its_damping() -> None:
    model, x, y = conv_problem()
    model.float()
    optimizer = HessianFree(model.parameters(), damping=0.1)  # no number of float32
    closure = cross_entropy(model, x.float(), y)
    for _ in range(3):
        optimizer.step(closure)
    twin = HessianFree(model.parameters(), damping=0.1)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.damping == optimizer.damping != 0.1
    twin.damping = 0.1
    assert twin.damping == pytest.approx(0.1)


def emptied(state: dict[str, Any]) -> dict[str, Any]:
    for memory in state["state"].values():
        del memory["first"]
    return state


def narrowed(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["direction"] = torch.zeros(7)
    return state


FOREIGN: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "hf": (
        lambda own, p: HessianFree(p).state_dict(),
        "another structure: .* was .* there",
    ),
    "adam": (
        lambda own, p: torch.optim.Adam(p).state_dict(),
        "another recipe: it has (no hyperparameter|eps), this one damping",  # eps once a class was read
    ),
    "no moments": (lambda own, p: emptied(own), "another recipe: it has no first"),
    "other shapes": (lambda own, p: narrowed(own), r"another model: parameter 0 has shape .* was \(7,\)"),
    "other count": (lambda own, p: AdaptiveHessianFree(p[:-1]).state_dict(), "size of optimizer's group"),
    "no state": (lambda own, p: {"model": 1}, "no state of an optimizer"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_state_of_something_else_is_named_and_changes_nothing(name: str) -> None:
    model, x, y = conv_problem()
    optimizer = AdaptiveHessianFree(model.parameters())
    optimizer.step(cross_entropy(model, x, y, False))
    make, message = FOREIGN[name]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(make(copy.deepcopy(before), list(model.parameters())))
    assert_same_state(optimizer.state_dict(), before)


def test_the_dtype_may_change_between_steps() -> None:
    model, x, y = conv_problem()
    optimizer = AdaptiveHessianFree(model.float().parameters())
    losses = [float(optimizer.step(cross_entropy(model, x.float(), y, False))) for _ in range(3)]
    model.double()
    losses += [float(optimizer.step(cross_entropy(model, x, y, False))) for _ in range(3)]
    # The loss before a change of dtype is that after it but for rounding.
    assert all(b <= a * (1 + 1e-3) for a, b in pairwise(losses)) and losses[-1] < 0.1 * losses[0]
    assert optimizer.last_step is not None and optimizer.last_step.direction.dtype == torch.float64
