"""Products of closures for many layers and losses, against differences; errors for what has no products.

`python -m tests.test_battery` writes docs/supported_models.md from the same cases.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from ahf_cli.optim import HessianFree, Layout
from ahf_cli.optim.closure import ClosureObjective
from ahf_cli.optim.operators import gauss_newton
from ahf_cli.optim.operators import hessian as exact_hessian
from ahf_cli.optim.unsupported import cut_graph, explained

PAGE = Path(__file__).parents[1] / "docs" / "supported_models.md"
STEP, TOLERANCE = 1e-5, 1e-6
Loss = Callable[[Tensor], Tensor]


def _data() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    sequences = torch.randn(4, 5, 8, generator=generator, dtype=torch.float64)
    images = torch.randn(4, 3, 9, 9, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 20, (4, 5), generator=generator)
    classes = torch.randint(0, 3, (8,), generator=generator)
    return x, sequences, images, tokens, classes


X, SEQUENCES, IMAGES, TOKENS, CLASSES = _data()
TARGETS = X[:, :3]
OFFSETS = torch.tensor([0, 3, 3, 9])  # the second bag is empty


@dataclass(frozen=True)
class Case:
    """A module, its outputs, and a loss of them; what the table says of it."""

    make: Callable[[], nn.Module]
    outputs: Callable[[Any], Tensor]
    loss: Loss
    note: str = ""
    plain: Callable[[Any], Tensor] | None = None  # the same outputs for the differences


def softmax(z: Tensor) -> Tensor:
    return F.cross_entropy(z, CLASSES[: len(z)])


def mlp(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, width))


def tanh_then(layer: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))


class Tied(nn.Module):
    """An embedding and an output layer with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table(ids)).mean(1))[:, :3]  # type: ignore[no-any-return]


class Square(torch.autograd.Function):
    """x² with a backward that PyTorch can differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * y  # type: ignore[no-any-return]


class Once(Square):
    """x² with a backward that PyTorch cannot differentiate."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y: Tensor) -> Tensor:
        return Square.backward(ctx, y)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(module)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def last(n: nn.Module) -> Tensor:
    return n(SEQUENCES)[0][:, -1, :3]  # type: ignore[no-any-return]


def packed(n: nn.Module) -> Tensor:
    lengths = torch.tensor([5, 4, 2, 1])
    _, (hidden, _) = n(nn.utils.rnn.pack_padded_sequence(SEQUENCES, lengths, batch_first=True))
    return hidden[-1, :, :3]  # type: ignore[no-any-return]


def attention(n: nn.Module) -> Tensor:
    q, k, v = n(SEQUENCES).unsqueeze(1).chunk(3, dim=-1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).mean((1, 2))[:, :3]


def checkpointed(function: Any, *inputs: Tensor) -> Tensor:
    return checkpoint(function, *inputs, use_reentrant=False)  # type: ignore[no-any-return]


def one_by_one(n: nn.Module) -> Tensor:
    parameters: dict[str, Tensor] = dict(n.named_parameters())

    def one(image: Tensor) -> Tensor:
        return torch.func.functional_call(n, parameters, (image[None],))[0]  # type: ignore[no-any-return]

    return torch.func.vmap(one)(IMAGES)


def slopes(n: nn.Module) -> Tensor:
    total = torch.func.grad(lambda image: n(image[None]).square().sum())
    return torch.func.vmap(total)(IMAGES).flatten(2).mean(2)  # type: ignore[no-any-return]


def tangent(n: nn.Module) -> Tensor:
    return torch.func.jvp(n, (IMAGES,), (IMAGES.flip(0),))[1]  # type: ignore[no-any-return]


def ctc(reduction: str) -> Loss:
    targets = torch.tensor([[1, 2, 0], [3, 3, 4], [5, 0, 0], [1, 1, 1]])
    lengths = torch.full((4,), 5), torch.tensor([2, 3, 1, 2])
    return lambda z: F.ctc_loss(z.log_softmax(-1), targets, *lengths, reduction=reduction)


def frames(n: nn.Module) -> Tensor:
    return n(SEQUENCES).transpose(0, 1)  # type: ignore[no-any-return]


def convolution(*between: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), *between, nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 3)
    )


