"""Max-pooling for forward passes without a graph, where nobody asks which element was the largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`F.max_pool2d` with the same values, as the maximum of strided views: faster on a CPU.

    PyTorch's own also finds the positions of the maxima, one element at a time.  Windows that overlap, other
    options and inputs with a graph go to PyTorch's own.
    """
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    plain = stride in (None, (), kernel_size, (height, width), [height, width])
    plain = plain and padding in (0, (0, 0)) and dilation in (1, (1, 1)) and not ceil_mode
    if not plain or return_indices or (torch.is_grad_enabled() and input.requires_grad):
        stride = None if stride == () else stride
        original: Callable[..., Any] = F.max_pool2d
        return original(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    rows, columns = input.shape[-2] // height, input.shape[-1] // width
    whole = input[..., : rows * height, : columns * width]  # what does not fill a window is dropped
    for size, axis in ((height, -2), (width, -1)):
        views = [whole[..., n::size, :] if axis == -2 else whole[..., n::size] for n in range(size)]
        whole = views[0]
        for view in views[1:]:
            whole = torch.maximum(whole, view)
    return whole
