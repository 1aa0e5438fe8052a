"""Messages for operations that PyTorch differentiates only once: the operation, and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

REENTRANT = "checkpoint with use_reentrant=True hides its parameters: pass use_reentrant=False"
ONCE = (
    "a backward that is marked with once_differentiable has no derivative: "
    "write it with differentiable operations, without that mark"
)
COMPILED = "the backward of torch.compile has no derivative: call the module that was given to torch.compile"

WAYS_OUT: dict[str, tuple[str, str]] = {
    r"_cudnn_rnn": ("cuDNN's recurrent layer", "call it under torch.backends.cudnn.flags(enabled=False)"),
    r"_embedding_bag": (
        "this embedding_bag",
        "use it without max_norm and scale_grad_by_freq, or average rows of nn.Embedding",
    ),
    r"_scaled_dot_product|_flash_attention|_efficient_attention": (
        "fused attention",
        "call F.scaled_dot_product_attention, which runs as matrix products here",
    ),
}
"""Pattern of a derivative's name → the operation, and what to do."""

MESSAGES: dict[str, str] = {
    r"is incompatible with \.grad\(\)|Checkpointing is not compatible with \.grad\(\)": REENTRANT,
    r"differentiate twice a function that was marked": ONCE,
    r"non-empty donated buffers|aot_autograd does not currently support double backward": COMPILED,
    r"Recomputed values for the following tensors|torch\.utils\.checkpoint: A different number of tensors": (
        "the recomputation of a checkpoint differs from its forward pass: call the same operations in both"
    ),
    r"Inference tensors cannot be saved for backward": (
        "the data were made in torch.inference_mode: make them outside of it, or give clones to the model"
    ),
}
"""Pattern of PyTorch's message → ours."""


def explained(error: BaseException) -> str | None:
    """Return one line with the operation and the way out; None for an error of another kind."""
    text = str(error)
    for pattern, line in MESSAGES.items():
        if re.search(pattern, text):
            return line
    found = re.search(r"derivative for '?(?:aten::)?([\w.]+)[^']*'? is not implemented", text)
    if found is None:
        return None
    name = found[1]
    for pattern, (operation, way_out) in WAYS_OUT.items():
        if re.search(pattern, name):
            return f"PyTorch cannot differentiate {operation} twice: {way_out}"
    operation = name.strip("_").removesuffix("_backward")
    return f"PyTorch cannot differentiate {operation} twice: write it with other operations of PyTorch"


def cut_graph(loss: Tensor) -> str | None:
    """Return the line for an operation that cuts graphs in silence, as if it did not depend on parameters."""
    for node in nodes(loss):
        if node.name() == "CheckpointFunctionBackward":
            return REENTRANT
        own = getattr(getattr(node, "_forward_cls", None), "backward", None)
        if getattr(own, "__code__", None) is _MARKED:
            return f"{node.name().removesuffix('Backward')}: {ONCE}"
    return None


_MARKED = once_differentiable(lambda _: None).__code__  # each marked function runs this code


def nodes(loss: Tensor) -> Iterator[Node]:
    """Return each node of a graph once."""
    ahead: list[Node | None] = [loss.grad_fn]
    seen: set[Node] = set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        ahead.extend(below for below, _ in node.next_functions)
