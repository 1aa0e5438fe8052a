"""Convolution as three mutually differentiable operations, for cheap second derivatives.

PyTorch's own double backward of a convolution makes the weight gradient by a convolution whose kernel is as
large as the output, which is slow on a CPU.  The three bilinear maps below are closed under differentiation:
each derivative of one is another one of them, so that every order of derivative runs on the fast kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MAX_PATCHES = 2**24
"""Most numbers that are kept of an unfolded input; 64 MiB in float32."""


class Geometry(NamedTuple):
    """The arguments of a two-dimensional convolution other than its tensors."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def _backward(y: Tensor, x: Tensor, w: Tensor, geometry: Geometry, mask: list[bool]) -> list[Tensor]:
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        y, x, w, None, stride, padding, dilation, False, [0, 0], groups, mask
    )


class _Forward(torch.autograd.Function):
    """(x, w) → x ∗ w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        stride, padding, dilation, groups = geometry
        return torch.ops.aten.convolution(  # type: ignore[no-any-return]
            x, w, None, stride, padding, dilation, False, [0, 0], groups
        )

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        to_input, to_weight, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(y, w, x, ctx.geometry) if to_input else None,
            _WeightGradient.apply(y, x, w, ctx.geometry) if to_weight else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """(y, w) → the transpose of x ↦ x ∗ w, applied to y; `like` lends its shape only."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(y, w)
        ctx.geometry = geometry
        return _backward(y, like, w, geometry, [True, False, False])[0]

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        y, w = ctx.saved_tensors
        to_output, to_weight, _, _ = ctx.needs_input_grad
        return (
            _Forward.apply(x, w, ctx.geometry) if to_output else None,
            _WeightGradient.apply(y, x, w, ctx.geometry) if to_weight else None,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """(y, x) → the transpose of w ↦ x ∗ w, applied to y; `like` lends its shape only."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(y, x)
        ctx.geometry = geometry
        return _backward(y, x, like, geometry, [False, True, False])[1]

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        y, x = ctx.saved_tensors
        to_output, to_input, _, _ = ctx.needs_input_grad
        return (
            _Forward.apply(x, w, ctx.geometry) if to_output else None,
            _InputGradient.apply(y, w, x, ctx.geometry) if to_input else None,
            None,
            None,
        )


class _Correlate(torch.autograd.Function):
    """(w, patches) → w ∗ x of an input that is constant: linear in w alone, as small matrix products."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, patches: Tensor) -> Tensor:
        ctx.save_for_backward(patches)
        ctx.shape = w.shape
        return torch.bmm(w.reshape(1, len(w), -1).expand(len(patches), -1, -1), patches)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor, None]:
        (patches,) = ctx.saved_tensors
        return _CorrelateTranspose.apply(y, patches, ctx.shape), None


class _CorrelateTranspose(torch.autograd.Function):
    """(y, patches) → the transpose of w ↦ w ∗ x, applied to y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, patches: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(patches)
        return torch.bmm(y, patches.transpose(1, 2)).sum(dim=0).reshape(shape)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, None, None]:
        (patches,) = ctx.saved_tensors
        return _Correlate.apply(w, patches), None, None


def patches(input: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """What each output position of a convolution sees; (N, channels, …) → (N, channels · kernel, positions).

    The same numbers as `F.unfold`, several times faster for being one strided copy.
    """
    if geometry.dilation != [1, 1]:
        return F.unfold(
            input, tuple(kernel), *map(tuple, (geometry.dilation, geometry.padding, geometry.stride))
        )
    (rows, columns), (down, right) = geometry.padding, geometry.stride
    padded = F.pad(input, (columns, columns, rows, rows)) if rows or columns else input
    windows = padded.unfold(2, kernel[0], down).unfold(3, kernel[1], right)  # (N, C, h′, w′, kh, kw)
    return windows.permute(0, 1, 4, 5, 2, 3).reshape(len(input), input.shape[1] * kernel[0] * kernel[1], -1)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def geometry_of(stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Geometry:
    """Bring the arguments of `torch.conv2d` into one form."""
    return Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d` with the same arguments and results, whose second derivatives are cheap on a CPU.

    An input without a graph, as that of the first layer, is unfolded once and kept, which makes the layer a
    matrix product.  Unbatched inputs, padding by name and autocast go to PyTorch's own.
    """
    if input.dim() != 4 or isinstance(padding, str) or torch.is_autocast_enabled(input.device.type):
        own: Callable[..., Tensor] = torch.conv2d
        return own(input, weight, bias, stride, padding, dilation, groups)
    geometry = geometry_of(stride, padding, dilation, groups)
    output: Tensor
    if not input.requires_grad and groups == 1 and input.numel() * weight[0, 0].numel() <= MAX_PATCHES:
        shape = _output_shape(input, weight, geometry)
        output = _Correlate.apply(weight, patches(input, weight.shape[2:], geometry)).reshape(shape)
    else:
        output = _Forward.apply(input, weight, geometry)
    return output if bias is None else output + bias.reshape(-1, 1, 1)


def _output_shape(input: Tensor, weight: Tensor, geometry: Geometry) -> list[int]:
    sizes = zip(
        input.shape[2:], weight.shape[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True
    )
    spatial = [
        (size + 2 * pad - dilation * (k - 1) - 1) // step + 1 for size, k, step, pad, dilation in sizes
    ]
    return [len(input), len(weight), *spatial]


class CheapSecondDerivatives(TorchFunctionMode):
    """Within this context every `torch.conv2d`, in any module, is the `conv2d` of this file."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Divert `torch.conv2d`; leave everything else as it is."""
        return (conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))
