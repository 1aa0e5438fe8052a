"""Problems of memory: their examples by hand, the network against PyTorch's own, and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ahf_cli.cli import main
from ahf_cli.config.load import load as configuration
from ahf_cli.errors import InputError
from ahf_cli.optim import ModelObjective
from ahf_cli.optim.losses import PixelCrossEntropy, SquaredError
from ahf_cli.optim.rows import Layout
from ahf_cli.tasks import recurrent
from ahf_cli.tasks.catalogue import LOSSES, MODELS, make_model
from ahf_cli.tasks.data import load
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.initial import Initial, sparse
from ahf_cli.tasks.metrics import MEASURES, failures, metrics_of, wrong, wrong_bits
from ahf_cli.tasks.recurrent import PROBLEMS, TanhRNN, sequences, sparse_rnn
from ahf_cli.tasks.task import Task
from tests.problems import dense_outputs
from tests.studies import train_losses

NAMES = [name for name, data in DATA_SETS.items() if name.rpartition("_")[0] in PROBLEMS]
COUNT = 4_000


def examples(problem: str, steps: int = 50) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = PROBLEMS[problem](np.random.default_rng(0), COUNT, steps)
    return (x / 255.0 if x.dtype == np.uint8 else x.astype(float)), y


@pytest.mark.parametrize("name", NAMES)
def test_data_are_as_declared_and_the_same_at_each_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` checks shapes, types and the number of training examples."""
    if name.startswith("random"):
        monkeypatch.setattr(recurrent, "TEST", 100)
        monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], training=600))
    data = DATA_SETS[name]
    split = load(None, "paper", data=data)
    assert split.validation is not None and len(split.validation) == data.training // 6
    problem, _, steps = name.rpartition("_")
    for first, second in zip(sequences(problem, int(steps)), data.read(Path()), strict=True):
        assert np.array_equal(first, second)
    task = Task.on(split, "rnn_100", 20, loss=data.losses[0])
    h = task.batch([0], 1, 0)
    assert h.outputs(task.initial(0)[None]).shape == (1, 20, data.outputs)
    assert h.inputs.min() >= 0 and h.inputs.max() <= 1


@pytest.mark.parametrize(
    ("problem", "of", "mean", "variance"),
    [
        ("addition", lambda a, b: a + b, 1, 1 / 6),
        ("multiplication", lambda a, b: a * b, 1 / 4, 1 / 9 - 1 / 16),
        ("xor", lambda a, b: a != b, 1 / 2, 1 / 4),
    ],
)
def test_the_target_is_of_the_two_marked_values(
    problem: str, of: Callable[..., float], mean: float, variance: float
) -> None:
    x, y = examples(problem)
    assert y.shape == (COUNT, 1)
    for sequence, target in zip(x[:200], y[:200], strict=True):
        first, second = np.flatnonzero(sequence[:, 1])
        assert first < 5 <= second < 25
        assert target[0] == pytest.approx(float(of(*sequence[[first, second], 0])), rel=1e-6)
    assert abs(y.mean() - mean) < 4 * (variance / COUNT) ** 0.5
    assert y.var() == pytest.approx(variance, rel=0.1)
    assert x[..., 0].mean() == pytest.approx(0.5, abs=0.01)
    places = np.argsort(x[..., 1], axis=1)[:, -2:].min(axis=1)
    assert np.bincount(places, minlength=5).min() > COUNT / 5 - 4 * (COUNT * 0.16) ** 0.5


