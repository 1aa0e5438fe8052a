"""Tables of final values and of curves."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from ahf_cli.report.exhibits.curves import curve_table
from ahf_cli.report.exhibits.finals import ALL, TRAINED, final_table, readable
from ahf_cli.report.study_data import read_study
from ahf_cli.report.text import as_text, number
from ahf_cli.study.files import SUMMARY_DIGITS, csv_bytes
from ahf_cli.study.frames import curves_frame
from ahf_cli.tasks.metrics import TEN_CLASSES
from tests.studies import NAN, write_study

PLAN = {"hf": 3, "adaptive_hf": 3, "hf_published": 2}
FINALS = {"hf": [0.5, 0.7, NAN], "adaptive_hf": [2.25]}

LN_10 = math.log(10)


@pytest.fixture
def frames(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    data = read_study(write_study(tmp_path, "s", PLAN, FINALS))
    return data.trials, data.curves


def row(table: pd.DataFrame, metric: str, recipe: str, which: str = ALL) -> dict[str, float]:
    own = table[table["metric"].eq(metric) & table["recipe"].eq(recipe) & table["trials"].eq(which)]
    assert len(own) == 1
    return dict(own.iloc[0])


def test_final_values_are_given_of_all_and_of_the_trained_trials(
    frames: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    table = final_table(frames[0], PLAN, TEN_CLASSES)
    assert len(table) == 2 * 3 * 2
    both = row(table, "training loss", "hf")
    keys = ("n", "planned", "trained", "stood_still", "did_not_train", "diverged", "failed", "loss_fell")
    assert [both[k] for k in keys] == [3, 3, 2, 0, 0, 1, 0, 2]
    assert both["mean"] == pytest.approx((0.5 + 0.7 + LN_10) / 3)
    assert math.isnan(both["mean_low"])  # two clusters
    assert both["share_trained"] == pytest.approx(2 / 3)
    trained = row(table, "training loss", "hf", TRAINED)
    assert trained["mean"] == pytest.approx(0.6) and trained["n"] == 2
    assert math.isnan(trained["mean_low"])  # fewer than five
    accuracy = row(table, "test accuracy", "hf")
    assert accuracy["best"] == pytest.approx(1 - 0.5 / 2.6) and accuracy["worst"] == 0.1
    single = row(table, "training loss", "adaptive_hf")
    assert single["did_not_train"] == 1 and single["planned"] == 3 and math.isnan(single["standard_error"])
    assert row(table, "training loss", "hf_published")["n"] == 0


def test_a_value_worse_than_guessing_counts_as_guessing(tmp_path: Path) -> None:
    data = read_study(write_study(tmp_path, "s", {"hf": 2}, {"hf": [0.5, 40.0]}))
    table = final_table(data.trials, data.planned, TEN_CLASSES)
    assert row(table, "training loss", "hf")["mean"] == pytest.approx((0.5 + LN_10) / 2)
    curve = curve_table(data.curves, TEN_CLASSES.loss, "se").set_index("step")
    assert curve.loc[10, "centre"] == pytest.approx((0.5 + LN_10) / 2)


def test_a_curve_goes_on_at_chance_where_a_trial_diverged(frames: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table = curve_table(frames[1], TEN_CLASSES.loss, "se").set_index(["recipe", "step"])
    assert table.loc[("hf", 10), "centre"] == pytest.approx((0.5 + 0.7 + LN_10) / 3)
    assert table.loc[("hf", 5), "centre"] == pytest.approx((1.4 + 1.5 + 1.65) / 3)
    assert table["n"].tolist() == [3, 3, 3, 1, 1, 1]
    assert table["low"].isna().tolist() == [False, False, False, True, True, True]


def test_a_recipe_that_always_diverged_is_drawn_to_the_end(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {}, {"hf": [0.5], "adaptive_hf": [NAN, NAN]})
    table = curve_table(curves_frame(study), TEN_CLASSES.headline, "iqr").set_index(["recipe", "step"])
    assert table.loc[("adaptive_hf", 10), "centre"] == 0.1


def test_text_is_aligned_and_names_the_trained_trials_only_where_others_are(
    frames: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    made = final_table(frames[0], PLAN, TEN_CLASSES)
    blocks = as_text(readable(made, TEN_CLASSES)).split("\n\n")
    assert len(blocks) == 3
    counts = ["hf", "3", "2", "0", "0", "1", "0", "0.67", "[0.21,", "0.94]", "2"]
    assert blocks[0].splitlines()[2].split() == counts
    loss = blocks[1].splitlines()
    assert loss[0] == "Final training loss (lower is better)" and len({len(line) for line in loss[1:]}) == 1
    assert [" ".join(line.split()[:3]) for line in loss[2:]] == [
        "hf all 3", "hf trained 2", "adaptive_hf all 1", "adaptive_hf trained 0", "hf_published all 0",
    ]  # fmt: skip
    assert "2.2500 ± –" in loss[4]


def test_a_study_without_trials_has_tables_without_numbers() -> None:
    trials = pd.DataFrame(columns=["recipe", "trial", "status"])
    table = final_table(trials, {"hf": 2}, TEN_CLASSES)
    assert table["n"].tolist() == [0] * 4 and table["mean"].isna().all()
    curves = pd.DataFrame(columns=["recipe", "trial", "status", "step", "train_loss"])
    assert csv_bytes(curve_table(curves, TEN_CLASSES.loss, "se")) == b"metric,recipe,step,n,centre,low,high\n"


def test_a_table_of_means_is_the_same_bytes_in_each_order_of_the_sums() -> None:
    forward, back = (pd.DataFrame({"mean": [x], "n": [3]}) for x in (0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1))
    assert csv_bytes(forward) != csv_bytes(back)
    assert csv_bytes(forward, SUMMARY_DIGITS) == csv_bytes(back, SUMMARY_DIGITS) == b"mean,n\n0.6,3\n"
    below, above = 0.85195 - 2**-53, 0.85195 + 2**-53
    assert f"{below:.4f}" != f"{above:.4f}" and number(below) == number(above)
