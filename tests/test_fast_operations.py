"""Convolution and pooling of the core against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ahf_cli.optim.fast_operations import FasterOperations, conv2d, geometry_of, max_pool2d, patches


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


@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((2, 3, 7, 7), (4, 3, 3, 3), {}),
        ((2, 3, 8, 6), (4, 3, 3, 2), {"stride": 2, "padding": 1}),
        ((2, 4, 9, 9), (6, 2, 3, 3), {"groups": 2, "dilation": 2, "padding": (2, 1)}),
    ],
)
def test_convolution_is_differentiable_twice(
    shape: tuple[int, ...], weight: tuple[int, ...], options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.randn(weight, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(weight[0], generator=generator, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(conv2d(x, w, b, **options), torch.conv2d(x, w, b, **options))
    assert torch.autograd.gradcheck(lambda *a: conv2d(*a, **options), (x, w, b))
    assert torch.autograd.gradgradcheck(lambda *a: conv2d(*a, **options), (x, w, b))


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"padding": (2, 0)}, {"dilation": 2, "stride": (1, 2)}]
)
def test_convolution_of_a_constant_input_is_linear_in_its_weight(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(conv2d(x, w, **options), torch.conv2d(x, w, **options))
    torch.testing.assert_close(
        patches(x, (3, 2), geometry_of(**options)), torch.nn.functional.unfold(x, (3, 2), **options)
    )
    assert torch.autograd.gradcheck(lambda a: conv2d(x, a, **options), (w,))
    assert torch.autograd.gradgradcheck(lambda a: conv2d(x, a, **options), (w,))


def test_convolution_is_diverted_within_the_context_only() -> None:
    x, layer = torch.randn(1, 1, 5, 5), torch.nn.Conv2d(1, 2, 3)
    with FasterOperations():
        diverted = layer(x)
    assert "ConvolutionBackward" not in type(diverted.grad_fn).__name__
    assert "ConvolutionBackward" in type(layer(x).grad_fn).__name__
    torch.testing.assert_close(diverted, layer(x))
    by_name = torch.nn.Conv2d(1, 2, 3, padding="same")
    with FasterOperations():
        torch.testing.assert_close(by_name(x), by_name._conv_forward(x, by_name.weight, by_name.bias))
