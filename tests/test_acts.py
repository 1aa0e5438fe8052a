"""Hyperparameters that act, and steps in which a limit decided, against cases worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits.acts import (
    NO,
    UNTESTED,
    YES,
    acts_table,
    limits_of,
    limits_table,
    without_effect,
)
from ahf_cli.report.statistics.sample import dependence
from ahf_cli.report.study_data import load_study
from ahf_cli.tasks.metrics import TEN_CLASSES
from tests.simulated_studies import simulate_study

LOG = {"low": 1e-3, "high": 1, "log": True}
LINEAR = {"low": 1, "high": 30, "log": False}
FLAT = [0.5, 0.4] * 10
"""results that do not depend on the number of the draw"""


def table(value: list[float], independent: bool = True, **settings: list[float]) -> pd.DataFrame:
    """Return the acts of one recipe `a` with the given settings by hyperparameter."""
    given = {"recipe": "a", "trial": range(len(value)), "status": "ok", "value": value}
    frame = pd.DataFrame(given | {f"params.{key}": found for key, found in settings.items()})
    spaces = {"a": {key: LOG if key == "lr" else LINEAR for key in settings}}
    return acts_table(frame, ["a"], spaces, TEN_CLASSES.loss, independent=independent).numbers


def test_a_range_has_its_width_in_decades() -> None:
    found = table(FLAT, lr=[*range(20)], damping=[*range(20)]).set_index("hyperparameter")
    assert found["decades"].tolist() == pytest.approx([3, math.log10(30)])


def test_a_hyperparameter_acts_in_order_or_with_a_best_setting_within_its_range() -> None:
    x = [float(v) for v in range(21)]
    shapes = {
        "falls": [-v for v in x], "bent": [abs(v - 10) for v in x], "flat": [*FLAT, 0.5], "equal": [1.0] * 21,
    }  # fmt: skip
    found = {name: table(y, lr=x).iloc[0] for name, y in shapes.items()}
    assert {name: row["acts"] for name, row in found.items()} == {
        "falls": YES, "bent": YES, "flat": NO, "equal": NO,
    }  # fmt: skip
    assert found["falls"]["rank_correlation"] == -1
    assert found["bent"]["rank_correlation"] == pytest.approx(0, abs=1e-9)
    assert found["equal"]["p"] == 1 and math.isnan(found["equal"]["rank_correlation"])


def test_few_or_dependent_trials_are_not_tested() -> None:
    x = [float(v) for v in range(20)]
    assert table(x[:11], lr=x[:11])["acts"].tolist() == [UNTESTED]
    assert table(x[:12], lr=x[:12])["acts"].tolist() == [YES]
    bayesian = table(x, independent=False, lr=x)
    assert bayesian["acts"].tolist() == [UNTESTED] and bayesian["rank_correlation"].tolist() == [1]


def test_p_is_twice_the_smaller_and_holm_counts_every_test() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(21), rng.random(21)
    order = np.argsort(x)
    thirds = [y[order[:7]], y[order[7:14]], y[order[14:]]]
    parts = [stats.spearmanr(x, y).pvalue, stats.kruskal(*thirds).pvalue]
    assert dependence(x, y) == pytest.approx(2 * min(parts))
    assert math.isnan(dependence([1.0] * 12, y[:12])) and dependence(x, np.ones(21)) == 1
    found = table(list(x), lr=list(x), damping=list(y))
    assert found["p_holm"].iloc[0] == pytest.approx(2 * found["p"].iloc[0])


@pytest.mark.long
@pytest.mark.parametrize("n", [12, 20])
def test_the_test_has_its_level(n: int) -> None:
    rng = np.random.default_rng(n)
    p = np.array([dependence(rng.random(n), np.minimum(rng.random(n), 0.7)) for _ in range(4000)])
    # Three standard errors of a share of 0.05 are 0.010; the two tests overlap, so p may be too large.
    assert 0.025 < (p < 0.05).mean() < 0.06 and (p < 0.001).mean() < 0.0025


def test_a_recipe_without_effect_needs_twenty_trials_and_no_small_p() -> None:
    rows = [
        ("a", 20, 0.3),
        ("a", 20, 0.05),
        ("b", 20, 0.3),
        ("b", 20, 0.04),
        ("c", 19, 0.9),
        ("d", 20, math.nan),
    ]
    assert without_effect(pd.DataFrame(rows, columns=["recipe", "n", "p"])) == ["a"]


def steps(**columns: list[Any]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    lengths = dict.fromkeys(["update_l2", "direction_l2", "step_size", "damping", "params.lr"], 1.0)
    given = {"step": range(1, n + 1), "stop": "progress", "params.damping": 10.0, **lengths}
    return pd.DataFrame(given | columns)


def decided(limit: str, frame: pd.DataFrame, **structure: str) -> list[bool]:
    return limits_of(frame, structure)[limit].tolist()


def test_a_clip_decides_where_the_update_has_the_length_of_its_limit() -> None:
    frame = steps(update_l2=[0.299, 0.29999, 0.3], **{"params.radius": [0.3] * 3})
    assert decided("clip at the radius", frame, clipping="radius") == [False, True, True]
    frame = steps(update_l2=[0.5, 1.0, 0.0], direction_l2=[1.0, 1.0, 0.0])
    assert decided("clip at the direction", frame, clipping="direction") == [False, True, False]
    assert not [name for name in limits_of(frame, {}) if "clip" in name]


@pytest.mark.parametrize(
    ("rule", "damping", "expected"),
    [
        ("levenberg_marquardt", [1e-10, 2e-10, 1e10, 9e9], [True, False, True, False]),
        ("levenberg_marquardt_scaled", [1e-9, 1e-10, 1e10, 1e11], [True, True, False, True]),
        ("published", [0.1, 0.11, 1e10, 0.01], [True, False, False, True]),
    ],
)
def test_a_damping_is_at_the_bound_of_its_rule(rule: str, damping: list[float], expected: list[bool]) -> None:
    assert decided("damping at its bound", steps(damping=damping), damping_rule=rule) == expected


def test_a_constant_damping_and_another_solver_have_no_such_limit() -> None:
    assert limits_of(steps(damping=[1.0]), {"damping_rule": "constant", "solver": "gradient"}) == {}


def test_cg_is_at_its_limit_where_it_says_so() -> None:
    frame = steps(stop=["max_iterations", "progress"])
    assert decided("CG at its iteration limit", frame) == [True, False]


def eq3_steps(**columns: list[Any]) -> pd.DataFrame:
    # ε = 2 and σ = 1 give β₁ = 1/2, so that c = (ε/2)(1 − β₁ᵗ⁻¹) is 0, 1/2 and 3/4.
    return steps(**columns, **{"params.epsilon": [2.0] * 3, "params.sigma": [1.0] * 3})


def test_eq3_is_clipped_where_its_own_formula_is_negative() -> None:
    # G = 0.7: printed positive at c = 1/2, negative at 3/4; repaired negative at 3/2 c = 3/4 and 9/8.
    frame = eq3_steps(direction_l2=[0.7] * 3, eq3_step_size=[0.4, 0.1, -0.1], step_size=[0.4, 0.1, 0.0])
    assert decided("Eq. 3 clipped at 0", frame, step_size="eq3") == [False, False, True]
    frame = frame.assign(step_size=[0.4, 0.0, 0.0])
    assert decided("Eq. 3 clipped at 0", frame, step_size="eq3_repaired") == [False, True, True]


def test_a_line_search_has_shortened_below_rule_and_clip() -> None:
    frame = steps(step_size=[1.0, 0.8, 0.0], update_l2=[1.0, 0.8, 0.0])
    assert decided("line search", frame, line_search="armijo") == [False, True, True]
    halved = steps(step_size=[1.0, 0.5, 0.25], **{"params.halving": [1.0] * 3})
    rule = {"line_search": "armijo", "step_size": "hyperbolic"}
    assert decided("line search", halved, **rule) == [False, False, True]
    # A radius of 1/2 leaves α = 1/2 of 1: that is no line search.
    cut = steps(step_size=[0.5, 0.4], update_l2=[0.5, 0.4], **{"params.radius": [0.5] * 2})
    assert decided("line search", cut, line_search="armijo", clipping="radius") == [False, True]
    # Repaired Eq. 3 at c = 1/2 and G = 1 is half of the printed one: (1 − 3/4)/(1 − 1/2).
    frame = eq3_steps(direction_l2=[1.0] * 3, eq3_step_size=[0.4] * 3, step_size=[0.4, 0.2, 0.0])
    rules = {"line_search": "armijo", "step_size": "eq3_repaired"}
    assert decided("line search", frame, **rules) == [False, False, False]
    assert decided("line search", frame.assign(step_size=[0.4, 0.16, 0.0]), **rules) == [False, True, False]


def test_shares_are_of_all_steps_and_medians_of_trials() -> None:
    frame = steps(update_l2=[0.3, 0.3, 0.1, 0.3, 0.1]).drop(columns=["params.lr", "params.damping"])
    frame = frame.assign(recipe="a", trial=[0, 0, 0, 0, 1], status="ok")
    trials = pd.DataFrame({"recipe": "a", "trial": [0, 1], "params.radius": 0.3, "params.damping": 1.0})
    described = {"a": {"structure": {"clipping": "radius"}}, "adam": {"structure": {"method": "adam"}}}
    found = limits_table(frame, trials, described)
    assert found is not None
    row = found.numbers.set_index("limit").loc["clip at the radius"]
    assert (row["trials"], row["steps"], row["share"], row["median"]) == (2, 5, 0.6, 0.375)
    assert limits_table(frame[:0], trials, described) is None


def test_the_radius_decides_most_steps_of_the_committed_study() -> None:
    data = load_study(Path("results/reference/robust"))
    found = limits_table(data.steps, data.trials, data.described)
    assert found is not None
    numbers = found.numbers.set_index(["recipe", "limit"])
    own = data.steps[data.steps["recipe"] == "hf_stable"]
    cut = (own["update_l2"] >= 0.1 * (1 - 1e-4)).groupby(own["trial"]).mean()
    assert numbers.loc[("hf_stable", "clip at the radius"), "median"] == cut.median() > 0.9


def test_the_verdict_names_the_recipes_of_which_nothing_acts(tmp_path: Path) -> None:
    study = simulate_study(tmp_path, "s", trials=20, points=3, reruns=0, recipes=("hf", "adaptive_hf"))
    data = load_study(study.folder)
    rng, trials = np.random.default_rng(1), data.trials
    value = np.where(trials["recipe"] == "hf", trials["params.lr"], rng.random(len(trials)))
    found = Comparison(replace(data, trials=trials.assign(value=value)))
    acts = found.tables["acts"].numbers
    assert acts.groupby("recipe")["acts"].agg(set).to_dict() == {"hf": {YES, NO}, "adaptive_hf": {NO}}
    said = "No searched hyperparameter of adaptive_hf is shown to act on the validation loss."
    assert said in found.verdict.caveats and "limits" in found.tables and "sensitivity" not in found.tables
