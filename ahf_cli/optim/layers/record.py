"""The operations of a module's forward pass on one batch, recorded without computing them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Linear:
    """x ↦ x Wᵀ + b along the last axis; the fields number the parameters in the model's order."""

    weight: int
    bias: int | None


@dataclass(frozen=True)
class Convolution:
    """A two-dimensional convolution with stride 1; the fields number the parameters."""

    weight: int
    bias: int | None
    shape: tuple[int, int, int, int]  # channels, depth, kernel height and width
    padding: tuple[int, int]


@dataclass(frozen=True)
class MaxPooling:
    """Max-pooling, with the options of `F.max_pool2d`."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil: bool


@dataclass(frozen=True)
class Pointwise:
    """A function of each number, by name."""

    name: str


@dataclass(frozen=True)
class Flatten:
    """(N, …) ↦ (N, entries)."""


Operation = Linear | Convolution | MaxPooling | Pointwise | Flatten


@dataclass(frozen=True)
class Recording:
    """A forward pass as a sequence of operations, each applied to the result of the one before."""

    operations: tuple[Operation, ...]
    shapes: tuple[torch.Size, ...]
    """shape of the input of each operation, and last of the output; each (N, …)"""


class _Unknown(Exception):  # noqa: N818  # it never leaves this file
    """The forward pass is no chain of known operations."""


def record(model: nn.Module, inputs: Tensor) -> Recording | None:
    """Return the forward pass of a module on inputs (N, …) as a chain; None for any other forward pass.

    The module runs once on placeholders of the right shapes.  A known operation on them is written down; any
    other one ends the attempt, and so does a weight that is not a parameter itself.
    """
    if not inputs.is_meta and torch.is_autocast_enabled(inputs.device.type):
        return None
    mode = _Recorder(model, inputs)
    try:
        with torch.enable_grad(), mode:  # the branch of a module that is differentiated
            result = model(mode.last)
    except _Unknown:
        return None
    if mode.failed or result is not mode.last or not mode.operations:
        return None
    return Recording(tuple(mode.operations), tuple(mode.shapes))


@dataclass(eq=False)
class _Recorder(TorchFunctionMode):
    """Answers every operation on a placeholder by the placeholder of its result."""

    model: nn.Module
    inputs: Tensor
    operations: list[Operation] = field(default_factory=list)
    failed: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.numbers = {id(p): number for number, (_, p) in enumerate(self.model.named_parameters())}
        # One number, repeated by strides of 0: a placeholder costs no memory and no time.
        self.one = self.inputs.new_zeros(())
        self.kept: list[Tensor] = []  # else a new tensor could get the identity of a deleted tensor
        self.shapes: list[torch.Size] = []
        self.last = self.place(self.inputs.shape)

    def place(self, shape: Sequence[int]) -> Tensor:
        """Return the placeholder of the next result."""
        placed = self.one.expand(*shape)
        self.kept.append(placed)
        self.shapes.append(placed.shape)
        return placed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Write a known operation down; let questions and unrelated operations pass."""
        kwargs = kwargs or {}
        if func in QUESTIONS or not self.touches((*args, *kwargs.values())):
            return func(*args, **kwargs)
        known = KNOWN.get(func)
        try:
            if known is None or not args or args[0] is not self.last:
                raise _Unknown
            operation, shape = known(self, *args[1:], **kwargs)
        except (_Unknown, TypeError):
            self.failed = True  # a module could catch the exception
            raise _Unknown from None
        if operation is not None:
            self.operations.append(operation)
        else:
            self.shapes.pop()
        self.last = self.place(shape)
        return self.last

    def touches(self, values: Sequence[Any]) -> bool:
        """Return whether any value is a placeholder, or holds one."""
        for value in values:
            if isinstance(value, Tensor):
                if any(value is placed for placed in self.kept):
                    return True
            elif isinstance(value, list | tuple) and self.touches(value):
                return True
        return False

    @property
    def shape(self) -> torch.Size:
        """Shape of the last result."""
        return self.shapes[-1]

    def number(self, parameter: Any) -> int:
        """Return the number of a parameter; anything else is unknown."""
        if not isinstance(parameter, Tensor) or id(parameter) not in self.numbers:
            raise _Unknown
        return self.numbers[id(parameter)]

    def bias(self, parameter: Any) -> int | None:
        """Return the number of a parameter or None."""
        return None if parameter is None else self.number(parameter)


