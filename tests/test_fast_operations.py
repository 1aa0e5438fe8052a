"""Operations of the core against PyTorch's: the faster, the corrected, and when they step aside."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from ahf_cli.optim.corrected import embedding_bag, recurrent, weight_norm
from ahf_cli.optim.fast_operations import (
    FasterOperations,
    conv2d,
    faster_operations,
    geometry_of,
    max_pool2d,
    patches,
)
from ahf_cli.optim.recomputation import same_operations

CPU = torch.device("cpu")


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
        ((2, 2, 6, 5), (3, 2, 3, 2), {"stride": 2, "padding": 1}),
        ((1, 4, 6, 6), (6, 2, 3, 3), {"groups": 2, "dilation": 2, "padding": (2, 1)}),
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
    x = torch.randn(2, 2, 9, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(2, 2, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
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


def images() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2), nn.Flatten()
    return nn.Sequential(*layers).double(), torch.randn(4, 2, 8, 8, dtype=torch.float64)


def each_alone(module: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda a: module(a[None])[0])(x)  # type: ignore[no-any-return]


def gradients_of_each(module: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda a: module(a[None]).square().sum()))(x)  # type: ignore[no-any-return]


def gradient_of_parameters(module: nn.Module, x: Tensor) -> Tensor:
    own: dict[str, Tensor] = {name: p.detach() for name, p in module.named_parameters()}
    slopes = torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).square().sum())(own)
    return torch.cat([slope.reshape(-1) for slope in slopes.values()])


def along(module: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jvp(module, (x,), (x.flip(0),))[1]  # type: ignore[no-any-return]


def dual(module: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        pair = forward_ad.make_dual(x, x.flip(0))  # type: ignore[no-untyped-call]
        return forward_ad.unpack_dual(module(pair)).tangent  # type: ignore[no-any-return, no-untyped-call]


def jacobian(module: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jacrev(module)(x)  # type: ignore[no-any-return]


def traced(module: nn.Module, x: Tensor) -> Tensor:
    return torch.jit.trace(module, (x,), check_trace=False)(x)  # type: ignore[no-any-return, no-untyped-call]


def saved_elsewhere(module: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return module(x)  # type: ignore[no-any-return]


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(module, x, use_reentrant=False)  # type: ignore[no-any-return]


def recomputed_in_parts(module: Any, x: Tensor) -> Tensor:
    return recomputed(lambda a: module[3:](recomputed(module[:3], a)), x)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize(
    "transform",
    [
        each_alone, gradients_of_each, gradient_of_parameters, along, dual, jacobian, traced, saved_elsewhere,
        recomputed, recomputed_in_parts,
    ],
)  # fmt: skip
def test_other_transforms_see_the_operations_of_pytorch(transform: Callable[..., Tensor]) -> None:
    module, x = images()
    plain = transform(module, x)
    with FasterOperations():
        found = transform(module, x)
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    if not plain.requires_grad:
        return
    parameters = list(module.parameters())

    def curvature(outputs: Tensor) -> tuple[Tensor, ...]:
        slopes = torch.autograd.grad(
            outputs.square().mean(), parameters, create_graph=True, materialize_grads=True
        )
        return torch.autograd.grad(
            torch.stack([g.sin().sum() for g in slopes]).sum(), parameters, materialize_grads=True
        )

    torch.testing.assert_close(curvature(found), curvature(plain))


def test_hooks_on_saved_tensors_are_noticed() -> None:
    module, x = images()
    with faster_operations(CPU) as operations:
        module(x)
        assert not operations.hooked
        recomputed(module, x)
        assert operations.hooked


def test_a_module_that_runs_again_in_a_backward_pass_has_the_same_operations() -> None:
    torch.manual_seed(0)
    layers = parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.Tanh(), nn.Flatten()
    module, x = nn.Sequential(*layers).double(), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    parameters = list(module.parameters())

    def curvature(run: Callable[[nn.Module, Tensor], Tensor]) -> tuple[Tensor, ...]:
        with faster_operations(CPU):
            loss = run(module, x).square().mean()
        with same_operations(CPU):
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            return torch.autograd.grad(torch.stack([g.sin().sum() for g in slopes]).sum(), parameters)

    expected = curvature(lambda module, x: module(x))
    torch.testing.assert_close(curvature(recomputed), expected)
    with pytest.raises(ZeroDivisionError), same_operations(CPU):
        1 / 0  # noqa: B018
    assert "ConvolutionBackward" in module[0](x).grad_fn.name()


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm_is_differentiable_twice(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.norm_except_dim(v, 2, dim).detach() + 1
    g.requires_grad_()
    torch.testing.assert_close(weight_norm(v, g, dim), torch._weight_norm(v, g, dim))
    assert torch.autograd.gradcheck(lambda v, g: weight_norm(v, g, dim), (v, g))
    assert torch.autograd.gradgradcheck(lambda v, g: weight_norm(v, g, dim), (v, g))


def assert_as_pytorch(own: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Compare values and gradients with and without the corrected operations."""
    plain = own(*leaves)
    with FasterOperations():
        found = own(*leaves)
    torch.testing.assert_close(found, plain)
    weight = torch.rand(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    slopes = [torch.autograd.grad((z.where(z.isfinite(), 0) * weight).sum(), leaves) for z in (found, plain)]
    torch.testing.assert_close(slopes[0], slopes[1])


IDS = torch.tensor([4, 1, 1, 0, 2, 4, 3, 2, 2, 0, 1, 5])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2, -2])
@pytest.mark.parametrize(
    ("ids", "offsets", "options"),
    [
        (IDS.reshape(4, 3), None, {}),
        (IDS, torch.tensor([0, 3, 3, 8]), {}),
        (IDS, torch.tensor([0, 5, 7, 12]), {"include_last_offset": True}),
        (IDS.int(), torch.tensor([0, 12]).int(), {}),
    ],
)
def test_embedding_bags_are_pytorchs(
    mode: str, padding_idx: int | None, ids: Tensor, offsets: Tensor | None, options: dict[str, Any]
) -> None:
    table = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bags(table: Tensor) -> Tensor:
        return F.embedding_bag(ids, table, offsets, mode=mode, padding_idx=padding_idx, **options)

    assert_as_pytorch(bags, table.requires_grad_())


