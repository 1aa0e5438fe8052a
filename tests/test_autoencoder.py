"""A task of regression, the autoencoder, from its plug-in to the verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ahf_cli import plugin
from ahf_cli.cli import main
from ahf_cli.config.load import load
from ahf_cli.errors import InputError
from ahf_cli.report import verdict
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.study_data import StudyData, load_study
from ahf_cli.study.pack import pack
from ahf_cli.study.store import Study
from ahf_cli.tasks.datasets import DATA_SETS
from ahf_cli.tasks.metrics import MEASURES
from ahf_cli.training.train import fell
from tests.conftest import kept_registries
from tests.searches import serial_pool

ROOT = Path(__file__).parents[1]
WORDS = ["--plugin", "examples/autoencoder.py", "--config", "examples/autoencoder.yaml"]
SMALL = ["-o", "train.steps=20", "--trials", "3", "-o", "search.reruns=3", "-o", "task.subset=300"]
pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results folder of a study in the fair design, without its plug-in in the registries."""
    folder = tmp_path_factory.mktemp("results")
    with kept_registries(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ahf_cli.search.run.process_pool", serial_pool)
        assert main(["search", *WORDS, *SMALL, "--results", str(folder), "-q"]) == 0
    return folder


@pytest.fixture
def data(results: Path) -> StudyData:
    return load_study(results / "autoencoder")


def test_columns_are_those_of_the_tasks_metrics(data: StudyData) -> None:
    measured = [f"{where}_{name}" for where in ("train", "validation", "test") for name in ("loss", "rms")]
    assert [c for c in data.curves if c in measured] == measured
    assert not [c for c in (*data.curves, *data.trials) if "accuracy" in c]
    last = data.curves.sort_values("step").groupby(["recipe", "trial"]).last()
    for row in data.trials.to_dict("records"):
        own = last.loc[(row["recipe"], row["trial"])]
        keys = "step == 0 and recipe == @row['recipe'] and trial == @row['trial']"
        first = data.curves.query(keys)["validation_loss"].item()  # of its own seed
        assert row["value"] == min(own["validation_loss"], first) and row["test_rms"] == own["test_rms"]
    # 64 pixels: the loss of an image is 64 times its mean squared error, whose root is the metric.
    assert (data.curves["test_rms"] <= (data.curves["test_loss"] / 64) ** 0.5 + 1e-6).all()


def test_tables_and_verdict_say_which_way_is_better(data: StudyData, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Comparison(data, Choices(target=0.4, attribute=True))
    assert data.metrics.headline.column == "test_rms" and not data.metrics.guessing
    finals = found.tables["final_values"].numbers
    assert set(finals["metric"]) == {"training loss", "test reconstruction error"}
    for (metric, recipe), own in finals[finals["trials"] == "all"].groupby(["metric", "recipe"]):
        column = "train_loss" if metric == "training loss" else "test_rms"
        assert own["best"].item() == data.trials[data.trials["recipe"] == recipe][column].min()
    met = found.tables["time_to_target"].numbers.set_index("recipe")["met"]
    below = data.curves[data.curves["test_rms"] <= 0.4].groupby("recipe")["trial"].nunique()
    assert met.to_dict() == {name: int(below.get(name, 0)) for name in data.recipes}
    said = " ".join(found.verdict.lines())
    assert "test reconstruction error" in said and "accuracy" not in said and "chance" not in said
    assert "supports no claim" in said
    monkeypatch.setattr(verdict, "ENOUGH_TRIALS", 3)
    monkeypatch.setattr(verdict, "SIGNIFICANT", 8.0)  # so that three seeds are enough
    claimed = Comparison(data, Choices(target=0.4)).verdict
    said = " ".join(claimed.lines())
    leader = data.reruns.groupby("recipe")["validation_rms"].mean().idxmin()
    assert claimed.leader == leader and f"{leader} has the best mean validation" in said
    means = data.reruns.groupby("recipe")["test_rms"].mean()
    assert f"{means.idxmin()} is ahead of {means.idxmax()} in test reconstruction error" in said
    for table in found.tables.values():
        assert "accuracy" not in " ".join([*table.texts, table.note]).lower()


def test_figures_have_the_tasks_units_and_no_level_of_guessing(data: StudyData) -> None:
    from ahf_cli.report.canvas import THEMES, make
    from ahf_cli.report.page import page

    found = Comparison(data, Choices(target=0.4))
    for drawing in found.drawn[0]:
        picture = make(drawing, THEMES["screen"])
        texts = [a.get_xlabel() + a.get_ylabel() for a in picture.figure.axes] + list(drawing.caption)
        marks = [t.get_text() for a in picture.figure.axes for t in a.texts]
        words = " ".join([*texts, *marks, drawing.title])
        assert "accuracy" not in words and "chance" not in words and "nats" not in words, drawing.name
    curves = next(d for d in found.drawn[0] if d.name == "figure2")
    axes = make(curves, THEMES["screen"]).figure.axes
    assert axes[1].get_ylabel() == "test reconstruction error (pixel)"
    low, high = axes[1].get_ylim()
    last = data.curves[data.curves["step"] == data.curves["step"].max()]
    assert all(low < value < high for value in last.groupby("recipe")["test_rms"].mean())
    html = page(found)
    assert "reconstruction error" in html and "test accuracy" not in html


def test_every_command_reads_it_without_its_plugin(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--results", str(results)]
    assert main(["compare", "--study", "autoencoder", "--out", str(tmp_path / "out"), *words, "-q"]) == 0
    assert main(["export", "autoencoder", "--out", str(tmp_path / "csv"), *words]) == 0
    assert "test_rms" in pd.read_csv(tmp_path / "csv" / "trials.csv")
    capsys.readouterr()
    assert main(["show", "autoencoder", "adam/1", "--out", str(tmp_path / "show"), *words]) == 0
    assert "and test rms 0." in capsys.readouterr().out
    assert main(["status", "--study", "autoencoder", *words]) == 0
    packed = pack(Study(results, "autoencoder"), tmp_path / "packs")
    one, other = load_study(results / "autoencoder"), load_study(packed)
    for part in ("trials", "curves", "reruns"):
        pd.testing.assert_frame_equal(getattr(one, part), getattr(other, part), check_exact=True)
    manifest = json.loads((packed / "manifest.json").read_text())
    assert [m["name"] for m in manifest["metrics"]] == ["loss", "rms"]


@pytest.mark.parametrize(
    ("first", "last", "trained"),
    [(2.0, 1.9, True), (2.0, 1.91, False), (-2.0, -2.2, True), (-2.0, -2.0, False)],
)
def test_training_is_a_fall_by_a_twentieth(first: float, last: float, trained: bool) -> None:
    assert fell(first, last) == trained


OWN = "OWN = {'label': 'x', 'better': 'lower', 'unit': 'u', 'short': 'u'}\n"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("data_set('d', shape=(2,), training=9)", "data set 'd' needs classes or target, one of both"),
        ("data_set('d', shape=(2,), training=9, target=(0,))", "data set 'd': target must be integers ≥ 1"),
        ("data_set('d', shape=(2,), training=9, target=(1,), metrics=['eror'])", "metrics: no metric 'eror'"),
        (
            "data_set('d', shape=(2,), training=9, target=(1,), metrics=['accuracy'])",
            "metrics: accuracy is for targets that are classes",
        ),
        ("metric('M', **OWN)", "the name must match [a-z][a-z0-9_]*"),
        ("metric('m', **{**OWN, 'label': ''})", "metric 'm': label must be words"),
        ("metric('m', **{**OWN, 'better': 'less'})", "better must be lower or higher, got 'less'"),
        ("metric('m', **OWN, top=0)", "metric 'm': top must be > 0"),
        ("metric('accuracy', **OWN)", "there is a metric 'accuracy' already"),
    ],
)  # fmt: skip
def test_a_wrong_registration_says_which_field_and_why(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from ahf_cli import plugin\n{OWN}@plugin.{text}\ndef f(*x): ...\n")
    with pytest.raises(InputError) as caught:
        plugin.load([file])
    assert rule in str(caught.value)


def test_a_metric_that_returns_another_shape_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ahf_cli import plugin\n"
        "@plugin.metric('m', label='x', better='lower', unit='u', short='u')\n"
        "def m(outputs, targets):\n    return outputs\n"
    )
    plugin.load([file])
    value = MEASURES["m"].value
    assert callable(value)
    with pytest.raises(InputError, match=r"metric m: ValueError: must return one value an example, \(N,\)"):
        value(torch.zeros(2, 5, 3), torch.zeros(5, 3))


def test_a_loss_of_classes_is_refused_for_numbers() -> None:
    plugin.load([ROOT / "examples" / "autoencoder.py"])
    with pytest.raises(InputError, match="task.loss: cross_entropy is a loss for targets that are classes"):
        load(file=ROOT / "examples" / "autoencoder.yaml", overrides=["task.loss=cross_entropy"])
    with pytest.raises(InputError, match="task.loss: squared_error is a loss for targets that are numbers"):
        load("smoke", overrides=["task.loss=squared_error"])


def test_targets_of_another_shape_are_refused() -> None:
    from dataclasses import replace

    from ahf_cli.tasks.data import load as read

    plugin.load([ROOT / "examples" / "autoencoder.py"])
    own = DATA_SETS["curves_8"]
    with pytest.raises(InputError, match=r"data set curves_8: the training targets must be floating-point"):
        read(None, "paper", data=replace(own, target=(63,)))
    x, y, x_test, y_test = own.read(Path())
    bad = np.where(np.arange(64) == 3, math.nan, y)
    with pytest.raises(InputError, match="the training targets must be finite"):
        read(None, "paper", data=replace(own, reader=lambda folder: (x, bad, x_test, y_test)))
