"""Pooling without a graph gives PyTorch's values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ahf_cli.optim.fast_operations import FasterOperations, max_pool2d


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((2,), {}),
        ((3,), {}),
        (((2, 3),), {}),
        ((2, 2), {}),
        ((3, 2), {}),
        ((2,), {"padding": 1}),
        ((2,), {"ceil_mode": True}),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 2, 7, 9), (3, 5, 5)])
def test_values_are_equal(
    arguments: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[5] = torch.nan
    x.view(-1)[9] = torch.inf
    expected = torch.max_pool2d(x, *arguments, **options)
    torch.testing.assert_close(max_pool2d(x, *arguments, **options), expected, rtol=0, atol=0, equal_nan=True)
    pool = nn.MaxPool2d(*arguments, **options)
    with FasterOperations():
        torch.testing.assert_close(pool(x), expected, rtol=0, atol=0, equal_nan=True)


def test_a_graph_keeps_its_derivative() -> None:
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    with FasterOperations():
        torch.max_pool2d(x, 2).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.sum() == 4
