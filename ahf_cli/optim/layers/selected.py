"""Selections in compiled code for a CPU, and as dense operations of PyTorch on any device."""

from __future__ import annotations

import struct
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from ahf_cli.optim.layers.compiled import COMPILED, numerics
from ahf_cli.optim.layers.selection import SLACK, Selection, Shape


class CompiledSelection(Selection):
    """The three maps in compiled code, on a CPU."""

    def forward(
        self, x: Tensor, w: Tensor, b: Tensor | None, u: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """y = x ∗ w + u ∗ v + b at the selected positions, 0 elsewhere."""
        y = torch.empty(self.at.shape, dtype=w.dtype)
        w, v, b = lined(w), v if v is None else lined(v), b if b is None else lined(b)
        maps().forward(
            self._geometry(x=x, u=u, w=w, v=v, b=b),
            y.dtype == torch.float64, _at(x), _at(w), _at(u), _at(v), _at(b), _at(self.at), _at(y),
        )  # fmt: skip
        return y

    def to_input(self, y: Tensor, w: Tensor, z: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """Apply the transposes of x ↦ x ∗ w and u ↦ u ∗ v to y and z, and add; → (K, N, image)."""
        x = torch.empty(len(self.at), self.shape.images, self.shape.image, dtype=y.dtype)
        w, v = lined(w), v if v is None else lined(v)
        y, z = y.contiguous(), z if z is None else z.contiguous()
        maps().input(
            self._geometry(x=x, w=w, v=v),
            y.dtype == torch.float64, _at(y), _at(w), _at(z), _at(v), _at(self.at), _at(x),
        )  # fmt: skip
        return x

    def to_weight(
        self, y: Tensor, x: Tensor, z: Tensor | None = None, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the transposes of w ↦ x ∗ w and v ↦ u ∗ v to y and z, and add; and sum y for b."""
        s, trials = self.shape, len(self.at)
        w = torch.empty(trials, s.channels, s.depth, *s.kernel, dtype=y.dtype)
        b = torch.empty(trials, s.channels, dtype=y.dtype)
        y, z = y.contiguous(), z if z is None else z.contiguous()
        maps().weight(
            self._geometry(x=x, u=u),
            y.dtype == torch.float64, _at(y), _at(x), _at(z), _at(u), _at(self.at), _at(w), _at(b),
        )  # fmt: skip
        return w, b

    def _geometry(self, **tensors: Tensor | None) -> bytes:
        return geometry(self.shape, len(self.at), self.last, **tensors)


def geometry(shape: Shape, trials: int, last: bool, **tensors: Tensor | None) -> bytes:
    """Return the sizes and strides of a call, as the compiled code reads them."""
    s, size, pool = shape, shape.output(last), shape.pooling
    step = {name: 0 if t is None or len(t) == 1 else t.stride(0) for name, t in tensors.items()}
    channel, place = s.strides(last)
    x_row, u_row, w_row, v_row, b_row = (step.get(name, 0) for name in "xuwvb")
    return struct.pack(
        "30q", trials, s.images, s.channels, s.places, *s.kernel, s.depth, s.width * s.depth, s.image,
        x_row, u_row, s.images * size, size, channel, place, w_row, v_row, b_row, torch.get_num_threads(),
        s.height, s.pooled[1], *pool.kernel, *pool.stride, *pool.padding, *pool.dilation, s.relu,
    )  # fmt: skip


def compiled_block(
    shape: Shape, x: Tensor, w: Tensor, b: Tensor | None, last: bool, places: bool
) -> tuple[Tensor, Tensor | None]:
    """Convolve, pool and apply ReLU; return y and, if wanted, the places of the maxima as `Selection.at`."""
    y = torch.empty(len(w), shape.images, shape.output(last), dtype=w.dtype)
    at = torch.empty(y.shape, dtype=torch.int32) if places else None
    x, w, b = lined(x), lined(w), b if b is None else lined(b)
    maps().block(
        geometry(shape, len(w), last, x=x, w=w, b=b), y.dtype == torch.float64,
        _at(x), _at(w), _at(b), _at(y), _at(at),
    )  # fmt: skip
    return y, at


class DenseSelection(Selection):
    """The three maps by operations of PyTorch on any device: convolutions of all positions, and a choice."""

    def forward(
        self, x: Tensor, w: Tensor, b: Tensor | None, u: Tensor | None = None, v: Tensor | None = None
    ) -> Tensor:
        """y = x ∗ w + u ∗ v + b at the selected positions, 0 elsewhere."""
        plane = self._convolved(x, w)
        if u is not None and v is not None:
            plane = plane + self._convolved(u, v)
        if b is not None:
            plane = plane + b.unsqueeze(1)
        # (K, N · positions, channels) → the positions of each output
        plane = plane.view(len(plane), self.shape.images, -1, self.shape.channels)
        chosen = plane.gather(2, self._positions) * self._mask
        return self._laid_out(chosen)

    def to_input(self, y: Tensor, w: Tensor, z: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """Apply the transposes of x ↦ x ∗ w and u ↦ u ∗ v to y and z, and add; → (K, N, image)."""
        s = self.shape
        windows = torch.bmm(self._spread(y), _matrix(w).mT)
        if z is not None and v is not None:
            windows = torch.baddbmm(windows, self._spread(z), _matrix(v).mT)
        # (K, N · positions, depth · kernel) → the sum of the windows of each image
        each = windows.view(len(windows) * s.images, -1, windows.shape[-1])
        images = F.fold(each.mT, (s.height, s.width), s.kernel)
        return laid_out(images.view(len(windows), s.images, *images.shape[1:]), last=True)

    def to_weight(
        self, y: Tensor, x: Tensor, z: Tensor | None = None, u: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply the transposes of w ↦ x ∗ w and v ↦ u ∗ v to y and z, and add; and sum y for b."""
        s, spread = self.shape, self._spread(y)
        w = torch.bmm(spread.mT, self._windows(x).expand(len(spread), -1, -1))
        if z is not None and u is not None:
            w = torch.baddbmm(w, self._spread(z).mT, self._windows(u).expand(len(spread), -1, -1))
        return w.view(-1, s.channels, s.depth, *s.kernel), spread.sum(dim=1)

    @property
    def _plane(self) -> tuple[int, int]:
        s = self.shape
        return s.height - s.kernel[0] + 1, s.width - s.kernel[1] + 1

    @cached_property
    def _mask(self) -> Tensor:
        return self._ordered(self.at) >= 0

    @cached_property
    def _positions(self) -> Tensor:
        """Position of each output in the plane of the convolution; (K, N, places, channels)."""
        s = self.shape
        pixel = torch.div(self._ordered(self.at).clamp_min(0).long(), s.depth, rounding_mode="floor")
        line = torch.div(pixel, s.width, rounding_mode="floor")
        return pixel - line * (s.width - self._plane[1])

    def _ordered(self, y: Tensor) -> Tensor:
        """Return outputs as (K, N, places, channels)."""
        s = self.shape
        if self.last:
            return split_last(y[..., :-SLACK], s.places, s.channels)
        return split_last(y, s.channels, s.places).mT

    def _laid_out(self, y: Tensor) -> Tensor:
        return F.pad(y.flatten(2), (0, SLACK)) if self.last else y.mT.flatten(2)

    def _spread(self, y: Tensor) -> Tensor:
        """Return y at its positions, 0 elsewhere; → (K, N · positions, channels)."""
        s, (rows, columns) = self.shape, self._plane
        plane = y.new_zeros(len(y), s.images, rows * columns, s.channels)
        # Windows that overlap can select a position twice.
        plane.scatter_add_(2, self._positions, self._ordered(y) * self._mask)
        return plane.flatten(1, 2)

    def _windows(self, x: Tensor) -> Tensor:
        """Return the window of each position; → (K or 1, N · positions, depth · kernel)."""
        s = self.shape
        images = split_last(x[..., :-SLACK], s.height, s.width, s.depth)
        windows = images.unfold(2, s.kernel[0], 1).unfold(3, s.kernel[1], 1)
        return windows.reshape(len(x), -1, s.depth * s.kernel[0] * s.kernel[1])

    def _convolved(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(self._windows(x).expand(len(w), -1, -1), _matrix(w))


def dense_block(
    shape: Shape, x: Tensor, w: Tensor, b: Tensor | None, last: bool, places: bool
) -> tuple[Tensor, Tensor | None]:
    """Do the same as `compiled_block` by operations of PyTorch."""
    s, p = shape, shape.pooling
    images = split_last(x[..., :-SLACK], s.height, s.width, s.depth).permute(0, 1, 4, 2, 3)
    z = _convolved(images, w, b)
    values, where = F.max_pool2d(
        z.flatten(0, 1), p.kernel, p.stride, p.padding, p.dilation, p.ceil, return_indices=True
    )
    y = torch.relu(values) if s.relu else values  # the maximum of ReLUs is the ReLU of the maximum
    trials, across = len(w), s.width - s.kernel[1] + 1
    at = None
    if places:
        line = torch.div(where, across, rounding_mode="floor")
        at = (line * (s.width - across) + where) * s.depth  # (line · width + place − line · across) · depth
        if s.relu:
            # Written so that NaN stays selected: its derivative is NaN in PyTorch's ReLU too.
            at = at.masked_fill(y <= 0, -1)
        at = laid_out(at.to(torch.int32).view(trials, -1, *y.shape[1:]), last)
    return laid_out(y.view(trials, -1, *y.shape[1:]), last), at


def _convolved(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Convolve the images of each trial; (K or 1, N, C, H, W), (K, out, C, …) → (K, N, out, …)."""
    trials, bias = len(w), None if b is None else b.flatten()
    if len(x) == 1:  # images that all trials share: the kernels of all are channels of one convolution
        z = F.conv2d(x[0], w.flatten(0, 1), bias)
    else:
        z = F.conv2d(x.transpose(0, 1).flatten(1, 2), w.flatten(0, 1), bias, groups=trials)
    return z.view(len(z), trials, -1, *z.shape[2:]).transpose(0, 1)


def split_last(x: Tensor, *sizes: int) -> Tensor:
    """Split the last axis into axes of these sizes."""
    return x.view(*x.shape[:-1], *sizes)


def laid_out(y: Tensor, last: bool) -> Tensor:
    """Lay out (K, N, C, H, W): as images with channels last and their slack, or as numbers in this order."""
    return F.pad(y.permute(0, 1, 3, 4, 2).flatten(2), (0, SLACK)) if last else y.flatten(2)


def run_block(
    shape: Shape, x: Tensor, w: Tensor, b: Tensor | None, last: bool, places: bool
) -> tuple[Tensor, Selection | None]:
    """Convolve, pool and apply ReLU in the way that serves the device.

    Args:
        shape: the sizes.
        x: images with channels last, (K or 1, N, image).
        w: kernels, (K, channels, depth, *kernel).
        b: biases, (K, channels).
        last: whether the outputs are images with channels last.
        places: whether derivatives follow.

    Returns:
        The outputs, (K, N, output), and the selection if derivatives follow.
    """
    path = numerics(w.device.type)
    y, at = (compiled_block if path == "compiled" else dense_block)(shape, x, w, b, last, places)
    if at is None:
        return y, None
    if path == "triton":
        # Imported here: most machines have no GPU, and the import of Triton takes a second.
        from ahf_cli.optim.layers.triton_maps import TritonSelection

        return y, TritonSelection(shape, at, last)
    return y, CompiledSelection(shape, at, last) if path == "compiled" else DenseSelection(shape, at, last)


def maps() -> ModuleType:
    """Return the compiled maps; they must be there."""
    assert COMPILED is not None
    return COMPILED


def _matrix(w: Tensor) -> Tensor:
    """(K, channels, depth, *kernel) → (K, depth · kernel, channels)."""
    return w.flatten(2).mT


def lined(tensor: Tensor) -> Tensor:
    """Return a tensor whose rows are each contiguous."""
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
