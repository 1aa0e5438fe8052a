"""Repeated calls of one function of the parameters that is random or keeps running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

Buffers = dict[str, Tensor]


class Replay:
    """Makes several calls draw the noise of the first one and see the buffers that it saw.

    The first call runs freely: generators and buffers (running statistics of BatchNorm, the vectors of
    spectral normalization) move once.  Each further call starts from the same generators' states and from
    copies of the same buffers, and leaves both where they were: dropout masks are equal in all calls, so that
    h(θ) is one function of θ.  Buffers are those of every `nn.Module` that the call runs by `module(…)`.

    Args:
        device: where the parameters lie; on CUDA its generator is replayed beside that of the CPU.  Other
            sources of noise (numpy, `random`, a `torch.Generator` of one's own) are not.
    """

    def __init__(self, device: torch.device):
        self._cuda = [device] if device.type == "cuda" else []
        self._noise: list[Tensor] = []
        self._seen: dict[nn.Module, Buffers] = {}

    @contextmanager
    def call(self) -> Iterator[None]:
        """Run the body as the first call, or as a repetition of it."""
        if not self._noise:
            self._noise = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]
            with _before_each_module(self._note):
                yield
            return
        with torch.random.fork_rng(self._cuda, device_type="cuda"), self._copied_buffers():
            torch.set_rng_state(self._noise[0])
            for device, state in zip(self._cuda, self._noise[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield

    def _note(self, module: nn.Module) -> None:
        if module._buffers and module not in self._seen:
            self._seen[module] = _copies(module._buffers)

    @contextmanager
    def _copied_buffers(self) -> Iterator[None]:
        # Copies take the buffers' places: writing into the buffers would spoil graphs that hold them.
        placed: dict[nn.Module, tuple[dict[str, Tensor | None], Buffers]] = {}

        def place(module: nn.Module) -> None:
            if module._buffers and module not in placed:
                copies = _copies(self._seen.get(module, module._buffers))
                placed[module] = dict(module._buffers), copies
                module._buffers.update(copies)

        try:
            with _before_each_module(place):
                yield
        finally:
            for module, (originals, copies) in placed.items():
                for name, copy in copies.items():
                    if module._buffers.get(name) is copy:  # or somebody else has put another one there
                        module._buffers[name] = originals[name]


def _copies(buffers: Any) -> Buffers:
    return {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}


@contextmanager
def _before_each_module(note: Any) -> Iterator[None]:
    handle = register_module_forward_pre_hook(lambda module, _: note(module))
    try:
        yield
    finally:
        handle.remove()
