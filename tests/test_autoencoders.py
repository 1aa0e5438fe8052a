"""Deep autoencoders: the curves, the loss of pixels, the sparse weights, and the command line."""

from __future__ import annotations

import gzip
import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ahf_cli.cli import main
from ahf_cli.config.load import load as configuration
from ahf_cli.errors import InputError
from ahf_cli.optim import ModelObjective
from ahf_cli.optim.kronecker import Kfac
from ahf_cli.optim.layer_statistics import Draw
from ahf_cli.optim.losses import Likelihood, PixelCrossEntropy
from ahf_cli.optim.rows import Layout
from ahf_cli.tasks import autoencoders
from ahf_cli.tasks.catalogue import make_model
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.folder import named_folder
from ahf_cli.tasks.initial import INCOMING, orthogonal, sparse
from ahf_cli.tasks.metrics import image_error
from ahf_cli.tasks.task import Task, initial_length
from tests.problems import dense_outputs
from tests.studies import train_losses
from tests.test_kronecker import fitted, joined, kronecker

LOSS = PixelCrossEntropy()
SIZES = (784, 400, 200, 100, 50, 25, 6)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the data set have 60 + 20 curves, whose drawing takes no time."""
    monkeypatch.setattr(autoencoders, "TRAINING", 60)
    monkeypatch.setattr(autoencoders, "TEST", 20)
    monkeypatch.setitem(DATA_SETS, "curves", replace(DATA_SETS["curves"], training=60))


def logits(rows: int = 2, examples: int = 5, pixels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(rows, examples, pixels, generator=generator, dtype=torch.float64)
    return z, torch.rand(examples, pixels, generator=generator, dtype=torch.float64)


def test_the_loss_is_the_sum_over_pixels_of_pytorchs_cross_entropy() -> None:
    z, y = logits()
    for own, found in zip(z, LOSS.value(z, y), strict=True):
        each = nn.functional.binary_cross_entropy_with_logits(own, y, reduction="none")
        torch.testing.assert_close(found, each.sum(dim=-1).mean(), rtol=1e-13, atol=0)


def test_the_loss_is_exact_for_large_logits() -> None:
    """−log σ(z) = e^−z + O(e^−2z) for a pixel of 1, and z for a pixel of 0."""
    z = torch.tensor([[[40.0], [-40.0]]], dtype=torch.float64)
    right, wrong = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    assert LOSS.value(z, right).item() == pytest.approx(math.exp(-40), rel=1e-12)
    assert LOSS.value(z, wrong).item() == pytest.approx(40, rel=1e-15)
    huge = LOSS.value(torch.full((1, 1, 1), 1e4), torch.zeros(1, 1))
    assert huge.item() == 1e4


def test_the_curvature_is_the_dense_hessian() -> None:
    z, y = logits()
    w = torch.randn_like(z)
    product = LOSS.hessian(z, y)(w)
    for own, direction, found in zip(z, w, product, strict=True):

        def loss(flat: Tensor) -> Tensor:
            probabilities = 1 / (1 + torch.exp(-flat.view_as(y)))
            each = y * probabilities.log() + (1 - y) * (1 - probabilities).log()
            return -each.sum() / len(y)

        dense = torch.func.hessian(loss)(own.flatten())
        torch.testing.assert_close(found.flatten(), dense @ direction.flatten(), rtol=1e-9, atol=1e-12)


def test_roots_and_draws_have_the_curvature_of_an_example() -> None:
    z, y = logits(rows=1, examples=3)
    p = torch.sigmoid(z)[0]
    expected = torch.diag_embed(p * (1 - p))
    assert isinstance(LOSS, Likelihood)
    s = LOSS.roots(z, y)[:, 0]
    torch.testing.assert_close(torch.einsum("sni,snj->nij", s, s), expected)
    source = torch.Generator().manual_seed(1)
    drawn = LOSS.drawn(z.expand(2, 3, 4), y, source)
    assert drawn.shape == (1, 2, 3, 4) and torch.equal(drawn[0, 0], drawn[0, 1])
    many = LOSS.drawn(z[:, :1].expand(1, 40_000, 4), y, source)[0, 0]
    # The standard error of an entry is at most 0.25/√40,000.
    torch.testing.assert_close(many.T @ many / len(many), expected[0], rtol=0, atol=0.006)
    torch.testing.assert_close(many.mean(dim=0), torch.zeros(4).double(), rtol=0, atol=0.012)


def small_objective() -> ModelObjective:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Sigmoid(), nn.Linear(3, 2), nn.Linear(2, 5)).double()
    x = torch.rand(40, 5, generator=generator, dtype=torch.float64)
    return ModelObjective(model, x, x, LOSS)


def test_gauss_newton_products_and_kfac_have_the_fisher_matrix() -> None:
    h = small_objective()
    generator = torch.Generator().manual_seed(2)
    theta = torch.randn(1, h.layout.size, generator=generator, dtype=torch.float64)
    jacobian = torch.func.jacrev(dense_outputs(h))(theta[0])
    p = torch.sigmoid(dense_outputs(h)(theta[0]))
    dense = torch.einsum("nip,ni,niq->pq", jacobian, p * (1 - p), jacobian) / len(p)
    here = h.evaluate(theta)
    v = torch.randn(1, h.layout.size, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(here.vjp(here.loss_hessian()(here.jvp(v)))[0], dense @ v[0])
    # The last layer's inputs, and the curvature of an example's pixels, are both known in closed form.
    (*_, last) = h.evaluate(theta).fisher(Draw(0, exact=True)).layers
    g = torch.einsum("skni,sknj->ij", *[last.cotangents.squeeze(3)] * 2) / len(p)
    torch.testing.assert_close(g, torch.diag((p * (1 - p)).mean(dim=0)))
    found = fitted(h, theta, Kfac(exact=True))
    a = last.inputs[0, :, 0]
    expected = torch.kron(g, a.T @ a / len(a))
    torch.testing.assert_close(kronecker(found.memory, "3.weight"), expected)
    assert len(joined(h, "3.")) == len(expected)


def test_the_metric_is_the_squared_error_of_the_logistic_outputs() -> None:
    z, y = logits()
    by_hand = np.zeros((2, 5))
    for k, n, i in np.ndindex(*z.shape):
        by_hand[k, n] += (1 / (1 + math.exp(-z[k, n, i])) - y[n, i].item()) ** 2
    np.testing.assert_allclose(image_error(z, y), by_hand, rtol=1e-12)


def test_a_straight_line_has_the_ink_of_a_normal_profile() -> None:
    points = np.array([[[4.0, 10.25], [14.0, 10.25], [24.0, 10.25]]])
    image = autoencoders.draw(points)[0]
    distance = np.arange(28) + 0.5 - 10.25
    assert np.abs(image[:, 14] - 255 * np.exp(-0.5 * (distance / 0.7) ** 2)).max() < 1
    area = 20 * math.sqrt(2 * math.pi) * 0.7
    assert not image[:, :1].any() and image.sum() / 255 == pytest.approx(area, rel=1e-2)


def test_a_curve_passes_through_its_three_points() -> None:
    points = np.array([[[5.5, 5.5], [20.5, 8.5], [9.5, 22.5]]])
    image = autoencoders.draw(points)[0]
    assert image[8, 20] > 240 and min(image[5, 5], image[22, 9]) > 100  # the ends have half the ink


def test_the_curves_are_the_same_on_every_machine(few: None) -> None:
    """The digest was computed once; in float64 no pixel is near enough to a rounding edge to differ."""
    x, y, x_test, y_test = autoencoders.curves(Path())
    assert x.shape == (60, 784) and x_test.shape == (20, 784) and x.dtype == np.uint8
    assert np.shares_memory(x, y) and np.array_equal(x, y) and np.array_equal(x_test, y_test)
    assert len(np.unique(np.concatenate([x, x_test]), axis=0)) == 80
    assert hashlib.sha256(x.tobytes()).hexdigest()[:16] == "aa0b39a78166c3b8"
    assert 0.04 < x.mean() / 255 < 0.08


def test_bytes_as_targets_are_pixels_in_the_unit_interval(few: None) -> None:
    split = load(None, "paper", data=DATA_SETS["curves"])
    assert (len(split.train), len(split.test), split.outputs) == (50, 20, 784)
    task = Task.on(split, "autoencoder_curves", 10, dtype=torch.float64, loss="pixel_cross_entropy")
    h = task.batch([0, 1], 1, 0)
    assert torch.equal(h.inputs, h.targets) and h.targets.shape == (2, 10, 784)
    assert h.targets.min() == 0 and 0.9 < h.targets.max() <= 1
    assert h.chain is not None  # explicit layers serve it


def test_fashion_autoencoder_reads_the_files_of_fashion_mnist(contents: dict[str, bytes], bare: Path) -> None:
    data = replace(DATA_SETS["fashion_autoencoder"], files=DATA_SETS["fashion_mnist"].files, training=60)
    folder = bare / "files" / "fashion-mnist"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content))
    assert named_folder(bare / "files", data) == folder
    split = load(folder, "full", data=data)
    assert split.train.images.shape == (60, 1, 28, 28)
    assert torch.equal(split.train.labels, split.train.images.flatten(1))
    task = Task.on(split, "autoencoder_digits", 5, loss="pixel_cross_entropy")
    assert task.batch([0], 1, 0).targets.max() <= 1


@pytest.mark.parametrize(
    ("name", "sizes"), [("autoencoder_curves", SIZES), ("autoencoder_digits", (784, 1000, 500, 250, 30))]
)
def test_the_layers_are_those_of_the_paper(name: str, sizes: tuple[int, ...]) -> None:
    layers = list(make_model(name, (28, 28), 784).children())
    widths = [m.in_features for m in layers if isinstance(m, nn.Linear)] + [784]
    assert widths == [*sizes, *reversed(sizes[:-1])]
    linear = [n for n, m in enumerate(layers) if isinstance(m, nn.Linear)]
    code = linear[len(sizes) - 2]
    for n in linear[:-1]:
        assert isinstance(layers[n + 1], nn.Linear if n == code else nn.Sigmoid)
    assert linear[-1] == len(layers) - 1


def test_a_unit_has_fifteen_normal_weights() -> None:
    shapes = map(torch.Size, [(2000, 40), (7,), (50, 4), (3, 2, 3, 3)])
    layout = Layout(("w", "b", "few", "kernel"), tuple(shapes))
    theta = sparse(layout, 3)
    w, b, few, kernel = (piece[0] for piece in layout.split(theta[None]))
    assert ((w != 0).sum(dim=1) == INCOMING).all() and (few != 0).all() and not b.any()
    assert ((kernel.flatten(1) != 0).sum(dim=1) == INCOMING).all()
    used = w[w != 0]
    # 30,000 numbers: the standard errors are 0.006 and 0.004.
    assert abs(used.mean()) < 0.03 and abs(used.std() - 1) < 0.02
    each = (w != 0).sum(dim=0)  # each input is as likely as any other
    assert abs(each.double().mean() - 750) < 1e-9 and each.min() > 600 and each.max() < 900
    assert torch.equal(theta, sparse(layout, 3)) and not torch.equal(theta, sparse(layout, 4))
    assert sparse(layout, 3, ones=("b",))[80_000:80_007].tolist() == [1] * 7


def test_square_matrices_are_orthogonal_and_uniform() -> None:
    layout = Layout(("w", "v", "b"), tuple(map(torch.Size, [(30, 30), (30, 2), (30,)])))
    w, v, b = (piece[0].double() for piece in layout.split(orthogonal(layout, 0)[None]))
    torch.testing.assert_close(w @ w.T, torch.eye(30).double(), rtol=0, atol=1e-6)
    assert v.abs().max() <= math.sqrt(6 / 32) and not b.any()
    # A uniform orthogonal matrix has a trace of mean 0 and variance 1; without the signs of R it has not.
    traces = [layout.split(orthogonal(layout, seed)[None])[0][0].trace() for seed in range(200)]
    assert abs(torch.stack(traces).mean()) < 4 / math.sqrt(200)
    assert 0.7 < torch.stack(traces).std() < 1.3


def test_a_task_begins_with_the_weights_of_its_model(few: None) -> None:
    split = load(None, "paper", data=DATA_SETS["curves"])
    task = Task.on(split, "autoencoder_curves", 10, loss="pixel_cross_entropy")
    theta = task.initial(5)
    assert torch.equal(theta, sparse(task.layout, 5))
    units = sum(shape[0] for shape in task.layout.shapes if len(shape) == 2)
    behind_code = 25 * (INCOMING - 6)  # these units have 6 inputs each
    assert (theta != 0).sum() == INCOMING * units - behind_code
    length = initial_length({"data": "curves", "model": "autoencoder_curves"}, 5)
    assert length == pytest.approx(theta.norm().item())


@pytest.mark.parametrize("recipe", ["hf_martens", "kfac", "adam"])
def test_a_recipe_lowers_the_loss_of_the_curves(
    recipe: str, few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", recipe, "-o", "task.data=curves", "-o", "task.model=autoencoder_curves", "-q"]
    words += ["-o", "task.loss=pixel_cross_entropy", "-o", "task.batch_size=25", "-o", "train.steps=2"]
    words += ["-o", "train.eval_every=2", "--results", str(tmp_path)]
    assert main(words) == 0
    assert "test image error" in capsys.readouterr().out
    first, *_, last = train_losses(tmp_path)
    assert last < first


TASK = ["task.data=curves", "task.model=autoencoder_curves", "task.loss=pixel_cross_entropy"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("task.loss=squared_error", "task.loss: must be pixel_cross_entropy for task.data curves"),
        ("task.loss=cross_entropy", "task.loss: cross_entropy is a loss for targets that are classes"),
        ("task.model=lenet", "task.model: lenet takes images (channels, height, width), and an input has"),
        ("task.model=rnn_100", "task.model: rnn_100 takes sequences (steps, channels), and an input has"),
        (
            "task.data=fashion_mnist",
            "task.model: autoencoder_curves returns as many numbers as an input has (784), and",
        ),
    ],
)  # fmt: skip
def test_a_wrong_pair_is_one_line(change: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        configuration("smoke", overrides=[*TASK, change])
    assert line in str(caught.value)
    assert configuration("smoke", overrides=TASK).task.model == "autoencoder_curves"


def test_data_without_files_are_not_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "curves"]) == 2
    assert "data set 'curves' is made by a program and has no files" in capsys.readouterr().err
