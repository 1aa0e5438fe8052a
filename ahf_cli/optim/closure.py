"""h(θ) of a closure: the loss of any model at given values of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from ahf_cli.optim.fast_operations import faster_operations
from ahf_cli.optim.linearization import GraphLinearization
from ahf_cli.optim.losses import autograd_hessian
from ahf_cli.optim.rows import Layout

Buffers = dict[str, Tensor]


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
        self._seen: dict[nn.Module, Buffers] = {}

    @contextmanager
    def call(self) -> Iterator[None]:
        """Run the body as the first call, or as a repetition of the first."""
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
def _before_each_module(note: Any) -> Iterator[None]:
    handle = register_module_forward_pre_hook(lambda module, _: note(module))
    try:
        yield
    finally:
        handle.remove()


Closure = Callable[[], Tensor | tuple[Tensor, Tensor] | list[Tensor]]
"""() ↦ the loss, or (loss, outputs), at the present values of the parameters; calls no `backward`."""

FORM = "the closure must return the scalar loss, or (loss, outputs)"
NO_BACKWARD = "the closure must not call backward(): return the loss with its graph"


class ClosureObjective:
    """h(θ), an `Objective` of K = 1 rows: it writes θ into the parameters and calls the closure.

    All calls of one step are one function of θ: by `Replay` they draw the same noise and read the same
    buffers.  Attention runs as plain matrix products: PyTorch's fused kernels have no second derivative.

    Args:
        closure: returns the loss, or (loss, outputs).
        parameters: the leaves, in the order of the layout.
        layout: where each parameter lies in θ.
        needs_outputs: whether Gauss-Newton products follow.
        check: whether to search for parameters without effect on the loss, which costs one gradient.

    Raises:
        TypeError: by `value` and `evaluate`, if the closure returns something else.
        ValueError: by `evaluate`, if outputs are needed and absent or without their graph.
        RuntimeError: by `evaluate`, if the loss has no graph, does not depend on a parameter, has a sparse
            gradient, or if the closure calls `backward`.
    """

    def __init__(
        self, closure: Closure, parameters: list[Tensor], layout: Layout, needs_outputs: bool, check: bool
    ):
        self.closure, self.parameters, self.layout = closure, parameters, layout
        self.needs_outputs, self.check = needs_outputs, check
        self._replay = Replay(parameters[0].device)

    def value(self, parameters: Tensor) -> Tensor:
        """h(θ) without a graph; (1, P) → (1,).  The parameters keep their values."""
        before = [p.data for p in self.parameters]
        try:
            # Exchanging the storage, unlike writing into it, leaves graphs at the present values usable.
            for p, value in zip(self.parameters, self.layout.split(parameters), strict=True):
                p.data = value[0]
            with torch.no_grad():
                return self._call()[0].reshape(1)
        finally:
            for p, data in zip(self.parameters, before, strict=True):
                p.data = data

    def evaluate(self, parameters: Tensor) -> GraphLinearization:
        """Prepare h and its derivatives at the present values of the parameters, which θ must equal."""
        with torch.enable_grad():
            loss, outputs = self._call()
            self._check_loss(loss)
            if self.needs_outputs:
                _check_outputs(outputs)
            return GraphLinearization(
                self.layout,
                self.parameters,
                loss.reshape(1),
                outputs,
                lambda: autograd_hessian(loss, outputs),  # type: ignore[arg-type]  # called with outputs only
            )

    @torch.no_grad()
    def assign(self, parameters: Tensor) -> None:
        """Write θ, (1, P), into the parameters."""
        for p, value in zip(self.parameters, self.layout.split(parameters), strict=True):
            p.copy_(value[0])

    def _call(self) -> tuple[Tensor, Tensor | None]:
        torch.clear_autocast_cache()  # it holds casts of the parameters at their earlier values
        with (
            self._replay.call(),
            sdpa_kernel(SDPBackend.MATH),
            faster_operations(self.parameters[0].device),
            _NoBackward(),
        ):
            return _loss_and_outputs(self.closure())

    def _check_loss(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise RuntimeError(
                "the loss depends on no optimized parameter: return it with its graph, "
                "not detached or from no_grad"
            )
        if not self.check:
            return
        # At the first step only.  Without it an unused parameter would have a zero gradient, unnoticed.
        gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        named = list(zip(self.layout.names, gradients, strict=True))
        if unused := [name for name, g in named if g is None]:
            raise RuntimeError(
                f"the loss does not depend on {', '.join(unused)}: "
                "leave unused parameters out of the optimizer"
            )
        if sparse := [name for name, g in named if g is not None and g.layout != torch.strided]:
            raise RuntimeError(
                f"the gradient of {', '.join(sparse)} is sparse and has no second derivative: "
                "make the embedding with sparse=False"
            )


class _NoBackward(TorchFunctionMode):
    """Within this context `tensor.backward()` is an error: it would free the graph that products need."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse `backward`; leave everything else as it is."""
        if func is Tensor.backward:
            raise RuntimeError(NO_BACKWARD)
        return func(*args, **(kwargs or {}))


@contextmanager
def graphs_in_use() -> Iterator[None]:
    """Build and use graphs in any mode of the caller; a graph that a closure freed is a clear error."""
    try:
        with torch.enable_grad():
            yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(NO_BACKWARD) from error  # `torch.autograd.backward` passes by `_NoBackward`


def _loss_and_outputs(result: Any) -> tuple[Tensor, Any]:
    """Split the result of a closure into loss and outputs; raises TypeError for another form."""
    loss, outputs = result, None
    if isinstance(result, tuple | list):
        if len(result) != 2:
            raise TypeError(f"{FORM}, got {len(result)} items")
        loss, outputs = result
    if not isinstance(loss, Tensor):
        raise TypeError(f"{FORM}, got {type(loss).__name__} for the loss")
    if loss.numel() != 1:
        raise TypeError(f"{FORM}, got a loss of shape {tuple(loss.shape)}")
    if not loss.is_floating_point():
        raise TypeError(f"{FORM}, got a loss of {loss.dtype}")
    return loss, outputs


def _check_outputs(outputs: Any) -> None:
    if outputs is None:
        raise ValueError("curvature: ggn needs the outputs: return (loss, outputs) from the closure")
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the outputs must be one tensor, got {type(outputs).__name__}")
    if not outputs.requires_grad:
        raise ValueError(
            "the outputs have no graph: return them as the model made them, not detached or from no_grad"
        )
