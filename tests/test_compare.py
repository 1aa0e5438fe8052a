"""`ahf compare`: options, bad input, and speed."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from ahf_cli.cli import main
from ahf_cli.report.canvas import THEMES, check_formats, make
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits import drawings
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.study_data import load_study
from tests import processes
from tests.simulated_studies import simulate_study
from tests.studies import NAN, write_study

PLAN = {"hf": 2, "adaptive_hf": 2}
FINALS = {"hf": [0.5, NAN], "adaptive_hf": [2.25, 1.9]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_study(tmp_path, "paper", PLAN, FINALS)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--format", "jpg"], "--format must be one of png, pdf, svg, pgf, got 'jpg'"),
        (["--target", "1.2"], "--target must be in (0, 1), for test accuracy, got 1.2"),
        (["--study", "a=paper", "--study", "a=other"], "--study: labels must differ, got 'a' twice"),
        (["--study", "a/b=paper"], "study name must be 1 to 64 letters"),
        (["--study", "=paper"], "study name must be 1 to 64 letters"),
        (["--study", "x=papr"], "did you mean 'paper'?"),
        (["--study", "../paper"], "no study in ../paper"),
        (["--study", "<b>"], "study name must be 1 to 64 letters"),
    ],
)
def test_bad_options_are_one_clear_line(
    results: Path, words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(results.rglob("*"))
    assert main(["compare", *words, "--results", str(results)]) == 2
    captured = capsys.readouterr()
    assert error in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(results.rglob("*")) == before


@pytest.mark.usefixtures("one_figure")
def test_a_folder_that_cannot_be_written_is_named_and_another_can_be_chosen(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "paper" / "report").write_text("a file where the folder should be")
    assert main(["compare", "plots", "--results", str(results), "-q"]) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "cannot write to" in error
        and "with --out" in error
        and ".tmp" not in error
    )
    out = tmp_path / "elsewhere"
    assert (
        main(["compare", "plots", "--results", str(results), "-q", "--format", "svg", "--out", str(out)]) == 0
    )
    assert (out / "figures" / "figure2.svg").read_text().startswith("<?xml")
    assert not (results / "paper" / "trials.csv").exists()


def test_formats_that_need_a_missing_program_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ahf_cli.report.canvas.TEX", ("no-such-tex",))
    with pytest.raises(Exception, match="--format pgf needs one of no-such-tex"):
        check_formats(["png", "pgf"])
    assert check_formats(["svg"]) == ("svg",)


def test_the_themes_of_an_article_are_one_column_and_two_columns_wide(results: Path) -> None:
    made = drawings(load_study(results / "paper"), Choices())[0]
    figure = next(drawing for drawing in made if drawing.panels > 1)
    widths = [make(figure, THEMES[name]).figure.get_figwidth() for name in ("paper", "paper-wide")]
    assert widths == [3.25, 6.75]


def test_no_text_of_a_figure_covers_another(results: Path) -> None:
    """Labels, titles and legends of all themes do not overlap, and an article's have 7 points at least."""
    data = load_study(simulate_study(results, "simulated", trials=6, points=12, reruns=5).folder)
    for theme in THEMES.values():
        for drawing in drawings(data, Choices())[0]:
            picture = make(drawing, theme)
            texts: list[Any] = picture.figure.findobj(lambda part: hasattr(part, "get_fontsize"))
            sizes = [t.get_fontsize() for t in texts if t.get_visible() and t.get_text()]
            assert min(sizes) >= 7, (theme.name, drawing.name)
            renderer = picture.figure.canvas.get_renderer()  # type: ignore[attr-defined]
            parts = [legend.get_window_extent(renderer) for legend in picture.figure.legends]
            for axes in picture.figure.axes:
                labels = [axis.label for axis in (axes.xaxis, axes.yaxis) if axis.label.get_text()]
                parts += [axes.get_window_extent(renderer), *(t.get_window_extent(renderer) for t in labels)]
                parts += [t.get_window_extent(renderer) for t in axes.texts]
            pairs = [(a.shrunk(0.97, 0.97), b) for i, a in enumerate(parts) for b in parts[i + 1 :]]
            assert not any(a.overlaps(b) for a, b in pairs), (theme.name, drawing.name)
            whole = picture.figure.bbox
            assert all(p.x0 >= -2 and p.x1 <= whole.x1 + 2 and p.y1 <= whole.y1 + 2 for p in parts), (
                drawing.name
            )