def symmetric(matrices: Tensor) -> Tensor:
    return matrices + matrices.mT


def complex_convolution(n: Any) -> Tensor:
    weight = torch.complex(n.weight, n.weight.flip(0))
    return torch.conv2d(IMAGES.to(torch.complex128), weight).abs().square().mean((2, 3)) + 0 * n.bias  # type: ignore[no-any-return]


def on_x(make: Callable[[], nn.Module], note: str = "") -> Case:
    return Case(make, lambda n: n(X), softmax, note)


def on_images(make: Callable[[], nn.Module], note: str = "") -> Case:
    return Case(make, lambda n: n(IMAGES), softmax, note)


def on_sequences(make: Callable[[], nn.Module], note: str = "") -> Case:
    return Case(make, last, softmax, note)


def loss_of(loss: Loss, note: str = "", width: int = 3, last_layer: nn.Module | None = None) -> Case:
    def make() -> nn.Module:
        return nn.Sequential(mlp(width), *([] if last_layer is None else [last_layer]))

    return Case(make, lambda n: n(X), loss, note)


def on(data: Tensor) -> Callable[[Any], Tensor]:
    return lambda n: n(data)


FLAT = "linear in its outputs, so the Gauss-Newton matrix is 0"
NON_REENTRANT = "use_reentrant=False"
OWN = "by operations of this package; PyTorch's own has no second derivative"

