"""Checkpoints, which run modules again within a backward pass: with the operations of the first time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ahf_cli.optim.fast_operations import faster_operations


class _Depth(threading.local):
    """How many modules are running in each thread; a backward pass on a GPU has a thread of its own."""

    def __init__(self) -> None:
        self.depth, self.entered = 0, ExitStack()


@contextmanager
def same_operations(device: torch.device) -> Iterator[None]:
    """Run a backward pass in which modules that run again use the operations of a closure's call.

    A mode around `torch.autograd.grad` would be off inside of it, so each outermost module enters its own.
    """
    own = _Depth()

    def enter(module: nn.Module, inputs: Any) -> None:
        if own.depth == 0:
            own.entered.enter_context(faster_operations(device))
        own.depth += 1

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        own.depth -= 1
        if own.depth == 0:
            own.entered.close()

    before = register_module_forward_pre_hook(enter)
    # A recomputation ends by an exception as soon as it has all tensors.
    after = register_module_forward_hook(leave, always_call=True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        before.remove()
        after.remove()
        own.entered.close()
