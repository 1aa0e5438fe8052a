"""Prediction of characters: the text, the transformer, its derivatives, and the loss of positions."""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
from ahf_cli.optim.losses import SoftmaxCrossEntropy
from ahf_cli.optim.rows import Layout
from ahf_cli.recipes.hyperparameters import middle
from ahf_cli.tasks import language, sources
from ahf_cli.tasks.catalogue import make_model
from ahf_cli.tasks.data import LabelledImages, Split, checked, load
from ahf_cli.tasks.datasets import DATA_SETS, DataSet, training_size
from ahf_cli.tasks.folder import complete_folder, locate, system_folder
from ahf_cli.tasks.language import Transformer, transformer_weights, uncompressed
from ahf_cli.tasks.metrics import bits_per_character, metrics_of
from ahf_cli.tasks.task import Task
from ahf_cli.training import evaluate as evaluation
from ahf_cli.training.train import Plan, begin, train
from tests.problems import dense_outputs
from tests.studies import train_losses
from tests.test_kronecker import fitted, kronecker

if TYPE_CHECKING:
    from ahf_cli.tasks.datasets import Array

LOSS = SoftmaxCrossEntropy()
SYMBOLS, STEPS = 3, 4
COMMON = ["-o", "task.data=bible", "-o", "task.model=transformer_32", "-o", "task.batch_size=4"]