LAYERS: dict[str, Case] = {
    "Conv1d": Case(lambda: tanh_then(nn.Conv1d(5, 4, 3), 24), lambda n: n(SEQUENCES), softmax),
    "Conv2d, BatchNorm2d": on_images(lambda: convolution(nn.BatchNorm2d(4))),
    "Conv2d, dilated, in groups": on_images(
        lambda: nn.Sequential(tanh_then(nn.Conv2d(3, 6, 3, dilation=2, groups=3), 150))
    ),
    'Conv2d, padding "same"': on_images(lambda: tanh_then(nn.Conv2d(3, 2, 3, padding="same"), 162)),
    "Conv2d, circular padding": on_images(
        lambda: tanh_then(nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), 162)
    ),
    "Conv2d, one image without batch": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(0), nn.Linear(98, 3)),
        lambda n: n(IMAGES[0])[None],
        softmax,
    ),
    "Conv2d, complex": Case(
        lambda: nn.Conv2d(3, 3, 3), complex_convolution, lambda z: F.mse_loss(z, torch.ones_like(z))
    ),
    "Conv3d": Case(lambda: tanh_then(nn.Conv3d(1, 2, 3), 98), lambda n: n(IMAGES.unsqueeze(1)), softmax),
    "ConvTranspose2d": on_images(lambda: tanh_then(nn.ConvTranspose2d(3, 2, 3), 242)),
    "MaxPool2d, overlapping": on_images(
        lambda: nn.Sequential(
            nn.Conv2d(3, 2, 3), nn.MaxPool2d(3, 2, padding=1), nn.Flatten(), nn.Linear(32, 3)
        )
    ),
    "AvgPool2d, AdaptiveMaxPool2d": on_images(
        lambda: nn.Sequential(
            nn.Conv2d(3, 2, 3),
            nn.AvgPool2d(2),
            nn.Tanh(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    ),
    "interpolate": Case(
        lambda: nn.Conv2d(3, 3, 3),
        lambda n: F.interpolate(n(IMAGES).tanh(), size=(3, 3), mode="bilinear").mean((2, 3)),
        softmax,
    ),
    "grid_sample": Case(
        lambda: nn.Linear(6, 2),
        lambda n: F.grid_sample(IMAGES[:1], n(X)[None, :, None].tanh(), align_corners=True)[0, :, :, 0].T,
        softmax,
    ),
    "BatchNorm1d": on_x(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    ),
    "GroupNorm, LayerNorm, GELU": on_images(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.GroupNorm(2, 4),
            nn.GELU(),
            nn.Flatten(),
            nn.LayerNorm(64),
            nn.Linear(64, 3),
        )
    ),
    "InstanceNorm2d, SiLU": on_images(lambda: convolution(nn.InstanceNorm2d(4, affine=True), nn.SiLU())),
    "RMSNorm, Softplus, ELU": on_x(
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.RMSNorm(8), nn.Softplus(), nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 3)
        )
    ),
    "PReLU": Case(nn.PReLU, lambda n: n(X)[:, :3], softmax),
    "Bilinear": Case(lambda: nn.Bilinear(6, 6, 3), lambda n: n(X, X), softmax),
    "Embedding": Case(
        lambda: nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 3)),
        lambda n: n(TOKENS),
        softmax,
    ),
    "Embedding tied to the output": Case(Tied, lambda n: n(TOKENS), softmax),
    **{
        f"EmbeddingBag, {mode}": Case(
            lambda mode=mode: nn.Sequential(nn.EmbeddingBag(20, 8, mode=mode), nn.Linear(8, 3)),  # type: ignore[misc]
            lambda n: n(TOKENS),
            lambda z: softmax(z.tanh()),
            OWN,
        )
        for mode in ("mean", "sum", "max")
    },
    "EmbeddingBag, offsets and padding": Case(
        lambda: nn.EmbeddingBag(20, 3, padding_idx=2),
        lambda n: n(TOKENS.reshape(-1), OFFSETS).tanh(),
        softmax,
        OWN,
    ),
    "LSTM, two layers, both directions": on_sequences(
        lambda: nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True), "on a GPU without cuDNN"
    ),
    "LSTM, packed sequences": Case(
        lambda: nn.LSTM(8, 4, batch_first=True), packed, softmax, "on a GPU without cuDNN"
    ),
    "GRU": on_sequences(lambda: nn.GRU(8, 4, batch_first=True), "on a GPU without cuDNN"),
    "RNN": on_sequences(lambda: nn.RNN(8, 4, batch_first=True), "on a GPU without cuDNN"),
    "TransformerEncoder": Case(encoder, lambda n: n(SEQUENCES).mean(1)[:, :3], softmax),
    "MultiheadAttention": Case(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        lambda n: n(SEQUENCES, SEQUENCES, SEQUENCES)[0].mean(1)[:, :3],
        softmax,
    ),
    "scaled_dot_product_attention": Case(
        lambda: nn.Linear(8, 24), attention, softmax, "as matrix products, not fused"
    ),
    "weight_norm": on_x(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)),
        "by operations of this package; PyTorch's second derivative is wrong on a CPU",
    ),
    "weight_norm, one norm in all": on_x(
        lambda: nn.Sequential(
            parametrizations.weight_norm(nn.Linear(6, 8), dim=-1), nn.Tanh(), nn.Linear(8, 3)
        ),
        "as weight_norm",
    ),
    "weight_norm of a Conv2d, older form": on_images(
        lambda: tanh_then(old_weight_norm(nn.Conv2d(3, 2, 3, stride=2)), 32), "as weight_norm"
    ),
    "orthogonal": on_x(
        lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3))
    ),
    "spectral_norm, eval": on_x(
        lambda: nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3)
        ).eval(),
        "in training its vectors count as constants, as in PyTorch's gradient",
    ),
    "custom autograd function": Case(
        lambda: nn.Linear(6, 3), lambda n: Square.apply(n(X)), softmax, "with a differentiable backward"
    ),
    "complex numbers within": Case(
        lambda: nn.Linear(6, 8), lambda n: torch.fft.fft(n(X)).abs()[:, :3], softmax
    ),
    "eigenvalues": Case(
        lambda: nn.Linear(6, 9),
        lambda n: torch.linalg.eigvalsh(symmetric(n(X).reshape(-1, 3, 3))),
        softmax,
    ),
    "torch.compile": Case(
        lambda: torch.compile(convolution(nn.MaxPool2d(1)), backend="aot_eager"),  # type: ignore[arg-type,return-value]
        on(IMAGES),
        softmax,
        "runs uncompiled within a step",
        plain=lambda n: n._orig_mod(IMAGES),
    ),
    "torch.jit.script": Case(mlp, lambda n: torch.jit.script(n)(X), softmax, plain=on(X)),
    "checkpoint": Case(mlp, lambda n: checkpointed(n, X), softmax, NON_REENTRANT, plain=on(X)),
    "checkpoint of convolutions and BatchNorm2d": Case(
        lambda: convolution(nn.BatchNorm2d(4), nn.MaxPool2d(1)),
        lambda n: checkpointed(n, IMAGES),
        softmax,
        NON_REENTRANT,
        plain=on(IMAGES),
    ),
    "checkpoint within a checkpoint": Case(
        convolution,
        lambda n: checkpointed(lambda x: n[2:](checkpointed(n[:2], x)), IMAGES),
        softmax,
        NON_REENTRANT,
        plain=on(IMAGES),
    ),
    "checkpoint of attention": Case(
        lambda: nn.Linear(8, 24),
        lambda n: checkpointed(attention, n),
        softmax,
        NON_REENTRANT,
        plain=attention,
    ),
    "checkpoint of weight_norm": Case(
        lambda: tanh_then(parametrizations.weight_norm(nn.Conv2d(3, 2, 3, stride=2)), 32),
        lambda n: checkpointed(n, IMAGES),
        softmax,
        NON_REENTRANT,
        plain=on(IMAGES),
    ),
    "torch.func.vmap": Case(convolution, one_by_one, softmax),
    "torch.func.vmap of grad": Case(convolution, slopes, softmax),
    "torch.func.jvp": Case(convolution, tangent, softmax),
}