def test_figures_can_be_told_apart_in_grey(results: Path) -> None:
    from ahf_cli.recipes.builtin import RECIPES
    from ahf_cli.report.style import styles

    looks = styles([*RECIPES, "one", "two", "three"])
    grey = {
        name: Image.new("RGB", (1, 1), look.color).convert("L").getpixel((0, 0))
        for name, look in looks.items()
    }
    distinct = {(look.line, look.marker, look.hollow) for look in looks.values()}
    assert len(distinct) == len(looks) and all(isinstance(v, int) and 40 < v < 190 for v in grey.values())


def test_forced_figures_are_stamped_and_others_are_not(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 2, "adaptive_hf": 1}, {"hf": [0.5, 0.6], "adaptive_hf": [0.7]})
    data = load_study(study.folder)
    for force in (False, True):
        comparison = Comparison(data, force=force)
        vars(comparison)["drawn"] = (comparison.drawn[0][:1], {})
        texts = " ".join(text.get_text() for text in comparison.pictures[0].figure.texts)
        assert ("FORCED: trials differ: hf 2, adaptive_hf 1" in texts) == force


def test_labels_and_intervals_are_in_the_json_document(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(results, "other", {"hf": 2}, {"hf": [0.4, 0.6]})
    words = ["--study", "now=paper", "--study", "before=other", "--device", "cpu", "--json", "--attribute"]
    assert main(["compare", "tables", *words, "--band", "ci", "--results", str(results)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["studies"] == ["now", "before"] and document["band"] == "ci"
    row = next(r for r in document["final_values"] if r["recipe"] == "before/hf")
    assert row["mean"] == pytest.approx(0.5) and row["mean_low"] < 0.5 < row["mean_high"]
    assert document["verdict"]["refused"] == [] and document["attribution"] == []


def test_one_trial_has_no_band_and_says_so(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 1}, {"hf": [0.5]})
    comparison = Comparison(load_study(study.folder))
    figure = next(d for d in comparison.drawn[0] if d.name == "figure2")
    assert figure.caption[0].startswith("One trial without a band")
    assert figure.table[["low", "high"]].isna().all(axis=None)
    assert "(n = 1)" in comparison.overview()["training loss"].iloc[0]
    numbers = comparison.tables["final_values"].numbers
    assert numbers[["standard_error", "mean_low", "iqm_high"]].isna().all(axis=None)


def test_a_loss_of_millions_counts_as_guessing(tmp_path: Path) -> None:
    study = write_study(
        tmp_path, "s", {"hf": 2, "adaptive_hf": 2}, {"hf": [0.5, 2e9], "adaptive_hf": [0.5, 1]}
    )
    losses = Comparison(load_study(study.folder)).overview()["training loss"]
    assert losses.tolist() == ["1.401 ± 0.901", "0.750 ± 0.250"]


def test_every_figure_is_drawn_from_the_table_beside_it(results: Path) -> None:
    recipes = ("hf", "adaptive_hf")
    data = load_study(simulate_study(results, "s", trials=6, points=12, reruns=5, recipes=recipes).folder)
    made, missing = drawings(data, Choices())
    assert [d.name for d in made] == [
        "figure2", "equal_cost", "final_values", "distribution", "expected_best", "sensitivity", "reruns",
        "cost", "damping",
    ]  # fmt: skip
    assert missing.keys() == {"prerun_steps", "time_to_target"}
    for drawing in made:
        assert len(drawing.table) and drawing.caption[0] and "n" in " ".join(drawing.caption)
    damping = next(d for d in made if d.name == "damping").table
    first = damping[(damping["recipe"] == "hf") & (damping["quantity"] == "damping")].iloc[0]
    assert first["step"] == 1.5  # a window of two steps
    medians = data.steps.query("recipe == 'hf' and step <= 2").groupby("trial")["damping"].median()
    assert first["centre"] == pytest.approx(medians.median())


def core_seconds(*arguments: str | Path) -> float:
    """Run `ahf compare` and return its time on a core, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = processes.compare(*arguments)  # fails where torch is imported
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.long
def test_seven_times_the_trials_take_little_more_time(tmp_path: Path) -> None:
    """The bound is a ratio, since seconds depend on the machine."""
    simulate_study(tmp_path, "small", trials=10)
    simulate_study(tmp_path, "big")
    small, big = (core_seconds("--study", name, "--results", tmp_path) for name in ("small", "big"))
    assert big < 1.6 * small
    report = tmp_path / "big" / "report"
    assert (report / "report.html").stat().st_size < 5e6
    assert len(pd.read_csv(report / "data" / "figure2.csv")) == 2 * 4 * 144
