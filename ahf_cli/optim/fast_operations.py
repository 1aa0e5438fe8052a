"""Convolution and max-pooling that replace PyTorch's on a CPU, with the same results in less time.

PyTorch's double backward of a convolution makes the weight gradient by another convolution.  Its kernel is as
large as the output, which is slow on a CPU.  Here convolution is three bilinear maps that are closed under
differentiation: each derivative of one is another one.  So derivatives of every order run on fast kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ahf_cli.optim.corrected import CORRECTED, transformed, uncompiled

MAX_PATCHES = 2**24
"""Largest number of entries of an unfolded input that is kept; 64 MiB in float32."""


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


class _Wanted(threading.local):
    """A switch for each thread: a backward pass on a CPU runs in the thread that calls it."""

    cotangent_only = False


_WANTED = _Wanted()


@contextmanager
def linear_in_cotangent() -> Iterator[None]:
    """Build backward graphs that are differentiable in their cotangent c alone: J v from Jᵀ c needs no more.

    Autograd does not say which derivatives of a custom operation the caller needs.  Without this switch every
    J v would also compute the change of Jᵀ c with weights and activations, and discard it.
    """
    before, _WANTED.cotangent_only = _WANTED.cotangent_only, True
    try:
        yield
    finally:
        _WANTED.cotangent_only = before


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
        if _WANTED.cotangent_only:
            # Detached tensors need no gradient, so the graph that is built here skips their branches.
            x, w = x.detach(), w.detach()
        to_input, to_weight, _ = ctx.needs_input_grad
        return (
            _InputGradient.apply(y, w, x, ctx.geometry) if to_input else None,
            _WeightGradient.apply(y, x, w, ctx.geometry) if to_weight else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """(y, w) → the transpose of x ↦ x ∗ w, applied to y; of `like` only the shape counts."""

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
    """(y, x) → the transpose of w ↦ x ∗ w, applied to y; of `like` only the shape counts."""

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
    """(w, patches) → w ∗ x of a constant input, linear in w alone: one small matrix product an example.

    w is (out, rows), with one column for each row of the patches: the kernel, and the bias beside it.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, patches: Tensor) -> Tensor:
        ctx.save_for_backward(patches)
        return torch.bmm(w.expand(len(patches), -1, -1), patches)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor, None]:
        (patches,) = ctx.saved_tensors
        return _CorrelateTranspose.apply(y, patches), None


class _CorrelateTranspose(torch.autograd.Function):
    """(y, patches) → the transpose of w ↦ w ∗ x, applied to y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, patches: Tensor) -> Tensor:
        ctx.save_for_backward(patches)
        # A batched product and a sum: one product of the joined examples would first copy all patches.
        return torch.bmm(y, patches.transpose(1, 2)).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, None]:
        (patches,) = ctx.saved_tensors
        return _Correlate.apply(w, patches), None


def patches(input: Tensor, kernel: Sequence[int], geometry: Geometry, ones: int = 0) -> Tensor:
    """Return the inputs of each output position; (N, channels, …) → (N, channels · kernel, positions).

    The numbers are equal to `F.unfold`; one strided copy makes them several times faster.  Then come `ones`
    rows of ones, the factor of a bias.
    """
    (rows, columns), (down, right), (apart, beside) = geometry.padding, geometry.stride, geometry.dilation
    padded = F.pad(input, (columns, columns, rows, rows)) if rows or columns else input
    tall, wide = apart * (kernel[0] - 1) + 1, beside * (kernel[1] - 1) + 1
    windows = padded.unfold(2, tall, down).unfold(3, wide, right)[..., ::apart, ::beside]
    windows = windows.permute(0, 1, 4, 5, 2, 3)  # (N, C, kernel rows, kernel columns, rows, columns), a view
    seen = windows[0].shape[:3].numel()
    result = input.new_empty(len(input), seen + ones, windows[0, 0, 0, 0].numel())
    result[:, :seen].view(windows.shape).copy_(windows)
    result[:, seen:] = 1
    return result


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (2 // len(value))


def geometry_of(stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Geometry:
    """Return the arguments of `torch.conv2d` in one form, each a pair."""
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
    """Convolve with the arguments and results of `torch.conv2d`; second derivatives are cheap on a CPU.

    An input without a graph, such as the first layer's, is unfolded once and kept, which makes the layer a
    matrix product.  PyTorch's operation runs without gradients, under autocast, and for unbatched inputs or
    padding by name.
    """
    own_way = not torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type)
    if own_way or input.dim() != 4 or isinstance(padding, str):
        own: Callable[..., Tensor] = torch.conv2d
        # Inside `FasterOperations` this name still means PyTorch's: a mode is off while it handles a call.
        return own(input, weight, bias, stride, padding, dilation, groups)
    geometry = geometry_of(stride, padding, dilation, groups)
    output: Tensor
    if not input.requires_grad and groups == 1 and input.numel() * weight[0, 0].numel() <= MAX_PATCHES:
        return _correlate(input, weight, bias, geometry)
    # The bias stays outside the bilinear map; autograd differentiates the sum itself.
    output = _Forward.apply(input, weight, geometry)
    return output if bias is None else output + bias.reshape(-1, 1, 1)


def _correlate(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution of an input without a graph; the bias is one more weight, of the constant 1."""
    weights = weight.reshape(len(weight), -1)
    if bias is not None:
        weights = torch.cat([weights, bias.unsqueeze(1)], dim=1)
    seen = patches(input, weight.shape[2:], geometry, ones=0 if bias is None else 1)
    output: Tensor = _Correlate.apply(weights, seen)
    return output.reshape(_output_shape(input, weight, geometry))


