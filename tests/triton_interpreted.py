"""Triton's kernels, run by its interpreter, against the maps of PyTorch's operations.

TRITON_INTERPRET=1 python -m tests.triton_interpreted
"""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

import ahf_cli.optim.layers.selected as selected
import ahf_cli.optim.layers.triton_maps as triton_maps
from ahf_cli.optim.layers.chain import ExplicitLinearization
from ahf_cli.optim.layers.convolution import BlockAt
from tests.problems import rows
from tests.test_layers import objective_of

CASES = {
    "lenet": torch.float32,
    "padding, overlap, ceil": torch.float64,
    "no ReLU, no bias": torch.float64,
    "dilated pooling": torch.float64,
}


def compare(name: str, dtype: torch.dtype) -> int:
    """Compare all maps of a network's layers; return the number of layers."""
    objective = objective_of(name, examples=2 if name == "lenet" else 1)
    with patch.object(selected, "numerics", lambda device: "pytorch"):
        here = objective.evaluate(rows(objective, 2))
    assert isinstance(here, ExplicitLinearization)
    layers = [layer for layer in here.layers if isinstance(layer, BlockAt)]
    generator = torch.Generator().manual_seed(3)

    def drawn(*like: Tensor) -> list[Tensor]:
        return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype) for t in like]

    close = partial(torch.testing.assert_close, rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-5)
    for layer in layers:
        dense = layer.selection
        kernels = triton_maps.TritonSelection(dense.shape, dense.at, dense.last)
        w, v, x, u = drawn(layer.w, layer.w, layer.x, layer.x)
        y, z = drawn(dense.at, dense.at)
        (b,) = drawn(layer.w[:, :, 0, 0, 0])
        w = w.mT.contiguous().mT  # a view whose rows are not contiguous
        for more in ((None,), (None, u, v), (b, u, v)):
            close(kernels.forward(x, w, *more), dense.forward(x, w, *more))
        for other in ((), (z, v)):
            close(kernels.to_input(y, w, *other), dense.to_input(y, w, *other))
        for other in ((), (z, u)):
            close(kernels.to_weight(y, x, *other), dense.to_weight(y, x, *other))
    return len(layers)


if __name__ == "__main__":
    # Several programs for each sum, and for each image.
    with patch.multiple(triton_maps, CHUNK=1, BLOCK=64):
        for name, dtype in CASES.items():
            print(f"{name}: {compare(name, dtype)} layers")
