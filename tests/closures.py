"""Closures and torch optimizers of a user's own loop, on one small convolutional network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ahf_cli.optim import AdaptiveHessianFree, HessianFree
from tests.problems import TinyConvNet, problem

OPTIMIZERS: dict[str, Callable[[Any], HessianFree | AdaptiveHessianFree]] = {
    "hf": lambda p: HessianFree(p),
    "hf_ggn": lambda p: HessianFree(p, curvature="ggn", lr=0.8, damping=3.0),
    "hf_update": lambda p: HessianFree(p, reduction_ratio="update", lr=0.5),
    "adaptive": lambda p: AdaptiveHessianFree(p),
    "adaptive_ggn_update": lambda p: AdaptiveHessianFree(p, curvature="ggn", reduction_ratio="update"),
    "adaptive_constant": lambda p: AdaptiveHessianFree(p, step_size="constant", lr=2.0),
}


def conv_problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, 40 inputs, and the classes that another such network gives them."""
    torch.manual_seed(0)
    x = problem("conv", examples=40).inputs
    with torch.no_grad():
        y = TinyConvNet().double()(x).argmax(1)
    return TinyConvNet().double(), x, y


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, outputs: bool = False) -> Callable[[], Any]:
    """Return a closure that returns the loss, or the loss and the outputs."""

    def closure() -> Any:
        z = model(x)
        loss = nn.functional.cross_entropy(z, y)
        return (loss, z) if outputs else loss

    return closure


def needs_outputs(name: str) -> bool:
    """Tell whether an optimizer's curvature is the Gauss-Newton matrix."""
    return "ggn" in name


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare two `state_dict()` bit by bit."""
    assert found["structure"] == expected["structure"]
    for key in ("state", "param_groups"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
