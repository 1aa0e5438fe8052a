"""The figure `published`: the package's table, files of others, and differences against closed forms."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import load, presets
from ahf_cli.errors import InputError
from ahf_cli.report.canvas import THEMES, Drawing, make
from ahf_cli.report.exhibits import figures, tables
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.exhibits.published_curves import beside_table, read_curve
from ahf_cli.report.study_data import load_study
from ahf_cli.tasks.metrics import metrics_of

METRICS = metrics_of({"data": "fashion_mnist"})
HEAD = "curve,data,model,metric,step,mean,low,high\n"
TASK = "fashion_mnist,lenet"


@pytest.mark.parametrize("curve", ["HF", "Adaptive HF"])
def test_the_published_table_is_whole_and_within_its_bands(curve: str) -> None:
    table = read_curve(f"motokawa_2020.csv/{curve}")
    logged = {epoch * 468 + own for epoch in range(3) for own in [*range(1, 468, 10), 468]}
    for metric in ("train_loss", "test_accuracy"):
        own = table[table["metric"] == metric]
        assert set(own["step"]) == logged and len(own) == 144
        assert (own["low"] < own["mean"]).all() and (own["mean"] < own["high"]).all()
    assert (table.loc[table["metric"] == "test_accuracy", "high"] < 1).all()


def test_the_first_published_figure_is_whole_and_within_its_bands() -> None:
    table = read_curve("motokawa_2020.csv/Pre-run")
    logged = [*range(1, 468, 10), 468]
    assert list(table.loc[table["metric"] == "direction_l1", "step"]) == logged
    assert list(table.loc[table["metric"] == "eq3_step_size", "step"]) == logged[1:]
    assert (table["low"] < table["mean"]).all() and (table["mean"] < table["high"]).all()


# Values that were read off the printed figure by eye.
@pytest.mark.parametrize(
    ("curve", "metric", "step", "value"),
    [
        ("HF", "test_accuracy", 201, 0.57),
        ("HF", "test_accuracy", 391, 0.60),
        ("HF", "test_accuracy", 1404, 0.631),
        ("HF", "train_loss", 391, 1.29),
        ("HF", "train_loss", 1404, 1.74),
        ("Adaptive HF", "test_accuracy", 201, 0.66),
        ("Adaptive HF", "train_loss", 201, 1.05),
        ("Adaptive HF", "train_loss", 1404, 0.60),
    ],
)
def test_the_published_table_has_the_values_of_the_figure(
    curve: str, metric: str, step: int, value: float
) -> None:
    table = read_curve(f"motokawa_2020.csv/{curve}")
    (mean,) = table.loc[(table["metric"] == metric) & (table["step"] == step), "mean"]
    assert mean == pytest.approx(value, abs=0.011)


def test_presets_name_curves_that_exist() -> None:
    named = {curve for name in presets() for curve in load(name).compare.published.values()}
    values = {curve.rpartition("/")[2]: len(read_curve(curve)) for curve in named}
    assert values == {"HF": 288, "Adaptive HF": 288, "Pre-run": 95}


def row(
    curve: str = "A", metric: str = "train_loss", step: str = "1", mean: str = "1", **changed: str
) -> str:
    low, high = changed.get("low", "0"), changed.get("high", "4")
    return f"{curve},{changed.get('task', TASK)},{metric},{step},{mean},{low},{high}\n"


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("", "not a table of curves: No columns to parse from file"),
        (
            "curve,metric\nA,B\n",
            f"must have the columns {HEAD[:-1].replace(',', ', ')}; lacks data, model, step, ",
        ),
        (HEAD + row(mean="x"), "not a table of curves: could not convert string to float: 'x'"),
        (HEAD + row(mean=""), "not a table of curves: could not convert string to float: ''"),
        (HEAD + row(mean="inf", high="inf"), "step, mean, low and high must be finite numbers"),
        (HEAD + row("B"), "unknown curve 'A'; known: B"),
        (HEAD + row(low="2"), "the curve 'A' must have low ≤ mean ≤ high"),
        (HEAD + row(high="0.5"), "the curve 'A' must have low ≤ mean ≤ high"),
        (HEAD + 2 * row(), "the curve 'A' must have one task, and each step of a metric once"),
        (HEAD + row() + row(step="2", task="mnist,lenet"), "the curve 'A' must have one task, and each step"),
        ("\xff\xfe", "not a table of curves: "),
    ],
)
def test_a_wrong_file_is_one_line(content: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_bytes(content.encode("latin-1" if "\xff" in content else "utf-8"))
    with pytest.raises(InputError) as caught:
        read_curve(f"{file}/A")
    (line,) = caught.value.lines
    assert line.startswith(f"{file}: {rule}")


@pytest.mark.parametrize("name", ["1", "NA", "HF #2"])
def test_the_name_of_a_curve_is_any_text(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text(f"# a source\n{HEAD}{row(name)}")
    assert list(read_curve(f"{file}/{name}")["mean"]) == [1.0]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("missing", "there is no such file; known: "),
        ("folder", "must be a regular file"),
        ("link", "is a link, and links are not followed"),
        ("pipe", "must be a regular file"),
    ],
)
def test_only_a_regular_file_is_read(kind: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    if kind == "folder":
        file.mkdir()
    elif kind == "link":
        (tmp_path / "there").write_text(HEAD + row())
        file.symlink_to(tmp_path / "there")
    elif kind == "pipe":
        os.mkfifo(file)
    with pytest.raises(InputError) as caught:
        read_curve(f"{file}/A")
    assert caught.value.lines[0].startswith(f"{file}: {rule}")


def evaluations() -> pd.DataFrame:
    """Three trials of `own`: two finished, one diverged after step 10; one failed trial."""
    rows = [
        ("own", 0, "ok", 0, 2.0, 0.2), ("own", 0, "ok", 10, 1.0, 0.5), ("own", 0, "ok", 20, 5.0, 0.6),
        ("own", 1, "ok", 0, 2.0, 0.1), ("own", 1, "ok", 10, 3.0, 0.4), ("own", 1, "ok", 20, 7.0, 0.8),
        ("own", 2, "diverged", 0, 2.0, 0.3), ("own", 2, "diverged", 10, 8.0, 0.3),
        ("own", 3, "failed", 0, 9.0, 0.9), ("own", 3, "failed", 10, 9.0, 0.9),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["recipe", "trial", "status", "step", "train_loss", "test_accuracy"])


def test_differences_are_those_of_the_closed_form(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    accuracies = [("5", "0.2", "0.1", "0.3"), ("25", "0.6", "0.5", "0.7")]
    rows = [row(step="5"), row(step="25", mean="3", low="2", high="6")]
    rows += [row(metric="test_accuracy", step=at, mean=m, low=a, high=b) for at, m, a, b in accuracies]
    file.write_text(HEAD + "".join(rows))
    source = f"{file}/A"
    table = beside_table(evaluations(), {"own": source}, {source: read_curve(source)}, METRICS)
    loss, accuracy = (table[table["metric"] == metric] for metric in ("train_loss", "test_accuracy"))
    assert list(loss["step"]) == list(accuracy["step"]) == [10, 20]  # step 0 lies before the published curve
    assert list(loss["n"]) == [3, 2] and list(accuracy["n"]) == [3, 3]
    # at step 10 a quarter of the way, 1 + 2/4; at 20 three quarters.  Losses above chance stay as they are
    np.testing.assert_allclose(loss["published"], [1.5, 2.5])
    np.testing.assert_allclose(loss["published_high"], [4.5, 5.5])
    np.testing.assert_allclose(loss["difference"], [4.0 - 1.5, 6.0 - 2.5])
    # the standard error of 1, 3, 8 is √(13/3), of 5, 7 it is 1
    np.testing.assert_allclose(loss["in_errors"], [2.5 / np.sqrt(13 / 3), 3.5])
    # the diverged trial guesses at step 20: (0.6 + 0.8 + 0.1)/3
    np.testing.assert_allclose(accuracy["difference"], [0.4 - 0.3, 0.0], atol=1e-12)
    assert list(table["curve"].unique()) == ["A"]


def test_a_study_without_published_curves_has_no_such_figure() -> None:
    data = load_study("results/reference/fair")
    assert figures()["published"](data, Choices()) is None and "published" not in tables(data, Choices())


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        ({"hf": "motokawa.csv/HF"}, "motokawa.csv: there is no such file; did you mean 'motokawa_2020.csv'?"),
        ({"hf": "motokawa_2020.csv/HFF"}, "motokawa_2020.csv: unknown curve 'HFF'; did you mean 'HF'?"),
        ({"nag": "motokawa_2020.csv/HF"}, "the study has none of the recipes of compare.published, nag"),
        ({"hf": "motokawa_2020.csv/Pre-run"}, "no published curve has a metric and a step of the study"),
    ],
)
def test_the_reason_for_no_figure_is_one_line(published: dict[str, str], reason: str) -> None:
    data = load_study("results/reference/quick")
    assert figures()["published"](data, Choices(published=published)) == reason
    assert "published" not in tables(data, Choices(published=published))


def test_a_pre_run_stands_beside_a_published_one(tmp_path: Path) -> None:
    file, data = tmp_path / "own.csv", load_study("results/reference/quick")
    rows = [row(metric="direction_l1", step="1", mean="2"), row(metric="direction_l1", step="31", mean="3")]
    file.write_text(HEAD + "".join(rows) + row(metric="test_accuracy"))
    drawing = figures()["published_prerun"](data, Choices(published={"prerun": f"{file}/A"}))
    assert isinstance(drawing, Drawing) and drawing.panels == 2
    norms = data.prerun[0].pivot_table(index="step", columns="trial", values="direction_l1").loc[[1, 31]]
    np.testing.assert_allclose(drawing.table["centre"], norms.mean(axis=1))
    np.testing.assert_allclose(drawing.table["difference"], norms.mean(axis=1) - np.array([2, 3]))
    assert f"n = {norms.shape[1]} trials of adaptive_hf" in drawing.caption[0]
    upper, lower = make(drawing, THEMES["screen"]).figure.axes
    assert "g_t" in upper.get_ylabel() and lower.get_ylabel().startswith("difference in ")


@pytest.mark.parametrize(
    ("study", "source", "reason"),
    [
        ("fair", "motokawa_2020.csv/Pre-run", "the study has no pre-run with steps"),
        ("quick", "motokawa_2020.csv/HF", "motokawa_2020.csv/HF has no metric that is a column of steps"),
        ("quick", "motokawa_2020.csv/Prerun", "motokawa_2020.csv: unknown curve 'Prerun'; did you mean"),
    ],
)
def test_the_reason_for_no_pre_run_beside_it_is_one_line(study: str, source: str, reason: str) -> None:
    choices = Choices(published={"prerun": source})
    said = figures()["published_prerun"](load_study(f"results/reference/{study}"), choices)
    assert isinstance(said, str) and said.startswith(reason)
    assert figures()["published"](load_study(f"results/reference/{study}"), choices) is None


def test_a_curve_of_another_task_is_not_drawn() -> None:
    data, choices = load_study("results/reference/pinn"), Choices(published={"lm": "motokawa_2020.csv/HF"})
    reason = "motokawa_2020.csv/HF is a curve of task.data fashion_mnist and task.model lenet"
    assert figures()["published"](data, choices) == reason


def test_curves_of_one_name_in_two_files_are_two_lines(tmp_path: Path) -> None:
    chosen = {}
    for recipe, mean in (("hf", "1"), ("hf_published", "2")):
        file = tmp_path / f"{recipe}.csv"
        file.write_text(HEAD + row(step="0", mean=mean) + row(step="60", mean=mean))
        chosen[recipe] = f"{file}/A"
    drawing = figures()["published"](load_study("results/reference/quick"), Choices(published=chosen))
    assert isinstance(drawing, Drawing)
    upper, _ = make(drawing, THEMES["screen"]).figure.axes
    black = [line for line in upper.lines if line.get_color() == "black" and line.get_linewidth() > 1]
    assert [set(np.asarray(line.get_ydata(), float)) for line in black] == [{1.0}, {2.0}]
    assert len({str(line.get_label()) for line in black}) == 2


def test_the_command_draws_it_and_refuses_a_source_without_a_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "plots", "--study", "results/reference/quick", "--out", str(tmp_path)]
    assert main([*words, "-o", "compare.published={hf: motokawa_2020.csv/HF}"]) == 0
    caption = (tmp_path / "figures" / "published.caption.txt").read_text()
    assert "HF beside hf" in caption and (tmp_path / "data" / "published.csv").is_file()
    capsys.readouterr()
    assert main([*words, "-o", "compare.published={hf: HF}"]) == 2
    assert "compare.published.hf: must be a mapping of recipes to FILE.csv/CURVE" in capsys.readouterr().err
