"""Convolution at selected positions: at fixed θ, ReLU and max-pooling let few of its outputs through.

Convolution – ReLU – pooling is then equal to the convolution at the positions of the maxima.  It is bilinear
in images and weights, so that three maps serve all derivatives.  They are y = x ∗ w + u ∗ v + b and the
transposes of its terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from ahf_cli.optim.layers.record import MaxPooling

SLACK = 16
"""Number of zeros after each image: the compiled maps read whole vectors, of 16 numbers at most."""
Pair = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """The sizes of one layer: images, a kernel, and max-pooling with or without ReLU."""

    images: int  # N
    height: int  # of an image, padding included
    width: int
    depth: int  # input channels
    channels: int  # output channels
    kernel: Pair
    pooled: Pair  # rows and columns of pooled outputs
    pooling: MaxPooling
    relu: bool

    @property
    def image(self) -> int:
        """Numbers of one image, with its slack."""
        return self.height * self.width * self.depth + SLACK

    @property
    def places(self) -> int:
        """Pooled outputs of one channel."""
        return self.pooled[0] * self.pooled[1]

    def strides(self, last: bool) -> Pair:
        """Distances between two channels, and between two places, in an example's outputs."""
        return (1, self.channels) if last else (self.places, 1)

    def output(self, last: bool) -> int:
        """Numbers of one example's outputs: as images with channels last and slack, or in PyTorch's order."""
        return self.channels * self.places + (SLACK if last else 0)


@dataclass(frozen=True)
class Selection(ABC):
    """The selected windows of N images for K trials, and the three maps."""

    shape: Shape
    at: Tensor  # offset of each output's window in its image, −1 for an output 0; int32, like y
    last: bool  # whether y has channels last and slack

    def alone(self) -> Self:
        """Return the selection with each example as a trial of its own."""
        return replace(
            self, shape=replace(self.shape, images=1), at=self.at.reshape(-1, 1, self.at.shape[-1])
        )

    def select(self, trials: Tensor) -> Self:
        """Return the selection of some trials."""
        return replace(self, at=self.at[trials])

    @abstractmethod
    def forward(
        self, x: Tensor, w: Tensor, b: Tensor | None, u: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """y = x ∗ w + u ∗ v + b at the selected positions, 0 elsewhere.

        Args:
            x: images with channels last, (K or 1, N, image).
            w: kernels, (K, channels, depth, *kernel).
            b: biases, (K, channels).
            u: other images like x.
            v: other kernels like w.
        """

    @abstractmethod
    def to_input(self, y: Tensor, w: Tensor, z: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """Apply the transposes of x ↦ x ∗ w and u ↦ u ∗ v to y and z, and add; → (K, N, image)."""

    @abstractmethod
    def to_weight(
        self, y: Tensor, x: Tensor, z: Tensor | None = None, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the transposes of w ↦ x ∗ w and v ↦ u ∗ v to y and z, and add; and sum y for b.

        Returns:
            (K, channels, depth, *kernel) and (K, channels).
        """
