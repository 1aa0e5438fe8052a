"""Baselines of metrics by guessing: they follow the task, in searches, tables, figures and pages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from ahf_cli.config import load as configurations
from ahf_cli.config.load import load
from ahf_cli.errors import InputError
from ahf_cli.report import marks, study_data
from ahf_cli.report.canvas import THEMES
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.page.interactive import figures
from ahf_cli.report.study_data import load_study
from ahf_cli.search.machine import plan_of
from ahf_cli.search.run import search_plan
from ahf_cli.tasks.metrics import Metrics, classification, metrics_of
from tests.studies import NAN, write_study

THREE = {"data": "three"}


def of_made_up(task: Mapping[str, Any]) -> Metrics:
    """Return the metrics of a task; the data set `three` has three classes."""
    return classification(3) if task == THREE else metrics_of(task)


@pytest.mark.parametrize(
    ("classes", "loss", "accuracy"),
    [(2, 0.6931471805599453, 0.5), (10, 2.302585092994046, 0.1), (100, 4.605170185988092, 0.01)],
)
def test_guessing_among_equally_likely_classes_has_its_loss_and_accuracy(
    classes: int, loss: float, accuracy: float
) -> None:
    assert classification(classes).baselines == pytest.approx((loss, accuracy), rel=1e-15)


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ({"data": "fashion_mnist"}, 10),
        ({"data": "cifar100"}, 100),
        ({"data": "mnist", "loss": "cross_entropy"}, 10),
    ],
)
def test_the_task_says_how_many_classes_there_are(task: dict[str, str], classes: int) -> None:
    assert metrics_of(task) == classification(classes)


@pytest.mark.parametrize("task", [{"data": "spirals"}, {"data": "mnist", "loss": "own"}])
def test_what_only_a_plugin_knows_is_asked_for(task: dict[str, str]) -> None:
    with pytest.raises(
        InputError, match=r"^task\.(data|loss): '\w+' is not known; .* add --plugin FILE\.py$"
    ):
        metrics_of(task)


def test_plans_take_the_chance_of_the_configured_task(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("quick")
    assert config.metrics == classification(10)
    three = {json.dumps(config.task.model_dump()): classification(3)}
    monkeypatch.setattr(configurations, "metrics_of", lambda task: three[json.dumps(task)])
    assert plan_of(config).cap == search_plan(config).cap == math.log(3)


@pytest.mark.parametrize(("task", "classes"), [(THREE, 3), ({}, 10), (None, 10)])
def test_diverged_trials_count_at_the_chance_of_the_studys_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: object, classes: int
) -> None:
    study = write_study(tmp_path, "s", {"hf": 3}, {"hf": [0.5, 0.7, NAN]})
    file = study.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    if task is not None:
        manifest["identity"]["task"] = task
    file.write_text(json.dumps(manifest))
    monkeypatch.setattr(study_data, "metrics_of", of_made_up)
    data = load_study(study.folder)
    assert data.metrics.baselines == classification(classes).baselines

    loss, accuracy = (0.5 + 0.7 + math.log(classes)) / 3, (2 - 1.2 / 2.6 + 1 / classes) / 3
    tables = Comparison(data).tables
    for name, query, column, expected in (
        ("final_values", "metric == 'training loss' and trials == 'all'", "mean", loss),
        ("final_values", "metric == 'test accuracy' and trials == 'all'", "mean", accuracy),
        ("equal_cost", "cost == 'step' and at == 10", "train_loss", loss),
        ("robustness", "metric == 'training loss' and way == 'mean'", "hf", loss),
        ("robustness", "way == 'mean, capped at twice chance'", "hf", (1.2 + 2 * math.log(classes)) / 3),
    ):  # fmt: skip
        found = tables[name].numbers.query(query)[column].tolist()
        assert found == [pytest.approx(expected)], (name, query)


def test_figures_and_the_page_draw_the_chance_of_the_studys_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_study(write_study(tmp_path, "s", {"hf": 3}, {"hf": [0.5, 0.7, NAN]}).folder)
    monkeypatch.setattr(study_data, "metrics_of", lambda task: classification(3))
    drawn = {drawing.name: drawing for drawing in Comparison(data).drawn[0]}
    assert "count as chance (loss 1.099, accuracy 0.333)" in " ".join(drawn["figure2"].caption)
    panels = Figure()
    drawn["final_values"].draw(panels, THEMES["screen"])
    for axes, level in zip(panels.axes, (math.log(3), 1 / 3), strict=True):
        assert [level, level] in [list(line.get_xdata()) for line in axes.get_lines()]  # type: ignore[arg-type]
    ends = figures(data, "se")["final_values"][0].x_range
    assert ends.start < 0.5 < math.log(3) < ends.end


@pytest.mark.parametrize(
    ("baseline", "words"), [(math.log(10), "ln 10"), (math.log(3), "ln 3"), (0.09, "0.09")]
)
def test_the_cap_of_the_objective_is_named(baseline: float, words: str) -> None:
    loss = replace(classification(10).all[0], baseline=baseline)
    assert marks.cap_words(Metrics((loss,))) == words


def test_without_a_baseline_the_first_value_is_the_scale() -> None:
    loss = replace(classification(10).all[0], baseline=None)
    metrics = Metrics((loss,)).starting({"test_loss": 4.0})
    assert not metrics.guessing and metrics.loss.scale == 4 and metrics.loss.edge == 6
    assert marks.cap_words(metrics) == "its first value" and metrics.headline.column == "test_loss"
    assert Metrics((loss,)).loss.edge == math.inf and Metrics.of_data(metrics.as_data()) == Metrics((loss,))