SIGNS = torch.where(TARGETS > 0, 1.0, -1.0).double()
LOSSES: dict[str, Case] = {
    "mse_loss": loss_of(lambda z: F.mse_loss(z, TARGETS)),
    "mse_loss, sum": loss_of(lambda z: F.mse_loss(z, TARGETS, reduction="sum")),
    "l1_loss": loss_of(lambda z: F.l1_loss(z, TARGETS), FLAT),
    "smooth_l1_loss": loss_of(lambda z: F.smooth_l1_loss(z, TARGETS)),
    "huber_loss": loss_of(lambda z: F.huber_loss(z, TARGETS, delta=0.5)),
    "cross_entropy, weights and smoothing": loss_of(
        lambda z: F.cross_entropy(
            z, CLASSES, weight=torch.tensor([1.0, 2.0, 3.0]).double(), label_smoothing=0.1
        )
    ),
    "nll_loss of log-probabilities": loss_of(
        lambda z: F.nll_loss(z, CLASSES), f"{FLAT}: give the logits as outputs", last_layer=nn.LogSoftmax(-1)
    ),
    "kl_div of log-probabilities": loss_of(
        lambda z: F.kl_div(z, TARGETS.softmax(-1), reduction="batchmean"),
        f"{FLAT}: give the logits as outputs",
        last_layer=nn.LogSoftmax(-1),
    ),
    "binary_cross_entropy_with_logits": loss_of(
        lambda z: F.binary_cross_entropy_with_logits(z, (TARGETS > 0).double())
    ),
    "binary_cross_entropy": loss_of(
        lambda z: F.binary_cross_entropy(z, (TARGETS > 0).double()), last_layer=nn.Sigmoid()
    ),
    "poisson_nll_loss": loss_of(lambda z: F.poisson_nll_loss(z, TARGETS.abs())),
    "gaussian_nll_loss": loss_of(
        lambda z: F.gaussian_nll_loss(z[:, :2], TARGETS[:, :2], z[:, 2:].exp()), width=4
    ),
    "soft_margin_loss": loss_of(lambda z: F.soft_margin_loss(z, SIGNS)),
    "multilabel_soft_margin_loss": loss_of(
        lambda z: F.multilabel_soft_margin_loss(z, (TARGETS > 0).double())
    ),
    "hinge_embedding_loss": loss_of(lambda z: F.hinge_embedding_loss(z.square(), SIGNS)),
    "margin_ranking_loss": loss_of(
        lambda z: F.margin_ranking_loss(z[:, 0].square(), z[:, 1], SIGNS[:, 0], margin=0.3)
    ),
    "triplet_margin_loss": loss_of(lambda z: F.triplet_margin_loss(z[:2], z[2:4], z[4:6]), width=4),
    "cosine_embedding_loss": loss_of(
        lambda z: F.cosine_embedding_loss(z[:4], z[4:], torch.tensor([1, -1, 1, -1])), width=4
    ),
    "multi_margin_loss": loss_of(lambda z: F.multi_margin_loss(z, CLASSES, p=2), OWN),
    "multilabel_margin_loss": loss_of(
        lambda z: F.multilabel_margin_loss(z.tanh(), torch.tensor([[0, 2, -1]]).expand(8, 3)), OWN
    ),
    **{
        f"ctc_loss, {reduction}": Case(lambda: nn.Linear(8, 6), frames, ctc(reduction), OWN)
        for reduction in ("mean", "sum")
    },
}
BATTERY = {**LAYERS, **LOSSES}


