"""Which linear maps a forward pass applied: inputs and outputs of every linear and convolution layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ahf_cli.optim.convolution import Geometry, geometry_of, patches


@dataclass(frozen=True)
class LayerCall:
    """y = W a + b, or a convolution, within one forward pass of N examples."""

    input: Tensor  # a, (N, in) or (N, channels, height, width)
    output: Tensor  # y, (N, out) or (N, out, height', width'), with its graph
    weight: int  # position of W among the parameters
    bias: int | None  # position of b
    convolution: tuple[tuple[int, ...], Geometry] | None  # kernel size and geometry of a convolution

    def patches(self) -> Tensor:
        """Return what W multiplies: (N, in, 1) or, for a convolution, (N, in · kernel, positions)."""
        if self.convolution is None:
            return self.input.detach().unsqueeze(-1)
        return patches(self.input.detach(), *self.convolution)


@dataclass
class LayerRecorder(TorchFunctionMode):
    """Within this context, notes every `F.linear` and `torch.conv2d` whose weight is a parameter."""

    parameters: Sequence[Tensor]
    calls: list[LayerCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._position = {id(p): n for n, p in enumerate(self.parameters)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function and note it."""
        output = func(*args, **(kwargs or {}))
        if func is F.linear or func is torch.conv2d:
            self._note(func, args, kwargs or {}, output)
        return output

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        weight, bias = given["weight"], given.get("bias")
        if id(weight) not in self._position:
            return
        convolution = None
        if func is torch.conv2d:
            if given.get("groups", 1) != 1 or isinstance(given.get("padding", 0), str):
                return
            options = {name: given[name] for name in ("stride", "padding", "dilation") if name in given}
            convolution = (tuple(weight.shape[2:]), geometry_of(**options))
        elif output.dim() != 2:
            return
        place = None if bias is None else self._position.get(id(bias))
        self.calls.append(LayerCall(given["input"], output, self._position[id(weight)], place, convolution))
