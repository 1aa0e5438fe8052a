"""A task other than classification: a deep autoencoder, measured by its reconstruction error.

    ahf search --plugin examples/autoencoder.py --config examples/autoencoder.yaml
    ahf compare --study autoencoder

This file registers the data, the network and the metric; the loss is built in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ahf_cli import plugin

SIDE, TRAINING, TEST = 8, 600, 120


@plugin.metric(
    "rms",
    label="reconstruction error",
    better="lower",
    unit="root mean squared pixel error",
    short="pixel",
)
def rms(outputs: Tensor, targets: Tensor) -> Tensor:
    """Root of the mean squared error over the pixels of each image."""
    return (outputs - targets).square().mean(dim=-1).sqrt()


@plugin.data_set("curves_8", shape=(SIDE, SIDE), training=TRAINING, target=(SIDE * SIDE,), metrics=("rms",))
def curves() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images of random quadratic curves, 8 × 8, each its own target."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 40)
    points = rng.uniform(0, SIDE - 1, (TRAINING + TEST, 3, 2, 1))
    a, b, c = points[:, 0], points[:, 1], points[:, 2]
    path = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c  # Bézier, (N, 2, 40)
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"))[None, :, :, :, None]
    distance = np.square(grid - path[:, :, None, None, :]).sum(axis=1).min(axis=-1)
    images = np.exp(-distance).astype(np.float32)
    flat = images.reshape(len(images), -1)
    return images[:TRAINING], flat[:TRAINING], images[TRAINING:], flat[TRAINING:]


@plugin.model("autoencoder")
def autoencoder(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """An encoder to a linear code of six numbers, and its mirror image, with logistic units."""
    pixels = int(np.prod(shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 32), nn.Sigmoid(), nn.Linear(32, 6),
        nn.Linear(6, 32), nn.Sigmoid(), nn.Linear(32, outputs), nn.Sigmoid(),
    )  # fmt: skip


if __name__ == "__main__":
    inputs = torch.from_numpy(curves()[0])
    print(f"{autoencoder((SIDE, SIDE), SIDE * SIDE)(inputs).shape[1]} pixels of {len(inputs)} images")
