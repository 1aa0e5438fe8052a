"""Deep autoencoders (Hinton and Salakhutdinov 2006; Martens 2010): their data and networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ahf_cli.tasks.data import read_digits

if TYPE_CHECKING:
    from ahf_cli.tasks.datasets import Arrays

Floats = NDArray[np.float64]
SIDE, TRAINING, TEST = 28, 20_000, 10_000
CURVES_SEED = 2010
MARGIN = 2
"""least distance of a curve's three points from the image's edge, in pixels"""
PEN = 0.7
"""standard deviation of the line's profile, in pixels"""
DOTS = 48
"""number of dots of a curve; on a line of 40 pixels the ink between two of them lacks less than 3 %"""


def curves(folder: Path) -> Arrays:
    """Return 20,000 + 10,000 images (N, 784) of smooth curves as bytes, each its own target.

    The three points of a curve are uniform in the image, 2 pixels off its edge.  See `draw`.
    """
    points = np.random.default_rng(CURVES_SEED).uniform(MARGIN, SIDE - MARGIN, (TRAINING + TEST, 3, 2))
    parts = [draw(part) for part in np.array_split(points, 600)]  # 1 MB of numbers each
    images = np.concatenate(parts).reshape(-1, SIDE * SIDE)
    return images[:TRAINING], images[:TRAINING], images[TRAINING:], images[TRAINING:]


def draw(points: Floats) -> NDArray[np.uint8]:
    """Draw parabolas c(t), c(0), c(½) and c(1) the given points (N, 3, 2) as x and y; → (N, 28, 28).

    The ink at a pixel is the integral over the curve of a normal density of its distance, in each direction,
    with standard deviation 0.7 pixels.  It is 255 on a straight line, and nowhere more.
    """
    t = (np.arange(DOTS) + 0.5) / DOTS
    # Lagrange's polynomials of the three points, and their slopes
    values = np.stack([(1 - t) * (1 - 2 * t), 4 * t * (1 - t), t * (2 * t - 1)])
    slopes = np.stack([4 * t - 3, 4 - 8 * t, 4 * t - 1])
    path, speed = (np.einsum("npi,pt->nit", points, basis) for basis in (values, slopes))
    length = np.hypot(speed[:, 0], speed[:, 1]) / DOTS  # of the curve at each dot
    pixels = np.arange(SIDE) + 0.5
    profile = np.exp(-0.5 * ((pixels - path[..., None]) / PEN) ** 2)  # (N, 2, DOTS, 28)
    x, y = profile[:, 0], profile[:, 1] * (length / (math.sqrt(2 * math.pi) * PEN))[..., None]
    ink: Floats = np.minimum(y.transpose(0, 2, 1) @ x, 1)
    pressed: NDArray[np.uint8] = np.rint(255 * ink).astype(np.uint8)
    return pressed


def read_pixels(folder: Path) -> Arrays:
    """Return the images (N, 1, 28, 28) in four files like MNIST's, and their pixels (N, 784)."""
    x, _, x_test, _ = read_digits(folder)
    return x, x.reshape(len(x), -1), x_test, x_test.reshape(len(x_test), -1)


def autoencoder_curves(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """An autoencoder with hidden layers 400-200-100-50-25, a linear code of 6, and logits of the pixels."""
    return _autoencoder(math.prod(shape), (400, 200, 100, 50, 25), 6, outputs)


def autoencoder_digits(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """An autoencoder with hidden layers 1000-500-250, a linear code of 30, and logits of the pixels."""
    return _autoencoder(math.prod(shape), (1000, 500, 250), 30, outputs)


def _autoencoder(inputs: int, hidden: Sequence[int], code: int, outputs: int) -> nn.Module:
    """Return logistic layers down to a linear code, and their mirror image up to the outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise((inputs, *hidden)):
        layers += [nn.Linear(before, after), nn.Sigmoid()]
    layers.append(nn.Linear(hidden[-1], code))
    for before, after in itertools.pairwise((code, *reversed(hidden))):
        layers += [nn.Linear(before, after), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(hidden[0], outputs))