def test_weighted_embedding_bags_are_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = IDS.reshape(4, 3)
    assert_as_pytorch(
        lambda t, w: F.embedding_bag(ids, t, mode="sum", per_sample_weights=w, padding_idx=1), table, weights
    )
    with pytest.raises(NotImplementedError, match="per_sample_weights"):
        embedding_bag(ids, table, per_sample_weights=weights)
    with pytest.raises(ValueError, match="offsets"):
        embedding_bag(IDS, table)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("form", ["padded", "joined", "tuples"])
def test_ctc_is_pytorchs(reduction: str, zero_infinity: bool, form: str) -> None:
    z = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # The fourth has no label.  The third may have too few frames for its equal labels: then PyTorch's
    # gradient is NaN without `zero_infinity`.
    targets, lengths = torch.tensor([[1, 2, 3], [4, 4, 0], [2, 2, 2], [0, 0, 0]]), [3, 2, 3, 0]
    frames: Any = torch.tensor([6, 5, 4 if zero_infinity else 5, 3])
    count: Any = torch.tensor(lengths)
    if form != "padded":
        targets = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])
    if form == "tuples":
        frames, count = tuple(frames.tolist()), tuple(lengths)

    def losses(z: Tensor) -> Tensor:
        p = z.log_softmax(-1)
        return F.ctc_loss(p, targets, frames, count, reduction=reduction, zero_infinity=zero_infinity)

    assert_as_pytorch(losses, z.requires_grad_())


def test_an_impossible_alignment_has_an_infinite_loss() -> None:
    z, long = torch.zeros(2, 1, 3).log_softmax(-1), torch.tensor([3])
    with FasterOperations():
        assert F.ctc_loss(z, torch.tensor([[1, 1, 2]]), torch.tensor([2]), long) == torch.inf


def test_ctc_of_one_example_is_pytorchs() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets, count = torch.tensor([0, 2, 2]), torch.tensor(3)

    def loss(z: Tensor) -> Tensor:
        return F.ctc_loss(z.log_softmax(-1), targets, torch.tensor(6), count, blank=4, reduction="none")

    assert_as_pytorch(loss, z.requires_grad_())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margin_losses_are_pytorchs(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, generator=generator, dtype=torch.float64)
    y, labels = torch.tensor([2, 0, 3]), torch.tensor([[3, 0, -1, 1], [1, 2, 0, 3], [-1, 1, 1, 1]])
    for p, w in itertools.product((1, 2), (None, weight)):
        assert_as_pytorch(
            lambda x, p=p, w=w: F.multi_margin_loss(x, y, p, 0.7, w, reduction=reduction),
            x,
        )
    assert_as_pytorch(lambda x: F.multilabel_margin_loss(x, labels, reduction=reduction), x)
    assert_as_pytorch(lambda x: F.multi_margin_loss(x[0], y[0], reduction=reduction), x)
    assert_as_pytorch(lambda x: F.multilabel_margin_loss(x[0], labels[0], reduction=reduction), x)


def test_recurrent_layers_leave_cudnn_on_a_gpu_alone() -> None:
    layer = recurrent(lambda _: torch.backends.cudnn.enabled)
    before = torch.backends.cudnn.enabled
    assert layer(SimpleNamespace(is_cuda=True)) is False
    assert layer(SimpleNamespace(is_cuda=False)) is before
    assert torch.backends.cudnn.enabled is before


def test_compiled_functions_run_uncompiled() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    double = torch.compile(lambda x: 2 * x, backend=backend)
    with faster_operations(CPU):
        assert double(torch.ones(())) == 2