@pytest.mark.parametrize(("problem", "tenths"), [("temporal_order", (0, 4)), ("temporal_order_3", (0, 3, 5))])
def test_the_class_numbers_the_symbols_in_their_order(problem: str, tenths: tuple[int, ...]) -> None:
    x, y = examples(problem)
    assert (x.sum(axis=2) == 1).all()
    symbols = x.argmax(axis=2)
    for sequence, target in zip(symbols[:200], y[:200], strict=True):
        places = np.flatnonzero(sequence >= 4)
        assert tuple(places // 5) == tenths
        assert int("".join(str(s - 4) for s in sequence[places]), 2) == target
    classes = 2 ** len(tenths)
    expected = COUNT / classes
    assert np.abs(np.bincount(y, minlength=classes) - expected).max() < 4 * expected**0.5
    distractors = np.bincount(symbols[symbols < 4], minlength=4) / (symbols < 4).sum()
    assert np.abs(distractors - 0.25).max() < 0.01


def test_the_first_symbol_is_the_class() -> None:
    x, y = examples("random_permutation", 20)
    symbols = x.argmax(axis=2)
    assert (x.sum(axis=2) == 1).all() and (symbols[:, 0] == y).all() and 0.45 < y.mean() < 0.55
    rest = np.bincount(symbols[:, 1:].ravel(), minlength=100)
    assert not rest[:2].any() and np.abs(rest[2:] / rest.sum() - 1 / 98).max() < 1.6e-3  # 4.4 standard errors


def test_all_thirty_two_sequences_are_memorized() -> None:
    x, y, x_test, y_test = sequences("memorization", 50)
    for inputs, bits, copies in ((x, y, 60), (x_test, y_test, 1)):
        assert (np.unique(bits, axis=0, return_counts=True)[1] == copies).all() and len(bits) == 32 * copies
        symbols = inputs.argmax(axis=2)
        assert (symbols[:, :5] == bits).all() and (symbols[:, 5:-1] == 2).all()
        assert (symbols[:, -1] == 3).all()


def test_a_metric_counts_the_sequences_that_break_its_criterion() -> None:
    targets = torch.tensor([[0.5], [0.5], [1.0]])
    outputs = torch.tensor([[[0.539], [0.541], [0.9]], [[0.461], [0.5], [1.039]]], dtype=torch.float64)
    assert failures(outputs, targets.double()).tolist() == [[False, True, True], [False, False, False]]
    bits = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert wrong_bits(torch.tensor([[[-1.0, 2.0], [3.0, -0.1]]]), bits).tolist() == [[False, True]]
    assert wrong(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([1, 1])).tolist() == [[False, True]]


def test_a_problem_is_solved_from_one_percent_on() -> None:
    for name in NAMES:
        data = DATA_SETS[name]
        head = metrics_of({"data": name, "loss": data.losses[0]}).headline
        assert head.better == "lower" and head.reaches(0.01) and not head.reaches(0.011)
        of_classes = data.classes is not None
        assert LOSSES[data.losses[0]].classes == of_classes == MEASURES[data.metrics[0]].classes
    order = metrics_of({"data": "temporal_order_3_50", "loss": "cross_entropy"}).headline
    assert order.baseline == pytest.approx(7 / 8)


def network(channels: int = 3, units: int = 4, outputs: int = 2) -> tuple[TanhRNN, Tensor]:
    torch.manual_seed(0)
    return TanhRNN(channels, units, outputs).double(), torch.randn(5, 7, channels, dtype=torch.float64)


def test_the_network_is_pytorchs_own() -> None:
    model, x = network()
    reference = nn.RNN(3, 4, batch_first=True).double()
    own = {"weight_ih_l0": model.input.weight, "bias_ih_l0": model.input.bias}
    own |= {"weight_hh_l0": model.hidden.weight, "bias_hh_l0": torch.zeros(4).double()}
    reference.load_state_dict(own)
    last = reference(x)[1][0]
    torch.testing.assert_close(model(x), model.output(last), rtol=1e-13, atol=1e-13)
    sizes = [p.numel() for p in make_model("rnn_100", (50, 2), 1).parameters()]
    assert sizes == [200, 100, 10_000, 100, 1]


@pytest.mark.parametrize("vectorized", [True, False])
def test_products_are_those_of_the_dense_matrices_in_every_row(vectorized: bool) -> None:
    model, x = network()
    y = torch.rand(5, 2, dtype=torch.float64)
    for loss in (SquaredError(), PixelCrossEntropy()):
        h = ModelObjective(model, x, y, loss, vectorized=vectorized)
        theta = 0.5 * torch.randn(2, h.layout.size, dtype=torch.float64)
        v = torch.randn_like(theta)
        here = h.evaluate(theta)
        gauss, hessian = here.vjp(here.loss_hessian()(here.jvp(v))), here.hvp(v)
        for k, (own, direction) in enumerate(zip(theta, v, strict=True)):
            jacobian = torch.func.jacrev(dense_outputs(h))(own)
            z = dense_outputs(h)(own)
            p = torch.sigmoid(z)
            curvature = 2 * torch.ones_like(z) if isinstance(loss, SquaredError) else p * (1 - p)
            expected = torch.einsum("nip,ni,nij,j->p", jacobian, curvature / 5, jacobian, direction)
            torch.testing.assert_close(gauss[k], expected)

            def value(t: Tensor, h: ModelObjective = h) -> Tensor:
                return h.loss.value(dense_outputs(h)(t)[None], y)[0]

            torch.testing.assert_close(hessian[k], torch.func.hessian(value)(own) @ direction)


def radius(draw: Initial, seed: int) -> float:
    layout = Layout.of(make_model("rnn_100", (50, 2), 1).named_parameters())
    pieces = dict(zip(layout.names, layout.split(draw(layout, seed, ())[None]), strict=True))
    return float(torch.linalg.eigvals(pieces["hidden.weight"][0]).abs().max())


def test_the_first_states_neither_fade_nor_saturate() -> None:
    """The circular law: N(0, s²) in 15 places of each row has the spectral radius s √15."""
    for draw, expected in ((sparse_rnn, 1), (sparse, 15**0.5)):
        assert np.mean([radius(draw, seed) for seed in range(10)]) == pytest.approx(expected, rel=0.1)
    layout = Layout.of(make_model("rnn_100", (50, 100), 2).named_parameters())
    pieces = dict(zip(layout.names, layout.split(sparse_rnn(layout, 0)[None]), strict=True))
    for name, deviation in (("hidden.weight", 15**-0.5), ("input.weight", 15**-0.5 / 4)):
        used = pieces[name][pieces[name] != 0]
        assert len(used) == 1_500 and used.std().item() == pytest.approx(deviation, rel=0.1)
    assert not pieces["hidden.weight"].isnan().any() and not pieces["input.bias"].any()


def test_the_second_model_begins_with_an_orthogonal_matrix() -> None:
    data = DATA_SETS["addition_50"]
    split = load(None, "paper", data=data)
    pieces = {}
    for name in ("rnn_100", "rnn_100_orthogonal"):
        task = Task.on(split, name, 20, loss="squared_error")
        pieces[name] = dict(zip(task.layout.names, task.layout.split(task.initial(7)[None]), strict=True))
    w = pieces["rnn_100_orthogonal"]["hidden.weight"][0]
    torch.testing.assert_close(w @ w.T, torch.eye(100), rtol=0, atol=1e-5)
    assert ((pieces["rnn_100"]["hidden.weight"][0] != 0).sum(dim=1) == 15).all()
    assert MODELS["rnn_100"].axes == 2


@pytest.mark.parametrize(
    ("recipe", "model"),
    [("hf_martens", "rnn_100"), ("hf_structural", "rnn_100"), ("adam_clipped", "rnn_100_orthogonal")],
)
def test_a_recipe_lowers_the_loss_of_additions(
    recipe: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", recipe, "--preset", "rnn", "-o", f"task.model={model}", "-q"]
    words += ["-o", "task.batch_size=50", "-o", "task.subset=50", "-o", "train.longer={}"]
    words += ["-o", "train.steps=2", "-o", "train.eval_every=2", "--results", str(tmp_path)]
    assert main(words) == 0
    assert "test failures" in capsys.readouterr().out
    first, *_, last = train_losses(tmp_path)
    assert last < first


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["task.loss=pixel_cross_entropy"], "task.loss: must be squared_error for task.data addition_50"),
        (["task.model=lenet"], "task.model: lenet takes images (channels, height, width), and an input has"),
        (
            ["task.data=temporal_order_50"],
            "task.loss: squared_error is a loss for targets that are numbers, and those of task.data",
        ),
        (["task.data=addition_51"], "task.data: must be one of fashion_mnist"),
        (["task.data=xor_50"], "task.loss: must be pixel_cross_entropy for task.data xor_50"),
    ],
)
def test_a_wrong_pair_is_one_line(changes: list[str], line: str) -> None:
    task = ["task.data=addition_50", "task.model=rnn_100", "task.loss=squared_error"]
    with pytest.raises(InputError) as caught:
        configuration("smoke", overrides=[*task, *changes])
    assert line in str(caught.value)
    assert configuration("smoke", overrides=task).task.data == "addition_50"
