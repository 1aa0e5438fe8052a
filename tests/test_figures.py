"""Figures and their tables, and `ahf compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from ahf_cli.cli import compare, main
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.report import marks
from ahf_cli.report.exhibits.curves import curve_table, figure_2
from ahf_cli.report.exhibits.prerun import prerun_figures
from ahf_cli.report.exhibits.steps import damping
from ahf_cli.report.page import interactive
from ahf_cli.report.study_data import StudyData, load_study, read_study
from ahf_cli.study.frames import curves_frame, steps_frame
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import TEN_CLASSES, Metrics
from tests import processes
from tests.studies import NAN, write_study

PLAN = {"hf": 3, "adaptive_hf": 2}
FINALS = {"hf": [0.5, 0.7, NAN], "adaptive_hf": [2.25, 1.9]}


def draw(study: Study, out: Path) -> list[Path]:
    data = read_study(study)
    return figure_2(data.trials, data.curves, PLAN, "se", TEN_CLASSES, out)


def test_figure_2_is_saved_with_its_table_and_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", PLAN, FINALS)
    first, second = draw(study, tmp_path / "a"), draw(study, tmp_path / "b")
    assert [str(p.relative_to(tmp_path / "a")) for p in first] == [
        "data/figure2.csv", "figures/figure2.png",
    ]  # fmt: skip
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert imread(first[1]).std() > 0.05
    drawn = pd.read_csv(first[0])
    curves = curves_frame(study)
    parts = [curve_table(curves, m, "se") for m in TEN_CLASSES.shown]
    expected = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(drawn, expected, rtol=1e-12)


UNBOUNDED = Metrics(tuple(replace(m, baseline=None) for m in TEN_CLASSES.all))
"""Metrics of a task for which guessing has no value, so that nothing is capped."""


@pytest.fixture
def wild(tmp_path: Path) -> StudyData:
    """One trial with a loss of 10,000 hides the others in a mean."""
    ends = {"hf": [0.5, 0.7, 1e4], "adaptive_hf": [2.25, 1.9]}
    study = write_study(tmp_path, "s", PLAN, ends)
    file = study.folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": UNBOUNDED.as_data()}))
    return load_study(study.folder)


def test_a_mean_beyond_the_panel_has_the_median_beside_it(wild: StudyData, tmp_path: Path) -> None:
    paths = figure_2(wild.trials, wild.curves, PLAN, "se", wild.metrics, tmp_path / "a")
    drawn = pd.read_csv(paths[0]).set_index(["metric", "recipe", "step"])
    last = drawn.index.get_level_values("step").max()
    ends = drawn.xs(last, level="step")["median"]
    assert ends["train_loss", "hf"] == 0.7 and ends.drop(("train_loss", "hf")).isna().all()
    assert drawn.loc[("train_loss", "hf", last), "centre"] > 3000


def test_the_page_draws_the_same_median(wild: StudyData) -> None:
    loss, accuracy = interactive.figures(wild, "se")["figure2"]
    kinds = [[type(drawn.glyph).__name__ for drawn in plot.renderers] for plot in (loss, accuracy)]
    assert kinds[0] == ["MultiLine", "Line", "Line", "MultiLine", "VArea", "Line"]
    assert kinds[1] == ["MultiLine", "VArea", "Line"] * 2
    median = loss.renderers[1]
    assert median.data_source.data[median.glyph.y][-1] == 0.7


def test_recipes_without_a_damping_have_no_figure_of_it(tmp_path: Path) -> None:
    data = load_study(write_study(tmp_path, "s", PLAN, FINALS).folder)
    assert not isinstance(damping(data.steps, data.trials, data.recipes), str)
    without = damping(data.steps.assign(damping=0.0), data.trials, data.recipes)
    assert without == "no recipe of the study has a damping"


def test_prerun_figures_take_the_norm_and_both_signs_of_the_smoothness(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", PLAN, FINALS)
    steps = steps_frame(study, "adaptive_hf")
    paths = prerun_figures(steps, "l1", tmp_path)
    assert [p.name for p in paths if p.suffix == ".png"] == ["prerun_steps.png", "prerun_smoothness.png"]
    table = pd.read_csv(tmp_path / "data" / "prerun_steps.csv").set_index(["quantity", "step"])
    assert table.loc[("direction_l1", 2), "centre"] == 2.5 and table.loc[("step_size", 1), "n"] == 2
    points = pd.read_csv(tmp_path / "data" / "prerun_smoothness.csv")
    assert (points["smoothness_direction"] < 0).sum() == (points["smoothness_direction"] > 0).sum() == 10


def test_each_recipe_looks_different_and_built_in_ones_always_the_same() -> None:
    names = [*RECIPES, "zeta", "alpha", *(f"r{i}" for i in range(9))]
    looks = marks.styles(names)
    assert looks == marks.styles(reversed(names))
    assert len(set(looks.values())) == len(names)
    assert len({(s.line, s.marker) for s in looks.values()}) == len(names)
    assert all(marks.styles([name])[name] == looks[name] for name in RECIPES)
    two = marks.styles(["b/hf", "a/hf", "a/adaptive_hf"])
    assert two["b/hf"] == looks["hf"] and two["a/adaptive_hf"] == looks["adaptive_hf"] != two["a/hf"]


def test_compare_prints_one_screen_and_writes_everything_without_importing_torch(tmp_path: Path) -> None:
    study = write_study(tmp_path, "paper", PLAN, FINALS)
    done = processes.compare("--results", tmp_path)
    assert done.returncode == 0, done.stderr
    report = study.folder / "report"
    for name in ("data/figure2.csv", "figures/figure2.png", "figures/damping.png", "tables/final_values.tex",
                 "tables/equal_cost.csv", "verdict.txt", "report.html"):  # fmt: skip
        assert (report / name).stat().st_size, name
    assert len(done.stdout.splitlines()) <= 24 and "▇" in done.stdout
    assert "No verdict" in done.stdout and "trials differ: hf 3, adaptive_hf 2" in done.stdout
    assert "not drawn: reruns" in done.stdout
    assert {path.name for path in study.folder.iterdir()} == {
        "config.yaml",
        ".lock",
        "manifest.json",
        "trials",
        "report",
    }


@pytest.mark.usefixtures("one_figure")
def test_compare_draws_an_unfinished_study_and_several_studies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, "one", {"hf": 4, "adaptive_hf": 2}, FINALS)
    write_study(tmp_path, "two", {"hf": 1}, {"hf": [0.4]})
    words = ["--study", "one", "plots", "--study", "one", "--study", "two", "--json", "--format", "svg"]
    assert main(["compare", *words, "--results", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "ahf: not finished: one/hf 3 of 4; only finished trials are shown"
    document = json.loads(said.out)
    assert document["missing"] == ["one/hf 3 of 4"] and not document["complete"]
    drawn = pd.read_csv(next(f for f in document["files"] if f.endswith(".csv")))
    assert set(drawn["recipe"]) == {"one/hf", "one/adaptive_hf", "two/hf"}


def test_compare_tables_prints_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, "paper", PLAN, FINALS)
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", "--results", str(tmp_path), "tables", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["final_values"]
    assert rows[0]["recipe"] == "hf" and rows[0]["mean"] == pytest.approx(np.mean([0.5, 0.7, np.log(10)]))
    assert sorted(tmp_path.rglob("*")) == before


def test_compare_names_missing_trials_and_missing_studies_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, "paper", PLAN, {})
    words = ["compare", "--results", str(tmp_path)]
    assert main(words) == 3
    line = "ahf: no trial of paper is finished yet: hf 0 of 3; adaptive_hf 0 of 2\n"
    assert capsys.readouterr() == ("", line)
    assert main([*words, "--study", "papr"]) == 2
    assert "did you mean 'paper'" in capsys.readouterr().err


def test_options_after_the_sub_command_win(tmp_path: Path) -> None:
    before = compare.Request(("a",), tmp_path, "sd", preset="quick", overrides=("x=1",), as_json=True)
    after = compare.Request(band="iqr", overrides=("y=2",), quiet=True)
    both = compare.Request(
        ("a",), tmp_path, "iqr", preset="quick", overrides=("x=1", "y=2"), as_json=True, quiet=True
    )
    assert after.after(before) == both
