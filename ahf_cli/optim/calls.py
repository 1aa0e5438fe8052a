"""The surroundings of a closure's calls: equal noise, buffers and modes in all calls of one step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from ahf_cli.optim.backward import Differentiated
from ahf_cli.optim.fast_operations import FasterOperations, faster_operations
from ahf_cli.optim.recomputation import same_operations

Buffers = dict[str, Tensor]
SHARDED = ("FullyShardedDataParallel", "FSDPModule")
_ONE_AT_A_TIME = threading.RLock()
"""Held during a call: generators, hooks and kernels belong to the process, not to a thread."""


@dataclass(frozen=True)
class Ambient:
    """Autocast as the caller of a step set it; the core itself computes without it."""

    device: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device) -> Ambient:
        """Return the present setting for a device."""
        kind = device.type
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run the body under the caller's autocast."""
        torch.clear_autocast_cache()  # it holds casts of the parameters at their earlier values
        if not self.enabled:
            yield
            return
        with torch.autocast(self.device, dtype=self.dtype):
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Run the body with graphs, without autocast and outside inference mode."""
        with torch.inference_mode(False), torch.enable_grad():
            if not self.enabled:
                yield
                return
            with torch.autocast(self.device, enabled=False):
                yield


class Replay:
    """Repeated calls of one random function: each draws the noise and reads the buffers of the first call.

    The first call runs freely: generators and buffers (running statistics of BatchNorm, vectors of spectral
    normalization) move once.  Each further call starts from the same states of the generators and from copies
    of the same buffers.  It leaves both unchanged.  So dropout masks are equal in all calls, and h(θ) is one
    function of θ.  The buffers of every `nn.Module` that a call runs by `module(…)` are included.

    Args:
        device: device of the parameters; on CUDA the generators of the GPU and of the CPU are replayed.
            Other sources of noise (numpy, `random`, a private `torch.Generator`) are not replayed.
    """

    def __init__(self, device: torch.device):
        self._cuda = [device] if device.type == "cuda" else []
        self._noise: list[Tensor] = []
        self._draws = True
        self._seen: dict[nn.Module, Buffers] = {}
        self._after: dict[nn.Module, Buffers] = {}
        self.data_parallel: DistributedDataParallel | None = None
        """a module of the first call that has the same parameters in all ranks"""

    @contextmanager
    def call(self) -> Iterator[None]:
        """Run the body as the first call, or as a repetition of the first."""
        if not self._noise:
            self._noise = self._states()
            with _before_each_module(self._note):
                yield
            self._draws = any(not torch.equal(a, b) for a, b in zip(self._noise, self._states(), strict=True))
            self._after = {module: _copies(module._buffers) for module in self._seen}
            return
        with ExitStack() as stack:
            if self._draws:
                stack.enter_context(torch.random.fork_rng(self._cuda, device_type="cuda"))
                torch.set_rng_state(self._noise[0])
                for device, state in zip(self._cuda, self._noise[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            stack.enter_context(self._copied_buffers())
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Run a backward pass: modules that a checkpoint runs again read the same buffers and leave them."""
        with self._copied_buffers():
            yield

    @torch.no_grad()
    def end(self) -> None:
        """Give buffers their values after the first call: a checkpoint's second pass may have moved them."""
        for module, buffers in self._after.items():
            for name, value in buffers.items():
                now = module._buffers.get(name)
                if now is not None and not torch.equal(now, value):
                    now.copy_(value)

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._cuda)]

    def _note(self, module: nn.Module) -> None:
        if isinstance(module, DistributedDataParallel):
            self.data_parallel = module
        elif any(kind.__name__ in SHARDED for kind in type(module).__mro__):
            raise ValueError(f"{type(module).__name__} divides the parameters among ranks: not supported")
        if module._buffers and module not in self._seen:
            self._seen[module] = _copies(module._buffers)

    @contextmanager
    def _copied_buffers(self) -> Iterator[None]:
        # Copies replace the buffers: a write into the buffers would invalidate graphs that hold them.
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
                    # A call may have replaced the buffer: then the new one stays.
                    if module._buffers.get(name) is copy:
                        module._buffers[name] = originals[name]


def _copies(buffers: Any) -> Buffers:
    return {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}


@contextmanager
def _before_each_module(note: Callable[[nn.Module], None]) -> Iterator[None]:
    own = threading.get_ident()
    # The hook is the process's: modules of other threads pass through it as well.
    handle = register_module_forward_pre_hook(
        lambda module, _: note(module) if threading.get_ident() == own else None
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def surroundings(
    replay: Replay, ambient: Ambient, device: torch.device, noted: Differentiated
) -> Iterator[FasterOperations]:
    """Run a call in the modes that products need.

    Attention runs as plain matrix products, and compiled modules run eagerly: PyTorch's fused and compiled
    kernels have no second derivative.  On a GPU recurrent layers leave cuDNN for the same reason.
    """
    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.enter_context(replay.call())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        operations = stack.enter_context(faster_operations(device))
        stack.enter_context(ambient.restored())
        stack.enter_context(noted)
        stack.enter_context(noted.gradients())
        yield operations


@contextmanager
def backward_surroundings(replay: Replay, device: torch.device) -> Iterator[None]:
    """Run a backward pass through checkpoints: what runs again has the operations and buffers of the call."""
    with _ONE_AT_A_TIME, replay.backward(), same_operations(device):
        yield


def ranks() -> int:
    """Return the number of ranks of this run; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
