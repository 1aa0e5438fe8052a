"""The layer convolution – ReLU – max-pooling, in either order or without ReLU, at one point, for K trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ahf_cli.optim.layers.dense import Cotangents, own
from ahf_cli.optim.layers.record import Convolution, MaxPooling
from ahf_cli.optim.layers.selected import run_block, split_last
from ahf_cli.optim.layers.selection import SLACK, Selection, Shape


@dataclass(frozen=True)
class Block:
    """A convolution with its pooling, and perhaps a ReLU before or after the pooling."""

    convolution: Convolution
    pooling: MaxPooling
    relu: bool

    def sizes(self, inputs: Sequence[int], outputs: Sequence[int]) -> Shape:
        """Return the sizes for shapes (N, C, H, W) of inputs and outputs."""
        (rows, columns), (channels, depth, *kernel) = self.convolution.padding, self.convolution.shape
        return Shape(
            images=inputs[0], height=inputs[2] + 2 * rows, width=inputs[3] + 2 * columns, depth=depth,
            channels=channels, kernel=(kernel[0], kernel[1]), pooled=(outputs[2], outputs[3]),
            pooling=self.pooling, relu=self.relu,
        )  # fmt: skip

    def run(
        self, shapes: Sequence[Sequence[int]], x: Tensor, leaves: Sequence[Tensor], last: bool, kept: bool
    ) -> tuple[Tensor, BlockAt | None]:
        """Return the outputs of images, (K, N, output), and the layer if derivatives follow."""
        weight, bias = self.convolution.weight, self.convolution.bias
        w, b = leaves[weight], None if bias is None else leaves[bias]
        shape = self.sizes(*shapes)
        x = self.padded(x, shape)
        y, selection = run_block(shape, x, w, b, last, kept)
        return y, None if selection is None else BlockAt(self, x, w, selection)

    def padded(self, x: Tensor, shape: Shape) -> Tensor:
        """Return images (K, N, H · W · C + SLACK) with the padding's zeros around them."""
        rows, columns = self.convolution.padding
        if not rows and not columns:
            return x
        size = (shape.height - 2 * rows, shape.width - 2 * columns, shape.depth)
        wide = F.pad(split_last(x[..., :-SLACK], *size), (0, 0, columns, columns, rows, rows))
        return F.pad(wide.flatten(2), (0, SLACK))

    def cropped(self, x: Tensor, shape: Shape) -> Tensor:
        """Return the transpose of `padded`, applied to images."""
        rows, columns = self.convolution.padding
        if not rows and not columns:
            return x
        wide = split_last(x[..., :-SLACK], shape.height, shape.width, shape.depth)
        inside = wide[:, :, rows : shape.height - rows, columns : shape.width - columns]
        return F.pad(inside.flatten(2), (0, SLACK))


@dataclass(frozen=True)
class BlockAt:
    """A block at its images and weights."""

    block: Block
    x: Tensor  # padded images, (K or 1, N, image), channels last
    w: Tensor  # kernels, (K, out, C, …)
    selection: Selection

    @property
    def parameters(self) -> tuple[int, ...]:
        """Numbers of the kernels, and of the biases."""
        weight, bias = self.block.convolution.weight, self.block.convolution.bias
        return (weight,) if bias is None else (weight, bias)

    def tangent(self, x: Tensor | None, w: Sequence[Tensor]) -> Tensor:
        """x ∗ ẇ + ẋ ∗ w + ḃ at the selected positions."""
        bias = w[1] if len(w) > 1 else None
        if x is None:
            return self.selection.forward(self.x, w[0], bias)
        return self.selection.forward(self.x, w[0], bias, self._padded(x), self.w)

    def cotangent(self, y: Tensor, to_input: bool) -> Cotangents:
        """The transposes of x ↦ x ∗ w and w ↦ x ∗ w, applied to ȳ."""
        back = self._cropped(self.selection.to_input(y, self.w)) if to_input else None
        return back, self._weights(*self.selection.to_weight(y, self.x))

    def cotangent_tangent(
        self, y: Tensor, change: Tensor, x: Tensor | None, w: Sequence[Tensor], to_input: bool
    ) -> Cotangents:
        """The change of both transposes: bilinear in ȳ and w, and in ȳ and x."""
        back = self._cropped(self.selection.to_input(change, self.w, y, w[0])) if to_input else None
        if x is None:
            return back, self._weights(*self.selection.to_weight(change, self.x))
        return back, self._weights(*self.selection.to_weight(change, self.x, y, self._padded(x)))

    def squares(self, y: Tensor) -> tuple[Tensor, ...]:
        """Return the squares with each example as a trial of its own, and their sum."""
        trials, examples = y.shape[:2]
        x = self.x.expand(trials, *self.x.shape[1:]).reshape(trials * examples, 1, -1)
        kernels, biases = self.selection.alone().to_weight(y.reshape(trials * examples, 1, -1), x)
        each = (kernels, biases) if self.block.convolution.bias is not None else (kernels,)
        return tuple(w.square().view(trials, examples, *w.shape[1:]).sum(dim=1) for w in each)

    def select(self, trials: Tensor) -> BlockAt:
        """Return the layer for some rows."""
        return BlockAt(self.block, own(self.x, trials), self.w[trials], self.selection.select(trials))

    def _weights(self, kernels: Tensor, biases: Tensor) -> tuple[Tensor, ...]:
        return (kernels,) if self.block.convolution.bias is None else (kernels, biases)

    def _padded(self, x: Tensor) -> Tensor:
        return self.block.padded(x, self.selection.shape)

    def _cropped(self, x: Tensor) -> Tensor:
        return self.block.cropped(x, self.selection.shape)
