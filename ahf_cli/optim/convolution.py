"""Convolution as three mutually differentiable operations, for cheap second derivatives.

PyTorch's own double backward of a convolution makes the weight gradient by a convolution whose kernel is as
large as the output, which is slow on a CPU.  The three bilinear maps below are closed under differentiation:
each derivative of one is another one of them, so that every order of derivative runs on the fast kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d` with the same arguments and results, whose second derivatives are cheap on a CPU.

    Unbatched inputs and padding by name go to PyTorch's own.
    """
    if input.dim() != 4 or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    output: Tensor = _Forward.apply(input, weight, geometry)
    return output if bias is None else output + bias.reshape(-1, 1, 1)


class CheapSecondDerivatives(TorchFunctionMode):
    """Within this context every `torch.conv2d`, in any module, is the `conv2d` of this file."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Divert `torch.conv2d`; leave everything else as it is."""
        return (conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))
