"""Models by name, on small synthetic images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ahf_cli.cli import main
from ahf_cli.optim import compose, gauss_newton, hessian
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.tasks.catalogue import MODELS, make_model
from ahf_cli.tasks.data import LabelledImages, Split
from ahf_cli.tasks.task import Task

CLASSIFIERS = [name for name, model in MODELS.items() if model.axes in (None, 3) and not model.mirrors]
PARAMETERS = {  # by hand, from the layers' sizes; for one channel of 28 × 28 and three of 32 × 32
    "lenet": (44_426, 62_006),
    "mlp": (235_146, 820_874),
    "net3c3d": (64 * 26 + 96 * 577 + 128 * 865 + 512 * 513 + 131_328 + 2_570, 895_210),
    "alexnet_small": (64 * 26 + 64 * 1_601 + 384 * (64 * 36 + 1) + 192 * 385 + 1_930, None),
    "resnet34": (None, 21_282_122),
}


def images(shape: tuple[int, int, int], classes: int, count: int = 8) -> Split:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = generator.integers(0, classes, count)
    own = LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels))
    return Split(own, own, own, classes)


@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 32, 32), 100)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_model_takes_images_of_every_task(name: str, shape: tuple[int, int, int], classes: int) -> None:
    model = make_model(name, shape, classes)
    assert not model.training or not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model(torch.rand(2, *shape)).shape == (2, classes)
    expected = PARAMETERS[name][shape[0] == 3]
    if classes == 10 and expected is not None:
        assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name == "resnet34")) for name in CLASSIFIERS]
)
def test_every_model_is_trained_by_the_core(name: str) -> None:
    """The loss begins near chance, products are symmetric, and a short step lowers the loss."""
    count = 2 if name == "resnet34" else 8
    task = Task.on(images((3, 32, 32), 10, count), name, count)
    theta, objective = task.initial(0)[None], task.batch([0], 1, 0)
    evaluation = objective.evaluate(theta)
    assert torch.isfinite(evaluation.loss).all() and evaluation.loss.item() < 12
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 1, theta.shape[1], generator=generator).unbind(0)
    for operator in (evaluation.operator(gauss_newton), evaluation.operator(hessian)):
        left, right = (u @ operator(v).T).item(), (v @ operator(u).T).item()
        assert left == pytest.approx(right, rel=1e-3, abs=1e-3 * abs(v @ operator(v).T).item())
    recipe = RECIPES["hf"].derive("x", {"curvature": "ggn", "curvature_batch": "same", "max_iterations": 2})
    core = compose(recipe.choices)
    _, info = core.step(core.init(theta, {"lr": 0.1, "damping": 30.0}), objective)
    assert info.finite.all() and info.loss_after < info.loss


def test_normalisation_begins_as_the_identity_and_an_example_does_not_see_the_others() -> None:
    task = Task.on(images((3, 32, 32), 10, 4), "resnet34", 4)
    pieces = dict(zip(task.layout.names, task.layout.split(task.initial(0)[None]), strict=True))
    assert (pieces["layer1.0.bn1.weight"] == 1).all() and (pieces["layer1.0.bn1.bias"] == 0).all()
    assert (pieces["fc.bias"] == 0).all() and pieces["fc.weight"].std() > 0
    batch = task.batch([0], 1, 0)
    alone = Task.on(images((3, 32, 32), 10, 4), "resnet34", 1).batch([0], 1, 0)
    both = batch.outputs(task.initial(0)[None])
    torch.testing.assert_close(alone.outputs(task.initial(0)[None])[0, 0], both[0, 0], rtol=1e-4, atol=1e-4)


def test_train_takes_a_model_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train", "adam", "--preset", "smoke", "-o", "task.model=mlp", "-o", "task.subset=400",
        "-o", "task.batch_size=64", "-o", "train.steps=3", "--results", str(tmp_path), "-q",
    ]  # fmt: skip
    assert main(words) == 0
    assert "adam, lr=0.001" in capsys.readouterr().out
    assert main([*words, "-o", "task.model=mpl"]) == 2
    said = capsys.readouterr().err
    assert f"task.model: must be one of {', '.join(MODELS)}, got 'mpl'; did" in said
    assert main(["train", "hf", *words[2:], "--record", str(tmp_path / "t.npz")]) == 2
    assert "--record: a trace needs LeNet and cross-entropy, got task.model mlp" in capsys.readouterr().err