class _Reentrant(nn.Module):
    """A layer of which a part is checkpointed in the older way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, self.first(x), use_reentrant=True)  # type: ignore[no-any-return]


UNSUPPORTED: dict[str, tuple[Case, str, str]] = {
    "checkpoint, use_reentrant=True": (
        Case(_Reentrant, lambda n: n(X), softmax),
        "PyTorch's autograd.grad does not reach its parameters",
        "use_reentrant=False",
    ),
    "once_differentiable": (
        Case(lambda: nn.Linear(6, 3), lambda n: Once.apply(n(X)), softmax),
        "its author excluded a second derivative",
        "Once: .* without that mark",
    ),
    "EmbeddingBag, max_norm": (
        Case(
            lambda: nn.EmbeddingBag(20, 3, max_norm=9.0, scale_grad_by_freq=True),
            lambda n: n(TOKENS),
            softmax,
        ),
        "PyTorch has no second derivative of embedding_bag",
        "embedding_bag twice: use it without max_norm",
    ),
    "igamma": (
        Case(lambda: nn.Linear(6, 3), lambda n: torch.igamma(n(X).exp(), n(X).exp()), softmax),
        "PyTorch has no derivative",
        "cannot differentiate igamma twice",
    ),
}
"""Case, reason, and a part of the line that a step raises."""


def table() -> str:
    """Return the page of the documentation."""
    lines = [
        "# Supported models",
        "",
        "Written by `python -m tests.test_battery` from the cases of `tests/test_battery.py`. Products that",
        "are marked yes are tested on a CPU in float64, against differences of gradients and of outputs, to",
        f"a relative error of {TOLERANCE:g}. Other operations of PyTorch with a second derivative work too.",
        "",
        "| layer, loss or setting | Hessian | Gauss-Newton | note |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | yes | yes | {case.note} |" for name, case in BATTERY.items()]
    lines += [f"| {name} | no | no | {reason} |" for name, (_, reason, _) in UNSUPPORTED.items()]
    after = [
        "",
        "A step with an unsupported operation raises one line that names it and the way out. One kind is not",
        "detected: a custom backward that hides its arguments, by `detach()` or numpy. Its second derivative",
        "counts as zero.",
    ]
    return "\n".join([*lines, *after]) + "\n"


def made(case: Case) -> nn.Module:
    torch.manual_seed(1)
    return case.make().double()


def at(case: Case, theta: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return parameters at θ and the outputs of a new module, by PyTorch alone."""
    module = made(case)
    nn.utils.vector_to_parameters(theta[0], module.parameters())
    return list(module.parameters()), (case.plain or case.outputs)(module)


def slope(loss: Tensor, inputs: list[Tensor], weight: Tensor | None = None) -> Tensor:
    gradients = torch.autograd.grad(loss, inputs, weight, allow_unused=True, materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in gradients])


