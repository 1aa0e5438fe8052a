"""DeepXDE: a network solves −u″ = π² sin(πx) with u(±1) = 0; its loss contains u″ by inner derivatives.

    pip install -e '.[examples]' && python examples/deepxde_poisson.py

`Model.compile` takes an optimizer that is made already, and calls it with DeepXDE's closure.
"""

from __future__ import annotations

import os

os.environ["DDE_BACKEND"] = "pytorch"  # before the import; else DeepXDE asks, and writes a file

import deepxde
import numpy as np
import torch
from torch import Tensor

from ahf_cli import HessianFree


def residual(x: Tensor, u: Tensor) -> Tensor:
    """Return u″ + π² sin(πx), which is 0 for the solution."""
    curved: Tensor = deepxde.grad.hessian(u, x)
    return curved + np.pi**2 * torch.sin(np.pi * x)


def solution(x: np.ndarray) -> np.ndarray:
    """Return sin(πx)."""
    return np.sin(np.pi * x)


if __name__ == "__main__":
    deepxde.config.set_random_seed(0)
    deepxde.config.set_default_float("float64")
    line = deepxde.geometry.Interval(-1, 1)
    ends = deepxde.icbc.DirichletBC(line, lambda x: 0, lambda x, on_boundary: on_boundary)
    data = deepxde.data.PDE(line, residual, ends, num_domain=24, num_boundary=2)
    net = deepxde.nn.FNN([1, 16, 16, 1], "tanh", "Glorot uniform")
    model = deepxde.Model(data, net)
    model.compile(HessianFree(net.parameters()))
    history, _ = model.train(iterations=40, display_every=10, verbose=0)
    for step, losses in zip(history.steps, history.loss_train, strict=True):
        print(f"step {step:2d}: loss {np.sum(losses):.3e}")
    x = np.linspace(-1, 1, 101)[:, None]
    print(f"largest error {np.abs(model.predict(x) - solution(x)).max():.1e}")
