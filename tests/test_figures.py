"""Figures and their tables, and `ahf compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from PIL import Image

from ahf_cli.cli import compare, main
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.report.canvas import THEMES, Drawing, make
from ahf_cli.report.exhibits.curves import curve_table, curves, figure_2
from ahf_cli.report.exhibits.finals import final_values
from ahf_cli.report.exhibits.prerun import prerun_figures
from ahf_cli.report.exhibits.steps import damping
from ahf_cli.report.page import interactive
from ahf_cli.report.study_data import StudyData, load_study, read_study
from ahf_cli.report.style import styles
from ahf_cli.study.frames import curves_frame, steps_frame
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import TEN_CLASSES, Metrics
from tests import processes
from tests.simulated_studies import simulate_study
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
        "data/figure2.csv", "figures/figure2.png", "figures/figure2.caption.txt",
        "figures/figure2.caption.html", "figures/figure2.caption.tex",
    ]  # fmt: skip
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert imread(first[1]).std() > 0.05
    drawn = pd.read_csv(first[0])
    parts = [curve_table(curves_frame(study), m, "se") for m in TEN_CLASSES.shown]
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


def test_a_mean_beyond_the_panel_is_replaced_by_the_median(wild: StudyData, tmp_path: Path) -> None:
    paths = figure_2(wild.trials, wild.curves, PLAN, "se", wild.metrics, tmp_path / "a")
    drawn = pd.read_csv(paths[0]).set_index(["metric", "recipe", "step"])
    last = drawn.index.get_level_values("step").max()
    ends = drawn.xs(last, level="step")["median"]
    assert ends["train_loss", "hf"] == 0.7 and ends.drop(("train_loss", "hf")).isna().all()
    assert drawn.loc[("train_loss", "hf", last), "centre"] > 3000
    named = {line.get_label(): line for line in drawn_figure(wild).axes[0].get_lines()}
    line = named["hf, n = 3, median of train loss"]
    assert np.asarray(line.get_ydata())[-1] == 0.7 and max(np.asarray(line.get_ydata())) < 3
    own = styles(["hf"])["hf"]
    assert (line.get_color(), line.get_marker()) == (own.color, own.marker)
    assert "hf reaches 3.33e+03 at step" in " ".join(figure_of(wild).caption)


def figure_of(data: StudyData) -> Drawing:
    return curves(data.trials, data.curves, data.planned, "se", data.metrics, {})


def drawn_figure(data: StudyData) -> Figure:
    panels = Figure()
    figure_of(data).draw(panels, THEMES["screen"])
    return panels


def test_the_page_draws_the_same_median(wild: StudyData) -> None:
    loss, accuracy = interactive.figures(wild, "se")["figure2"]
    kinds = [[type(drawn.glyph).__name__ for drawn in plot.renderers] for plot in (loss, accuracy)]
    assert kinds[0] == kinds[1] == ["MultiLine", "VArea", "Line"] * 2
    band, median = loss.renderers[1:3]
    assert median.data_source.data["y"][-1] == np.float32(0.7)
    assert np.isnan(band.data_source.data["y1"]).all()
    assert loss.legend[0].items[0].label.value == "hf, median"


@pytest.mark.parametrize(("recipes", "filled"), [(3, True), (4, False)])
def test_bands_of_more_than_three_recipes_are_edges(tmp_path: Path, recipes: int, filled: bool) -> None:
    names = ["hf", "adaptive_hf", "hf_published", "adaptive_hf_published"][:recipes]
    ends = {name: [0.5 + 0.1 * at, 0.7 + 0.1 * at] for at, name in enumerate(names)}
    data = load_study(write_study(tmp_path, "s", dict.fromkeys(names, 2), ends).folder)
    for axes in drawn_figure(data).axes:
        assert len(axes.collections) == (recipes if filled else 0)
        edges = [line for line in axes.get_lines() if line.get_linewidth() < 0.7]
        assert len(edges) == (0 if filled else 2 * recipes)
    glyphs = {type(drawn.glyph).__name__ for drawn in interactive.figures(data, "se")["figure2"][0].renderers}
    assert ("VArea" in glyphs) == filled


def test_axes_show_the_difference_of_good_values(tmp_path: Path) -> None:
    """0.85 and 0.88 are far apart, although the curves start at chance."""
    study = simulate_study(tmp_path, "s", trials=3, points=20, reruns=0, recipes=("hf_published",), seed=1)
    data = load_study(study.folder)
    steps = data.curves["step"] / data.curves["step"].max()
    gained = 0.1 + (0.75 + 0.03 * data.curves["trial"] / 2) * np.minimum(1, 5 * steps)
    vars(data)["curves"] = data.curves.assign(test_accuracy=gained)
    vars(data)["trials"] = data.trials.assign(test_accuracy=0.85 + 0.03 * data.trials["trial"] / 2)
    low, high = drawn_figure(data).axes[1].get_ylim()
    assert 0.8 < low < 0.865 < high < 0.93
    assert "after the first quarter of each line" in figure_of(data).caption[0]
    panels = Figure()
    final_values(data.trials, data.recipes, data.metrics).draw(panels, THEMES["screen"])
    low, high = panels.axes[1].get_xlim()
    assert 0.84 < low < 0.85 and 0.88 < high < 0.89
    assert not panels.axes[1].texts  # chance is outside


def test_the_caption_is_text_beside_the_picture_and_not_in_it(wild: StudyData, tmp_path: Path) -> None:
    described = replace(figure_of(wild), caption=["5 % of adaptive_hf: ρ < ¼."], described=["hf: α & β."])
    picture = make(described, THEMES["screen"])
    assert not picture.figure.texts
    assert {p.name: p.read_text() for p in picture.save(tmp_path, ["png"]) if "caption" in p.name} == {
        "figure2.caption.txt": "5 % of adaptive_hf: ρ < ¼. hf: α & β.\n",
        "figure2.caption.html": "<figcaption>5 % of adaptive_hf: ρ &lt; ¼. hf: α &amp; β.</figcaption>\n",
        "figure2.caption.tex": (
            "\\caption{5 \\% of adaptive\\_hf: $\\rho$ $<$ $\\frac14$. hf: $\\alpha$ \\& $\\beta$.}\n"
            "\\label{fig:figure2}\n"
        ),
    }


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
    looks = styles(names)
    assert looks == styles(reversed(names))
    assert len(set(looks.values())) == len(names)
    assert len({(s.line, s.marker, s.hollow) for s in looks.values()}) == len(names)
    assert all(styles([name])[name] == looks[name] for name in RECIPES)
    two = styles(["b/hf", "a/hf", "a/adaptive_hf"])
    assert two["b/hf"] == looks["hf"] and two["a/adaptive_hf"] == looks["adaptive_hf"] != two["a/hf"]


TWELVE = ["adam_linear", "adamw_linear", "nadam_linear", "sgd_linear", "nesterov_linear", "muon_linear",
          "adahessian_linear", "soap_linear", "kfac", "kfac_free", "ekfac", "hf_stable"]  # fmt: skip


def test_twelve_recipes_differ_in_colour_and_dashes_and_keep_them_in_other_studies() -> None:
    looks = styles(TWELVE)
    assert len({look.color for look in looks.values()}) == len({look.line for look in looks.values()}) == 12
    pinn = styles(["lm", "adam_linear", "kfac_pinn", "invention"])
    assert pinn["adam_linear"] == looks["adam_linear"] and pinn["kfac_pinn"] == looks["kfac"]
    assert pinn["invention"] == styles(["hf", "invention"])["invention"]
    assert styles(["adam", "adam_linear"])["adam_linear"] != looks["adam_linear"]  # adam has that style there


def test_twelve_recipes_differ_in_a_grey_print() -> None:
    """Each line with its markers is drawn alone in grey; any two pictures differ by more than a tint."""
    prints = {}
    for name, look in styles(TWELVE).items():
        panel = Figure(figsize=(1, 0.2), dpi=150)
        kind: Any = {"linestyle": look.line, "linewidth": 1.5, "marker": look.marker, "markersize": 4.5}
        kind |= {"color": look.color, "markerfacecolor": look.face, "transform": panel.transFigure}
        panel.lines.append(Line2D([0, 0.5, 1], [0.5] * 3, **kind))
        canvas: Any = FigureCanvasAgg(panel)
        canvas.draw()
        grey = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L")
        prints[name] = np.asarray(grey, dtype=float) < 210  # ink of any tint
    for a, b in combinations(prints, 2):
        assert (prints[a] ^ prints[b]).sum() > 0.1 * (prints[a] | prints[b]).sum(), (a, b)


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