def differences(case: Case, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∇²h v and Jᵀ H_L J v by central differences of first derivatives and of outputs."""
    ends = []
    for sign in (1, -1):
        parameters, z = at(case, theta + sign * STEP * v)
        ends.append((slope(case.loss(z), parameters), z.detach()))
    (up, z_up), (down, z_down) = ends
    parameters, z = at(case, theta)
    tangent, bent = (z_up - z_down) / (2 * STEP), []
    for sign in (1, -1):
        moved = (z.detach() + sign * STEP * tangent).requires_grad_()
        bent.append(slope(case.loss(moved), [moved]).reshape(z.shape))
    return (up - down) / (2 * STEP), slope(z, parameters, (bent[0] - bent[1]) / (2 * STEP))


@pytest.mark.parametrize("name", BATTERY)
def test_products_are_differences(name: str) -> None:
    case = BATTERY[name]
    module = made(case)
    layout = Layout.of(module.named_parameters())
    theta = layout.join([p.detach() for p in module.parameters()])
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = differences(case, theta, v)

    def closure() -> tuple[Tensor, Tensor]:
        z = case.outputs(module)
        return case.loss(z), z

    objective = ClosureObjective(closure, list(module.parameters()), layout, needs_outputs=True, check=True)
    evaluation = objective.evaluate(theta)
    parameters, z = at(case, theta)
    torch.testing.assert_close(evaluation.gradient[0], slope(case.loss(z), parameters))
    products = evaluation.operator(exact_hessian)(v)[0], evaluation.operator(gauss_newton)(v)[0]
    for product, reference in zip(products, expected, strict=True):
        assert float((product - reference).norm()) <= TOLERANCE * float(reference.norm()) + 1e-9


MOVING: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: convolution(nn.BatchNorm2d(4)),
    "dropout": lambda: convolution(nn.Dropout(0.3)),
    "spectral norm": lambda: tanh_then(parametrizations.spectral_norm(nn.Conv2d(3, 2, 3, stride=2)), 32),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_step_through_a_checkpoint_is_the_step_without_it(name: str) -> None:
    ends = []
    for run in (on(IMAGES), lambda n: checkpointed(n, IMAGES)):
        torch.manual_seed(1)
        module = MOVING[name]().double()
        optimizer = HessianFree(module.parameters(), curvature="ggn")

        def closure(run: Any = run, module: nn.Module = module) -> tuple[Tensor, Tensor]:
            z = run(module)
            return softmax(z), z

        losses = torch.stack([optimizer.step(closure) for _ in range(3)])
        ends.append((losses, dict(module.state_dict()), torch.rand(())))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_step_names_what_cannot_be_differentiated_twice(name: str, curvature: str) -> None:
    case, _, line = UNSUPPORTED[name]
    module = made(case)
    optimizer = HessianFree(module.parameters(), curvature=curvature)

    def closure() -> tuple[Tensor, Tensor]:
        z = case.outputs(module)
        return case.loss(z), z

    with pytest.raises(RuntimeError, match=line) as raised:
        optimizer.step(closure)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "derivative for aten::_cudnn_rnn_backward is not implemented",
            "cuDNN's recurrent layer twice: call it",
        ),
        (
            "the derivative for '_embedding_bag_backward' is not implemented.",
            "embedding_bag twice: use it without",
        ),
        (
            "derivative for aten::_scaled_dot_product_flash_attention_backward is not implemented",
            "fused attention twice: call F.scaled",
        ),
        (
            "derivative for aten::new_loss_backward is not implemented",
            "cannot differentiate new_loss twice: write",
        ),
        (
            "compiled with non-empty donated buffers which requires",
            "call the module that was given to torch.compile",
        ),
        (
            "torch.compile with aot_autograd does not currently support double backward",
            "given to torch.compile",
        ),
        ("use_reentrant=True, torch.utils.checkpoint is incompatible with .grad() or", "use_reentrant=False"),
        ("Inference tensors cannot be saved for backward.", "data were made in torch.inference_mode"),
    ],
)
def test_messages_of_pytorch_are_explained(text: str, line: str) -> None:
    explanation = explained(RuntimeError(text))
    assert explanation is not None and line in explanation and "\n" not in explanation


def test_other_errors_are_left_as_they_are() -> None:
    assert explained(RuntimeError("shapes cannot be multiplied")) is None
    assert cut_graph(mlp()(X.float()).sum()) is None


def test_a_recomputation_that_differs_is_explained() -> None:
    layer, calls = nn.Linear(6, 3).double(), itertools.count()
    z = checkpointed(lambda x: layer(x) if next(calls) else layer(x).tanh(), X)
    with pytest.raises(RuntimeError) as raised:
        torch.autograd.grad(z.sum(), list(layer.parameters()))
    assert "call the same operations in both" in (explained(raised.value) or "")


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == table(), "run python -m tests.test_battery"


if __name__ == "__main__":
    PAGE.write_text(table())
