"""Tables of a comparison against small cases worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ahf_cli.config.load import load
from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits.attribution import attribution_table, single_changes
from ahf_cli.report.exhibits.best_of_k import budget_table, budgets, expected_best_table
from ahf_cli.report.exhibits.equal_cost import budgets_of, equal_cost_table
from ahf_cli.report.exhibits.new_seeds import pairs_table, rerun_table
from ahf_cli.report.exhibits.robustness import robustness_table
from ahf_cli.report.exhibits.steps import WINDOWS, step_lines, window
from ahf_cli.report.exhibits.time_to_target import crossing_table, target_table
from ahf_cli.report.statistics.pairs import holm
from ahf_cli.report.study_data import load_study
from ahf_cli.report.text import as_latex, number, within
from ahf_cli.tasks.metrics import TEN_CLASSES
from tests.studies import NAN, write_study

NAMES = ["a", "b"]

LN_10 = math.log(10)


def trials(**columns: list[Any]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    given = {
        "recipe": ["a"] * n,
        "trial": list(range(n)),
        "status": ["ok"] * n,
        "seed": [0] * n,
        "stalled": [False] * n,
        "train_loss": [0.5] * n,
        "test_accuracy": [0.8] * n,
        "value": [0.5] * n,
    }
    frame = pd.DataFrame(given | columns)
    outcome = frame["status"].where(frame["status"] != "ok", "trained")
    return frame if "outcome" in frame else frame.assign(outcome=outcome)


def curves(rows: list[tuple[str, int, str, int, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["recipe", "trial", "status", "step", "test_accuracy"])
    return frame.assign(
        train_loss=1 - frame["test_accuracy"], work=frame["step"] * 10, seconds=frame["step"] / 2
    )


CURVES = curves(
    [("a", 0, "ok", s, v) for s, v in ((0, 0.1), (5, 0.6), (10, 0.9))]
    + [("a", 1, "diverged", s, v) for s, v in ((0, 0.1), (5, 0.7))]
    + [("b", 0, "ok", s, v) for s, v in ((0, 0.1), (5, 0.2), (10, 0.5))]
)


def test_targets_are_met_at_the_first_evaluation_beyond_and_misses_never() -> None:
    found = crossing_table(CURVES, NAMES, 0.6, TEN_CLASSES.headline)
    assert found["step"].tolist() == [5, 5, math.inf] and found["work"].tolist() == [50, 50, math.inf]
    numbers = target_table(CURVES, NAMES, 0.6, TEN_CLASSES.headline).numbers.set_index("recipe")
    assert numbers["met"].to_dict() == {"a": 2, "b": 0} and numbers.loc["b", "seconds"] == math.inf


def test_equal_cost_counts_what_each_trial_had_when_all_had_spent_the_same() -> None:
    numbers = (
        equal_cost_table(CURVES, NAMES, TEN_CLASSES).numbers.set_index(["cost", "recipe", "at"]).sort_index()
    )
    # medians of the totals: a 7.5 steps, b 10; at 7.5 the evaluation at 5 holds, and a/1 has diverged
    assert numbers.loc[("step", "a", 7.5), "test_accuracy"] == pytest.approx((0.6 + 0.1) / 2)
    assert numbers.loc[("work", "b", 75), "test_accuracy"] == pytest.approx(0.2)
    assert numbers.loc[("step", "a", 5), "test_accuracy"] == pytest.approx((0.6 + 0.7) / 2)


def test_budgets_are_a_logarithmic_grid_from_the_first_evaluation_to_the_largest_common_total() -> None:
    rows = [(name, 0, "ok", s, 0.1) for name, n in (("a", 64), ("b", 1000)) for s in range(0, n + 1)]
    grid = budgets_of(curves(rows), "work")
    assert grid == pytest.approx(10 * 2.0 ** np.arange(7))  # from a step of 10 to 64 of them
    assert budgets_of(curves(rows), "step").tolist() == [1, 2, 4, 8, 16, 32, 64]
    late = curves([("a", 0, "ok", 0, 0.1), ("a", 0, "ok", 5, 0.1)])
    assert budgets_of(late, "step").tolist() == [5] and not len(budgets_of(late[:1], "step"))


def test_a_recipe_that_is_not_evaluated_yet_has_no_value_at_that_cost() -> None:
    late = CURVES[(CURVES["recipe"] == "a") | (CURVES["step"] != 5)].assign(
        work=lambda c: c["step"] * c["recipe"].map({"a": 1, "b": 10})
    )
    table = equal_cost_table(late, NAMES, TEN_CLASSES)
    numbers = table.numbers.set_index(["cost", "recipe", "at"])["test_accuracy"].sort_index()
    assert bool(numbers["work", "b"].isna().all()) and numbers["work", "a", 7.5] == pytest.approx(0.35)
    assert numbers["work"].index.get_level_values("at").max() == 7.5
    text = table.texts["Test accuracy at equal work, mean"]
    assert set(text.iloc[1, 1:]) == {"–"} and "–" not in set(text.iloc[0, 1:])
    assert "fewer than half of the trials had been evaluated" in table.note and "not measured" in table.note


def test_the_best_so_far_and_the_expected_best_of_the_same_trials() -> None:
    found = trials(value=[0.9, 0.4, 0.6])
    so_far = expected_best_table(found, ["a"], independent=False)
    assert so_far["best"].tolist() == [0.9, 0.4, 0.4]
    expected = expected_best_table(found, ["a"], independent=True).set_index("k")
    assert expected.loc[1, "best"] == pytest.approx(1.9 / 3) and expected.loc[3, "best"] == 0.4
    assert expected.loc[2, "best"] == pytest.approx((0.4 + 0.4 + 0.6) / 3)
    assert "no interval" in budget_table(found, ["a"], TEN_CLASSES.loss, independent=False).note
    assert budgets(0) == [] and budgets(70)[-1] == 70 and {1, 2, 5, 10, 20, 50} <= set(budgets(70))


def test_luck_is_what_the_search_had_seen_minus_the_mean_of_the_re_runs() -> None:
    search = trials(train_loss=[0.3, 0.7], value=[0.3, 0.7], test_accuracy=[0.9, 0.6])
    again = trials(train_loss=[0.5, 0.7, NAN], test_accuracy=[0.8, 0.7, NAN], status=["ok", "ok", "diverged"])
    row = rerun_table(search, again, NAMES, "train_loss", TEN_CLASSES).numbers.iloc[0]
    mean = (0.5 + 0.7 + LN_10) / 3
    assert row["train_loss"] == pytest.approx(mean) and row["train_loss_luck"] == pytest.approx(0.3 - mean)
    assert row["search_trial"] == 0 and row["test_accuracy_search"] == 0.9


def test_re_runs_are_paired_by_seed_not_by_order() -> None:
    a = trials(seed=[1, 2, 3, 4, 5], test_accuracy=[0.5, 0.6, 0.7, 0.8, 0.9])
    b = trials(recipe=["b"] * 5, seed=[5, 4, 3, 2, 9], test_accuracy=[0.8, 0.7, 0.6, 0.5, 0.1])
    both = pd.concat([a, b], ignore_index=True)
    numbers = pairs_table(both, NAMES, TEN_CLASSES).numbers.set_index("metric")
    row = numbers.loc["test_accuracy"]
    assert row["pairs"] == 4 and row["difference"] == pytest.approx(0.1)
    assert row["p"] == pytest.approx(2 / 2**4) and row["p_holm"] == pytest.approx(4 / 2**4)
    assert numbers.loc["train_loss", "p_holm"] == 1
    c = a.assign(recipe="c", test_accuracy=0.95)
    three = pd.concat([both, c], ignore_index=True)
    whole = pairs_table(three, [*NAMES, "c"], TEN_CLASSES).numbers
    assert whole["p"].notna().sum() == 6 and whole["p_holm"].tolist() == holm(list(whole["p"]))
    named = pairs_table(three, [*NAMES, "c"], TEN_CLASSES, [["b", "a"]]).numbers
    assert named["p"].notna().tolist() == [True, True, False, False, False, False]
    assert named["p_holm"].iloc[1] == pytest.approx(4 / 2**4)


def test_a_difference_of_two_clusters_has_no_interval() -> None:
    a = trials(seed=[1, 2, 3, 4], outcome=["trained", "trained", "did not train", "trained"])
    b = a.assign(recipe="b", outcome="trained", test_accuracy=[0.5, 0.6, 0.7, 0.9])
    row = pairs_table(pd.concat([a, b]), NAMES, TEN_CLASSES).numbers.set_index("metric").loc["test_accuracy"]
    assert (row["trained_a"], row["trained_b"]) == (3, 4)
    assert pd.isna(row["difference_low"]) and row["difference"] == pytest.approx(0.8 - 0.675)
    assert not len(pairs_table(a, NAMES, TEN_CLASSES).numbers)


def test_robustness_shows_that_the_winner_depends_on_the_mean() -> None:
    a = trials(train_loss=[0.1, 0.1, NAN], status=["ok", "ok", "diverged"], test_accuracy=[0.9, 0.9, NAN])
    b = trials(recipe=["b"] * 3, train_loss=[0.5, 0.5, 0.5])
    both = pd.concat([a, b], ignore_index=True)
    ways = robustness_table(both, CURVES, NAMES, TEN_CLASSES).numbers
    loss = ways[ways["metric"] == "training loss"].set_index("way")["winner"]
    assert loss["mean"] == "b" and loss["median"] == "a" and loss["mean, capped at twice chance"] == "b"
    assert loss["mean of the best step"] == "a"


def test_lines_over_many_steps_take_each_trials_median_in_windows() -> None:
    frame = pd.DataFrame(
        {"recipe": "a", "trial": np.repeat([0, 1], 700), "step": np.tile(np.arange(1, 701), 2)}
    )
    frame["damping"] = frame["step"] + 1000.0 * frame["trial"]
    table = step_lines(frame, ["damping"], ["a", "b"])
    assert window(frame) == 10 and len(table) == WINDOWS
    first = table.iloc[0]
    assert (first["step"], first["n"], first["centre"]) == (5.5, 2, 505.5)
    assert step_lines(frame[frame["step"] <= 20], ["damping"], ["a"])["step"].tolist() == list(range(1, 21))


def described(**recipes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {"structure": vars(RECIPES["hf"].derive(name, changes).structure), "fixed": {}}
        for name, changes in recipes.items()
    }


def test_attribution_takes_pairs_that_differ_in_one_choice_alone() -> None:
    known = described(a={}, b={"curvature": "ggn"}, c={"curvature": "ggn", "norm": "l1"})
    found = single_changes(known, ["a", "b", "c"])
    assert [(c.before, c.after, c.key, c.new) for c in found] == [
        ("a", "b", "curvature", "ggn"), ("b", "c", "norm", "l1"),
    ]  # fmt: skip


def test_attribution_pairs_equal_settings_and_seeds_and_caps_losses_at_chance() -> None:
    a = trials(
        train_loss=[0.5, 0.6, 0.7, 9.0], test_accuracy=[0.8, 0.7, 0.6, 0.2], **{"params.lr": [1.0, 2, 3, 4]}
    )
    b = a.assign(recipe="b", test_accuracy=[0.9, 0.9, 0.9, 0.5], train_loss=0.5)
    b.loc[2, "params.lr"] = 7.0  # another setting: no pair
    b.loc[3, ["status", "outcome"]] = "diverged"
    b.loc[3, "train_loss"] = b.loc[3, "test_accuracy"] = NAN
    both, known = pd.concat([a, b], ignore_index=True), described(a={}, b={"norm": "l1"})
    table = attribution_table(both, known, NAMES, TEN_CLASSES)
    row = table.numbers.iloc[0]
    assert (row["pairs"], row["slots"]) == (3, 4)
    assert row["test_accuracy"] == pytest.approx((0.1 + 0.2 + (0.1 - 0.2)) / 3)
    assert row["train_loss"] == pytest.approx((0 - 0.1 + 0) / 3)  # 9.0 and the divergence are both chance
    assert (row["diverged_before"], row["diverged_after"]) == (0, 1)
    # Two of three trials trained after the change, so there are two clusters.
    assert (row["gained"], row["lost"], row["p_trained"]) == (0, 1, 1.0)
    assert math.isnan(row["test_accuracy_low"]) and math.isnan(row["train_loss_high"])


def test_the_committed_study_attributes_the_curvature() -> None:
    data = load_study(Path(__file__).parents[1] / "results" / "reference" / "quick")
    numbers = attribution_table(data.trials, data.described, data.recipes, data.metrics).numbers
    assert numbers[["before", "after", "key", "pairs"]].values.tolist() == [["hf", "hf_ggn", "curvature", 4]]


def test_numbers_intervals_and_latex_are_written_for_readers() -> None:
    assert [number(v) for v in (0.5, 1e-5, NAN, math.inf)] == ["0.5000", "1e-05", "–", "∞"]
    row = {"x": 0.5, "x_low": 0.25, "x_high": math.inf, "y": 1.0, "y_low": NAN, "y_high": NAN}
    assert within(row, "x", 2) == "0.50 [0.25, ∞]" and within(row, "y", 1) == "1.0"
    latex = as_latex(pd.DataFrame({"hf_x & %": ["a_b"], "±": ["∞"]}), "title")
    assert r"hf\_x \& \% & $\pm$" in latex and r"\toprule" in latex and r"a\_b & $\infty$" in latex


def test_every_table_is_saved_as_csv_text_and_latex(tmp_path: Path) -> None:
    study = write_study(
        tmp_path, "s", {"hf": 2, "adaptive_hf": 2}, {"hf": [0.5, 0.6], "adaptive_hf": [2.2, NAN]}
    )
    comparison = Comparison(load_study(study.folder))
    paths = comparison.save_tables(tmp_path / "out")
    assert {p.suffix for p in paths} == {".csv", ".txt", ".tex"} and all(p.stat().st_size for p in paths)
    saved = pd.read_csv(tmp_path / "out" / "tables" / "robustness.csv")
    assert len(saved) == len(comparison.tables["robustness"].numbers)
    document = comparison.document
    assert document["final_values"][0]["mean_low"] < 0.55 < document["final_values"][0]["mean_high"]


@pytest.mark.parametrize(
    ("preset", "bases"),
    [
        ("stable_parts", {"hf_stable": 8, "adaptive_hf_stable": 3}),
        ("causes", {"hf": 5, "hf_published": 2, "hf_published_ggn": 1, "adaptive_hf": 1}),
    ],
)
def test_every_recipe_of_the_preset_differs_from_its_base_in_one_choice(
    preset: str, bases: dict[str, int]
) -> None:
    config = load(preset)
    described = config.identity()["recipes"]
    found = {(c.before, c.after) for c in single_changes(described, list(config.searched))}
    for base, count in bases.items():
        assert sum(before == base and after.startswith(base) for before, after in found) == count


def test_recipes_of_other_kinds_are_no_single_changes() -> None:
    kinds = load("quick", overrides=["search.recipes=[hf, sgd_momentum, adahessian]"]).identity()["recipes"]
    assert single_changes(kinds, list(kinds)) == [], "recipes of other kinds differ in all"