Step = tuple[Operation | None, Sequence[int]]


def _linear(mode: _Recorder, weight: Any, bias: Any = None) -> Step:
    operation = Linear(mode.number(weight), mode.bias(bias))
    if len(mode.shape) < 2:
        raise _Unknown
    return operation, (*mode.shape[:-1], len(weight))


def _convolution(
    mode: _Recorder, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Step:  # fmt: skip
    if len(mode.shape) != 4 or isinstance(padding, str):
        raise _Unknown
    if _pair(stride) != (1, 1) or _pair(dilation) != (1, 1) or groups != 1:
        raise _Unknown
    operation = Convolution(mode.number(weight), mode.bias(bias), tuple(weight.shape), _pair(padding))
    spatial = (
        size + 2 * pad - k + 1
        for size, pad, k in zip(mode.shape[2:], operation.padding, operation.shape[2:], strict=True)
    )
    return operation, (mode.shape[0], len(weight), *spatial)


def _max_pooling(
    mode: _Recorder, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Step:  # fmt: skip
    if len(mode.shape) != 4 or return_indices:
        raise _Unknown
    kernel = _pair(kernel_size)
    step = kernel if stride in (None, (), []) else _pair(stride)
    operation = MaxPooling(kernel, step, _pair(padding), _pair(dilation), ceil_mode)
    meta = torch.empty(mode.shape, device="meta")
    with torch._C.DisableTorchFunction():  # PyTorch's own rule for the shape
        pooled = torch.max_pool2d(meta, kernel, step, operation.padding, operation.dilation, ceil_mode)
    return operation, pooled.shape


def _flatten(mode: _Recorder, start_dim: int = 0, end_dim: int = -1) -> Step:
    return _reshaped(mode, (*mode.shape[:start_dim], -1, *mode.shape[end_dim:][1:]))


def _reshape(mode: _Recorder, *shape: Any) -> Step:
    return _reshaped(mode, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)


def _reshaped(mode: _Recorder, shape: Sequence[int]) -> Step:
    entries, count = mode.shape[1:].numel(), mode.shape[0]
    rest = math.prod(size for size in shape if size != -1)
    full = [mode.shape.numel() // max(rest, 1) if size == -1 else size for size in shape]
    if full == list(mode.shape):
        return None, full
    if full != [count, entries]:
        raise _Unknown
    return Flatten(), full


def _same(mode: _Recorder) -> Step:
    return None, mode.shape


def _dropout(mode: _Recorder, p: float = 0.5, training: bool = True, inplace: bool = False) -> Step:
    if training and p > 0:
        raise _Unknown
    return None, mode.shape


def _pointwise(name: str) -> Callable[..., Step]:
    def step(mode: _Recorder, inplace: bool = False) -> Step:
        return Pointwise(name), mode.shape

    return step


def _pair(value: Any) -> tuple[int, int]:
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    return (sizes[0], sizes[-1])


KNOWN: dict[Callable[..., Any], Callable[..., Step]] = {
    F.linear: _linear,
    torch.conv2d: _convolution,
    torch.max_pool2d: _max_pooling,
    F.max_pool2d: _max_pooling,
    torch.flatten: _flatten,
    Tensor.flatten: _flatten,
    torch.reshape: _reshape,
    Tensor.reshape: _reshape,
    Tensor.view: _reshape,
    Tensor.contiguous: _same,
    F.dropout: _dropout,
    **{f: _pointwise("relu") for f in (F.relu, torch.relu, Tensor.relu)},
    **{f: _pointwise("tanh") for f in (F.tanh, torch.tanh, Tensor.tanh)},
    **{f: _pointwise("sigmoid") for f in (F.sigmoid, torch.sigmoid, Tensor.sigmoid)},
}
"""Operations that a chain may hold."""
QUESTIONS = frozenset(
    [
        getattr(getattr(Tensor, name), "__get__")  # noqa: B009
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_nested", "layout")
    ]
    + [Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point]
)
"""Operations that only ask for shape or type."""