def packed(text: bytes, most: int, cleared_at: int) -> bytes:
    """Return a text in the format of `compress -b MOST`, its table emptied once near a place of the text."""
    letters = {bytes((n,)): n for n in range(256)}
    table, free, width, at, before, cleared = dict(letters), 257, 9, 0, b"", False
    found, group = bytearray(b"\x1f\x9d" + bytes((0x80 | most,))), list[int]()

    def end(padded: bool = True) -> None:
        whole = sum(code << (n * width) for n, code in enumerate(group))
        found.extend(whole.to_bytes(width if padded and group else -(-len(group) * width // 8), "little"))
        group.clear()

    while at < len(text):
        if at >= cleared_at and not cleared:
            group.append(256)
            end()
            table, free, width, cleared = dict(letters), 256, 9, True
        pending = before and 256 < free < 1 << most  # 256 is the code that empties the table
        known = table | ({before + before[:1]: free} if pending else {})
        word = max((text[at : at + n] for n in range(1, 20) if text[at : at + n] in known), key=len)
        group.append(known[word])
        if before and free < 1 << most:
            if free > 256:
                table.setdefault(before + word[:1], free)
            free += 1
        before, at = word, at + len(word)
        if free >= 1 << width and width < most:
            end()
            width += 1
        elif len(group) == 8:
            end()
    end(padded=False)
    return bytes(found)


def a_text(length: int = 3_000) -> bytes:
    """Return a text of five characters with repetitions."""
    rng = np.random.default_rng(0)
    words = [bytes(rng.choice(list(b"abc \n"), rng.integers(1, 6)).tolist()) for _ in range(30)]
    return b"".join(words[n] for n in rng.integers(0, 30, length))[:length] + b"aaaaaaaaaaaaaa"


@pytest.mark.skipif(shutil.which("gzip") is None, reason="gzip reads the format too")
@pytest.mark.parametrize(("most", "cleared_at"), [(16, 10**9), (10, 10**9), (12, 1500), (11, 700), (13, 1)])
def test_the_reader_and_gzip_read_the_same_text(most: int, cleared_at: int) -> None:
    text = a_text()
    content = packed(text, most, cleared_at)
    assert len(content) < 0.8 * len(text)
    assert subprocess.run(["gzip", "-dc"], input=content, capture_output=True, check=True).stdout == text
    assert uncompressed(content) == text


def test_a_code_without_a_word_is_refused() -> None:
    content = b"\x1f\x9d\x90" + (97 | 300 << 9).to_bytes(9, "little")
    with pytest.raises(InputError, match="code 300 of a compressed text must be ≤ 257, its known words"):
        uncompressed(content)


@pytest.mark.long
def test_the_text_of_debians_package_is_read() -> None:
    data = DATA_SETS["bible"]
    folder = complete_folder(data)
    if folder is None:
        pytest.skip("`ahf data fetch bible` gets the text")
    split = load(folder, "paper", data=data)
    assert split.validation is not None and split.outputs == 73
    sizes = [len(part) for part in (split.train, split.validation, split.test)]
    assert sizes == [30_968, 1_720, 1_721] == [training_size("bible", "paper"), 1_720, 1_721]
    content = (folder / "bible.data").read_bytes()
    text = uncompressed(content[content.index(b"\x1f\x9d") :])
    assert (
        len(text) == 4_404_475 and b"\nGe1:1 In the beginning God created the heaven and the earth.\n" in text
    )
    letters = bytes(sorted(set(text)))
    for part, first in ((split.train, 0), (split.validation, 30_968), (split.test, 32_688)):
        own = part.images[:3].flatten().tolist()
        assert bytes(letters[n] for n in own) == text[first * 128 : (first + 3) * 128]


@pytest.fixture
def small(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """Register a small text in the user's cache as the data set: 20 + 2 + 2 windows of 128 characters."""
    text = a_text(24 * 128 + 1 - 14)
    content = b"EC02 any header" + packed(text, 16, 10**9)
    data = DATA_SETS["bible"]
    own = replace(
        data, classes=5, training=22, validation=2, files={language.FILE: hashlib.sha256(content).hexdigest()}
    )
    monkeypatch.setitem(DATA_SETS, "bible", own)
    folder = no_data / "xdg" / "ahf" / "bible"
    folder.mkdir(parents=True)
    (folder / language.FILE).write_bytes(content)
    return own


def test_the_parts_follow_each_other_and_targets_are_the_next_characters(small: DataSet) -> None:
    split = load(locate(data=small), "paper", data=small)
    text = np.frombuffer(a_text(24 * 128 + 1 - 14), np.uint8)
    symbols = torch.from_numpy(np.searchsorted(np.unique(text), text))
    assert split.validation is not None
    parts = (split.train, split.validation, split.test)
    assert [len(part) for part in parts] == [20, 2, 2]
    assert torch.equal(torch.cat([part.images for part in parts]).flatten(), symbols[:-1])
    assert torch.equal(torch.cat([part.labels for part in parts]).flatten(), symbols[1:])
    full = load(locate(data=small), "full", data=small)
    assert len(full.train) == 22 and full.validation is None


def test_a_missing_and_a_damaged_text_are_one_line(
    small: DataSet, no_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = no_data / "xdg" / "ahf" / "bible" / language.FILE
    assert main(["data", "verify", "bible"]) == 0
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["data", "path", "bible"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} is damaged: its SHA-256 must be" in line
    file.unlink()
    assert main(["train", "adam", *COMMON, "-q"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "King James Bible is neither in" in line and f"nor in {system_folder(small)}" in line
    assert "run `ahf data fetch bible`" in line
    assert system_folder(small) == no_data / "system" / "lib"
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="Debian package bible-kjv-text: no apt-get on this system"):
        sources.fetch(data=small)
    file.write_bytes(b"nothing packed")
    with pytest.raises(InputError, match="must hold the output of compress, which starts with 1f9d"):
        small.read(file.parent)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda x, y: (x.astype(np.uint8), y), "the training inputs must be symbols as int64, found uint8"),
        (lambda x, y: (x + 1, y), r"the training symbols must be in \[0, 5\), found 1 to 5"),
        (lambda x, y: (x, y[:, 0]), r"the training set must have \(128,\) integer labels per input"),
        (lambda x, y: (x, y - 1), r"the training labels must be in \[0, 5\), found -1 to 3"),
    ],
)
def test_arrays_of_symbols_are_checked(
    small: DataSet, change: Callable[..., tuple[Array, Array]], rule: str
) -> None:
    x, y, x_test, y_test = small.read(locate(data=small))
    assert checked(small, (x, y, x_test, y_test)) is not None
    with pytest.raises(InputError, match=f"data set bible: {rule}"):
        checked(small, (*change(x, y), x_test, y_test))


# The model


def tiny(examples: int = 4, own: int | None = None, vectorized: bool | None = None) -> ModelObjective:
    """Return h of a transformer of one layer in float64; `own` is a number of rows with their own batches."""
    source = torch.Generator().manual_seed(0)
    shape = (examples, STEPS) if own is None else (own, examples, STEPS)
    x, y = torch.randint(0, SYMBOLS, (2, *shape), generator=source)
    model = Transformer(SYMBOLS, STEPS, language.HEAD, 1).double()
    return ModelObjective(model, x, y, vectorized=vectorized, own_batches=own is not None)


def points(h: ModelObjective, count: int = 1, seed: int = 1) -> Tensor:
    """Return parameters near those of a usual start, but with attention that is not uniform, (count, P)."""
    source = torch.Generator().manual_seed(seed)
    ones = [
        name for name in h.layout.names if name.endswith(("norm.weight", "first.weight", "second.weight"))
    ]
    start = torch.stack([transformer_weights(h.layout, n, ones) for n in range(count)]).double()
    return start + 0.15 * torch.randn(count, h.layout.size, generator=source, dtype=torch.float64)


def test_an_output_does_not_depend_on_later_inputs() -> None:
    model = make_model("transformer_32", (8,), SYMBOLS).double()
    x = torch.randint(0, SYMBOLS, (1, 8), generator=torch.Generator().manual_seed(0))
    z = model(x)
    assert z.shape == (1, 8, SYMBOLS)
    for t in range(1, 8):
        changed = x.clone()
        changed[:, t:] = (changed[:, t:] + 1) % SYMBOLS
        assert torch.equal(model(changed)[:, :t], z[:, :t])
        assert (model(changed)[:, t:] - z[:, t:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_attention_is_pytorchs_own() -> None:
    block = language.AttentionBlock(64).double()
    reference = nn.TransformerEncoderLayer(
        64, 2, 256, dropout=0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {
        "self_attn.in_proj_": block.ask, "self_attn.out_proj.": block.mix, "linear1.": block.widen,
        "linear2.": block.narrow, "norm1.": block.first, "norm2.": block.second,
    }  # fmt: skip
    reference.load_state_dict(
        {f"{n}{k}": getattr(m, k) for n, m in names.items() for k in ("weight", "bias")}
    )
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.full((7, 7), -math.inf, dtype=torch.float64).triu(1)
    torch.testing.assert_close(block(x, mask), reference(x, src_mask=mask), rtol=1e-12, atol=1e-12)


def test_initial_weights_have_the_declared_deviations() -> None:
    model = make_model("transformer_128", (128,), 73)
    assert sum(p.numel() for p in model.parameters()) == 828_489
    layout = Layout.of(model.named_parameters())
    named = dict(zip(layout.names, layout.split(transformer_weights(layout, 3)[None]), strict=True))
    for name, piece in named.items():
        branch = name.endswith(("mix.weight", "narrow.weight"))
        expected = 0.02 / (math.sqrt(8) if branch else 1) if piece.dim() > 2 else 0
        assert piece.std().item() == pytest.approx(expected, rel=0.05)
    assert torch.equal(transformer_weights(layout, 3), transformer_weights(layout, 3))


# The loss of positions, and derivatives


def softmax_curvature(z: Tensor) -> Tensor:
    """Return diag p − ppᵀ at each position, (N, T, C, C)."""
    p = z.softmax(dim=-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def test_derivatives_are_those_of_dense_matrices_and_of_differences() -> None:
    h = tiny(examples=3)
    theta, v = points(h), points(h, seed=2)
    flat = theta[0]

    def loss(t: Tensor) -> Tensor:
        return nn.functional.cross_entropy(dense_outputs(h)(t).flatten(0, 1), h.targets.flatten())

    here = h.evaluate(theta)
    gradient = torch.func.grad(loss)
    torch.testing.assert_close(here.loss[0], loss(flat), rtol=1e-13, atol=0)
    torch.testing.assert_close(here.gradient[0], gradient(flat), rtol=1e-10, atol=1e-14)
    step = 1e-5
    difference = (gradient(flat + step * v[0]) - gradient(flat - step * v[0])) / (2 * step)
    product = here.hvp(v)[0]
    torch.testing.assert_close(product, difference, rtol=0, atol=1e-7 * difference.abs().max().item())
    torch.testing.assert_close(product, torch.func.vjp(gradient, flat)[1](v[0])[0])  # it is symmetric
    jacobian = torch.func.jacrev(dense_outputs(h))(flat)
    curvature = softmax_curvature(dense_outputs(h)(flat)) / (3 * STEPS)
    expected = torch.einsum("ntip,ntij,ntj->p", jacobian, curvature, jacobian @ v[0])
    found = here.vjp(here.loss_hessian()(here.jvp(v)))[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("own", [None, 3])
def test_rows_side_by_side_are_each_alone(own: int | None, vectorized: bool) -> None:
    h = tiny(own=own, vectorized=vectorized)
    theta, v = points(h, 3), points(h, 3, seed=2)
    here = h.evaluate(theta)
    together = (here.loss, here.gradient, here.hvp(v), here.vjp(here.loss_hessian()(here.jvp(v))))
    sample = here.fisher(Draw(0))
    for k in range(3):
        x, y = (t if own is None else t[k] for t in (h.inputs, h.targets))
        lone = ModelObjective(h.model, x, y).evaluate(theta[k : k + 1])
        w = v[k : k + 1]
        alone = (lone.loss, lone.gradient, lone.hvp(w), lone.vjp(lone.loss_hessian()(lone.jvp(w))))
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[k : k + 1], other, rtol=1e-10, atol=1e-13)
        single = lone.fisher(Draw(0))
        assert sample.rest is not None and single.rest is not None
        torch.testing.assert_close(sample.rest[k], single.rest[0])
        for layer, same in zip(sample.layers, single.layers, strict=True):
            torch.testing.assert_close(layer.inputs[k], same.inputs[0])
            torch.testing.assert_close(layer.cotangents[:, k], same.cotangents[:, 0])


def test_roots_and_draws_have_the_curvature_of_the_mean_over_positions() -> None:
    z = torch.randn(2, 3, 4, SYMBOLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dense = torch.zeros(3, 4, SYMBOLS, 4, SYMBOLS, dtype=torch.float64)
    for t, block in enumerate((softmax_curvature(z[0]) / 4).unbind(1)):
        dense[:, t, :, t] = block
    y = torch.zeros(3, 4, dtype=torch.int64)
    s = LOSS.roots(z, y)[:, 0]
    torch.testing.assert_close(torch.einsum("sntc,snud->ntcud", s, s), dense)
    many = LOSS.drawn(z[:, :1].expand(2, 40_000, 4, SYMBOLS), y, torch.Generator().manual_seed(1))[0]
    assert many.shape == (2, 40_000, 4, SYMBOLS)
    mean = torch.einsum("ntc,nud->tcud", many[0], many[0]) / 40_000
    # An entry of s sᵀ is at most 1/4, so that its mean has a standard error of at most 0.25/√40,000.
    torch.testing.assert_close(mean, dense[0], rtol=0, atol=0.006)


def test_kfac_has_the_factors_of_linear_layers_over_positions_and_a_diagonal_for_others() -> None:
    h = tiny()
    theta = points(h)
    sample = h.evaluate(theta).fisher(Draw(0, exact=True))
    covered = {h.layout.names[layer.weight] for layer in sample.layers}
    linear = {f"{n}.weight" for n, m in h.model.named_modules() if isinstance(m, nn.Linear)}
    assert covered == linear
    # The last layer's cotangents are known: its G is the mean curvature of a position over T.
    memory = fitted(h, theta, Kfac(exact=True)).memory
    seen: list[Tensor] = []
    handle = h.model.get_submodule("output").register_forward_hook(lambda m, args, z: seen.append(args[0]))
    z = dense_outputs(h)(theta[0])
    handle.remove()
    a = torch.cat([seen[0], torch.ones_like(seen[0][..., :1])], dim=-1).flatten(0, 1)
    g = softmax_curvature(z).mean(dim=(0, 1)) / STEPS
    torch.testing.assert_close(kronecker(memory, "output.weight"), torch.kron(g, a.T @ a / len(h.inputs)))
    jacobian = torch.func.jacrev(dense_outputs(h))(theta[0])
    dense = torch.einsum("ntip,ntij,ntjp->p", jacobian, softmax_curvature(z), jacobian)
    named = zip(h.layout.names, h.layout.split(memory["rest"]), strict=True)
    others = torch.cat(
        [
            (0 * p if n.removesuffix("bias") + "weight" in covered or n in covered else 0 * p + 1).flatten()
            for n, p in named
        ]
    )
    torch.testing.assert_close(memory["rest"][0], others * dense / (len(h.inputs) * STEPS))


# Metric, evaluation and command line


def test_the_metric_is_the_loss_in_bits() -> None:
    z = torch.randn(2, 3, 4, SYMBOLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randint(0, SYMBOLS, (3, 4), generator=torch.Generator().manual_seed(1))
    by_hand = np.zeros((2, 3))
    for k, n, t in np.ndindex(2, 3, 4):
        e = np.exp(z[k, n, t].numpy())
        by_hand[k, n] -= math.log2(e[y[n, t]] / e.sum()) / 4
    np.testing.assert_allclose(bits_per_character(z, y), by_hand, rtol=1e-12)
    torch.testing.assert_close(bits_per_character(z, y).mean(dim=1), LOSS.value(z, y) / math.log(2))
    head = metrics_of({"data": "bible", "loss": "cross_entropy"}).headline
    assert head.column == "test_bits_per_character" and head.better == "lower"
    assert head.baseline == pytest.approx(math.log2(73))


def test_an_evaluation_passes_few_positions_at_once(small: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.on(load(locate(data=small), "paper", data=small), "transformer_32", 4)
    theta = torch.stack([task.initial(0), task.initial(1)])
    whole = LOSS.value(task.batch([0], 1, 0).outputs(theta), task.batch([0], 1, 0).targets)
    assert whole.isfinite().all()
    sizes: list[int] = []
    outputs = ModelObjective.outputs

    def seen(self: ModelObjective, parameters: Tensor) -> Tensor:
        sizes.append(len(self.inputs))
        return outputs(self, parameters)

    monkeypatch.setattr(ModelObjective, "outputs", seen)
    monkeypatch.setitem(evaluation.CHUNK, "cpu", 3 * 128)
    found = evaluation.evaluate(task, theta, task.split.train, 8)
    assert sizes == [3, 3, 2]
    h = task.examples(task.split.train, 0, 8)
    torch.testing.assert_close(found["loss"], LOSS.value(h.outputs(theta), h.targets).double())
    torch.testing.assert_close(found["bits_per_character"], found["loss"] / math.log(2))


def test_the_command_line_trains_on_a_text(
    small: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*COMMON, "-o", "train.steps=2", "-o", "train.eval_every=2", "-o", "task.split=paper"]
    words += ["-o", "train.eval_subset=4", "--results", str(tmp_path / "results"), "-q"]
    assert main(["train", "kfac", *words]) == 0
    assert "test bits per character" in capsys.readouterr().out
    first, *_, last = train_losses(tmp_path / "results")
    assert last < first < math.log(5) * 1.05


NAMES = ["adamw_cosine", "muon_cosine", "soap_cosine", "kfac", "hf_stable", "hf_kfac"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_of_the_preset_lowers_the_loss_and_counts_its_work(name: str, small: DataSet) -> None:
    """Two rows at once are each alone."""
    config, whole = configuration("language"), load(locate(data=small), "paper", data=small)
    recipe, plan = config.recipe(name), Plan(steps=2, eval_every=2, seed=0)
    few = LabelledImages(whole.train.images[:4, :16], whole.train.labels[:4, :16])
    split = Split(few, None, few, whole.outputs, whole.metrics)
    task = Task.on(split, "transformer_32", 4, dtype=torch.float64)
    middles = {key: middle(found) for key, found in config.space(name).items()}
    lower = {key: value / 2 for key, value in middles.items()}
    both = begin(task, recipe, plan, {0: middles, 1: lower})
    for result, trial in zip(train(task, both), both.trials, strict=True):
        assert result.status == "ok"
        assert result.measured["train_loss"] < trial.curve[0].measured["train_loss"]
    alone = begin(task, recipe, plan, {1: lower})
    train(task, alone)
    # The rounding of many CG iterations differs, and the loss shows it least.
    losses = [batch.trials[-1].curve[-1].measured["train_loss"] for batch in (both, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    work = both.trials[0].curve[-1]
    assert work.gradients >= 2 and (work.products > 0) == name.startswith("hf")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["task.model=mlp"], "task.model: mlp takes numbers, and an input has symbols, in task.data bible"),
        (["task.data=fashion_mnist"], "task.model: transformer_32 takes symbols, and an input has numbers"),
        (["task.loss=squared_error"], "task.loss: squared_error is a loss for targets that are numbers"),
        (["task.subset=30969"], "task.subset: must be ≤ 30968"),
    ],
)
def test_a_wrong_pair_is_one_line(changes: list[str], line: str) -> None:
    task = ["task.data=bible", "task.model=transformer_32", "task.split=paper"]
    with pytest.raises(InputError) as caught:
        configuration("smoke", overrides=[*task, *changes])
    assert line in str(caught.value)
    assert configuration("smoke", overrides=task).task.data == "bible"