def _output_shape(input: Tensor, weight: Tensor, geometry: Geometry) -> list[int]:
    sizes = zip(
        input.shape[2:], weight.shape[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True
    )
    spatial = [
        (size + 2 * pad - dilation * (k - 1) - 1) // step + 1 for size, k, step, pad, dilation in sizes
    ]
    return [len(input), len(weight), *spatial]


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Pool with the values of `F.max_pool2d`, as the maximum of strided views: faster on a CPU.

    PyTorch's operation also finds the position of each maximum, one element at a time.  It still runs for
    windows that overlap, other options and inputs with a graph.
    """
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    plain = stride in (None, (), kernel_size, (height, width), [height, width])
    plain = plain and padding in (0, (0, 0)) and dilation in (1, (1, 1)) and not ceil_mode
    if not plain or return_indices or (torch.is_grad_enabled() and input.requires_grad):
        stride = None if stride == () else stride  # `torch.max_pool2d` writes the default as ()
        original: Callable[..., Any] = F.max_pool2d
        return original(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    rows, columns = input.shape[-2] // height, input.shape[-1] // width
    whole = input[..., : rows * height, : columns * width]  # a remainder smaller than a window is dropped
    # Rows first: their views are contiguous along the last axis, and leave less for the columns.
    for size, axis in ((height, -2), (width, -1)):
        views = [whole[..., n::size, :] if axis == -2 else whole[..., n::size] for n in range(size)]
        whole = views[0]
        for view in views[1:]:
            whole = torch.maximum(whole, view)
    return whole


FASTER: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv2d: conv2d,
    torch.max_pool2d: max_pool2d,
    F.max_pool2d: max_pool2d,
}


def others_transform() -> bool:
    """Tell whether `torch.func`, forward mode, tracing or hooks on saved tensors see each operation here.

    They know PyTorch's operations.  A checkpoint is one of them: it compares what both its passes save.
    """
    return transformed() or forward_ad._current_level >= 0 or torch._C._is_tracing() or saves_by_hooks()


def saves_by_hooks() -> bool:
    """Tell whether hooks take the tensors that graphs save, as in a checkpoint."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class FasterOperations(TorchFunctionMode):
    """A context in which any module convolves and pools by the operations of this file.

    On each device, operations with a wrong or missing second derivative have one (`corrected`).
    """

    def __init__(self, faster: bool = True):
        super().__init__()
        self._faster = FASTER if faster else {}
        self.hooked = False
        """whether a call saved its tensors by hooks, so that a backward pass may run a part again"""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the faster or the corrected operation where there is one, else the given one."""
        self.hooked = self.hooked or saves_by_hooks()
        own = CORRECTED.get(func, func)
        if func in self._faster and not others_transform():
            own = self._faster[func]
        return own(*args, **(kwargs or {}))


@contextmanager
def faster_operations(device: torch.device) -> Iterator[FasterOperations]:
    """Return the context for a device; only on a CPU convolution and pooling are faster than PyTorch's."""
    with uncompiled(), FasterOperations(faster=device.type == "cpu") as operations:
        yield operations
