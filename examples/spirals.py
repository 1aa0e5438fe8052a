"""A plug-in with its own data, model and loss, and a recipe of built-in parts and one new part.

ahf search --plugin examples/spirals.py --config examples/spirals.yaml
ahf compare --plugin examples/spirals.py --study spirals
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ahf_cli import plugin
from ahf_cli.optim import Optimizer, rows
from ahf_cli.optim.moments import Moments, Values

ARMS, TRAINING, TEST, NOISE = 3, 3_000, 1_000, 0.05
Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


@plugin.data_set("spirals", classes=ARMS, shape=(2,), training=TRAINING)
def spirals() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Points of the plane on three noisy arms of a spiral, which are not linearly separable."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> Arrays:
        arm, radius = generator.integers(0, ARMS, count), generator.uniform(0.1, 1, count)
        angle = 2 * np.pi * (arm / ARMS + radius)
        points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return (points + generator.normal(0, NOISE, points.shape)).astype(np.float32), arm

    return *draw(TRAINING), *draw(TEST)


@plugin.model("tanh_net")
def tanh_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network with two hidden layers of 32 tanh units."""
    return nn.Sequential(
        nn.Linear(shape[0], 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, classes)
    )


@plugin.loss("smoothed_cross_entropy", chance=lambda classes: float(np.log(classes)))
def smoothed_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with a tenth of each label spread over all classes; its minimum is above 0."""
    return F.cross_entropy(outputs, labels, label_smoothing=0.1)


@dataclass(frozen=True)
class HeavyBall:
    """T(δ) = m with m ← γ m + δ: a sum of earlier directions, as of gradients in momentum SGD."""

    is_identity = False

    def init(self, parameters: Tensor) -> Moments:
        """m = 0."""
        return {"ball": torch.zeros_like(parameters)}

    def __call__(
        self, direction: Tensor, moments: Moments, values: Values, step: Tensor
    ) -> tuple[Tensor, Moments]:
        """Return m after this step's direction."""
        ball = rows.expand(values["momentum"]) * moments["ball"] + direction
        return ball, {"ball": ball}


@plugin.recipe(
    "hf_heavy_ball",
    base="hf",
    curvature="ggn",
    reduction_ratio="update",
    max_iterations=10,
    search={"lr": plugin.Range(0.003, 0.1, log=True), "momentum": plugin.Range(0.5, 0.9)},
    source="examples/spirals.py",
)
def heavy_ball(optimizer: Optimizer) -> Optimizer:
    """u = α m, m ← γ m + δ."""
    return replace(optimizer, transform=HeavyBall())
