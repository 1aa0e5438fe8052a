"""Trials beside a published curve, as the documents have them: against closed forms and plain pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ahf_cli.tasks.metrics import TEN_CLASSES
from docs.findings import load
from docs.findings.beside import Beside, alike, changes_of, of_more, wide

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


@pytest.mark.parametrize("n", [5, 20])
def test_a_mean_of_n_independent_trials_fluctuates_as_n(n: int) -> None:
    random = np.random.default_rng(n)
    noise = random.normal(size=(4000, 60))
    shared = random.normal(size=(4000, 1))
    assert alike(np.diff(noise, axis=0), np.diff(noise[:, :n].mean(axis=1))) == pytest.approx(n, rel=0.1)
    # Of equally correlated trials, with correlation ½, the mean of n has the variance ½ + ½/n.
    both = noise + shared
    found = alike(np.diff(both, axis=0), np.diff(both[:, :n].mean(axis=1)))
    assert found == pytest.approx(1 / (0.5 + 0.5 / n), rel=0.1)


def test_changes_are_between_evaluations_as_far_apart_as_most_are() -> None:
    values = pd.Series([1.0, 3.0, 4.0, 8.0, 9.0], index=[10, 20, 30, 34, 44])
    assert changes_of(values).tolist() == [2.0, 1.0, 1.0]


def evaluations() -> pd.DataFrame:
    """Return four trials of one recipe; the last one diverges after its first evaluation."""
    rows = [
        {
            "recipe": "r",
            "trial": trial,
            "step": step,
            "status": "ok",
            "test_accuracy": 0.1 * trial + step / 1000,
        }
        for trial in range(1, 5)
        for step in (50, 100)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[(frame["trial"] == 4) & (frame["step"] == 100), "test_accuracy"] = np.nan
    return frame.assign(**{c: 1.0 for c in TEN_CLASSES.curve_columns if c != "test_accuracy"})


def test_a_trial_that_diverged_counts_as_guessing() -> None:
    found = wide(evaluations(), TEN_CLASSES.headline, 60)
    assert found.index.tolist() == [100]
    assert found.to_numpy()[0] == pytest.approx([0.2, 0.3, 0.4, 0.1])


def test_edges_are_distances_from_the_published_band(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    lines = ["curve,data,model,metric,step,mean,low,high"]
    lines += [f"c,d,m,test_accuracy,{step},0.3,0.2,0.5" for step in (0, 200)]
    file.write_text("\n".join(lines))
    beside = Beside(evaluations(), f"{file}/c", TEN_CLASSES)
    edges = beside.edges(60)
    values = np.array([0.1, 0.2, 0.3, 0.4])
    sd, half = values.std(ddof=1), values.std(ddof=1) / 2
    expected = {
        "mean ± standard error": (abs(0.05 - half), abs(half - 0.25)),
        "mean ± standard deviation": (abs(0.05 - sd), abs(sd - 0.25)),
        "published mean ± standard deviation": (abs(0.1 - sd), abs(sd - 0.2)),
        "quartiles": (0.025, 0.175),
        "least and largest trial": (0.1, 0.1),
    }
    assert {rule: pytest.approx(pair) for rule, pair in edges.items()} == expected


def test_trials_that_stood_still_are_left_out() -> None:
    study = load(REFERENCE / "baseline")
    beside, recipe = study.moved("hf_published"), study["hf_published"]
    assert beside.n == recipe.n - recipe.stood < recipe.n
    curves = study.data.curves.query("recipe == 'hf_published' and step == 390")
    trials = recipe.where("outcome != 'stood still'").trials["trial"]
    values = curves.set_index("trial")["test_accuracy"].reindex(trials).fillna(0.1)
    row = beside.at(390)
    assert row["centre"] == pytest.approx(values.mean())
    error = values.std(ddof=1) / len(values) ** 0.5
    assert row["in_errors"] == pytest.approx((values.mean() - row["published"]) / error)
    assert beside.errors([390]) == pytest.approx((row["in_errors"],) * 2)


def test_the_mean_of_more_correlated_trials() -> None:
    """Changes √r z + √(1−r) zᵢ have the correlation r: by simulation, and n = K for r = 0."""
    rng, r = np.random.default_rng(0), 0.2
    changes = np.sqrt(r) * rng.normal(size=(40_000, 1)) + np.sqrt(1 - r) * rng.normal(size=(40_000, 30))
    few, many = changes[:, :6], changes
    n = alike(few, few.mean(axis=1))
    assert of_more(n, 6, 30) == pytest.approx(alike(many, many.mean(axis=1)), rel=0.05)
    assert of_more(6, 6, 30) == pytest.approx(30)


def test_all_trials_stand_beside_a_named_curve() -> None:
    study = load(REFERENCE / "baseline")
    beside = study.against("hf_cg", "motokawa_2020.csv/HF")
    assert beside.n == study["hf_cg"].n
    own = study.beside("hf_cg", 390)
    pd.testing.assert_series_equal(beside.at(390), own, check_names=False)
    losses = study.data.curves.query("recipe == 'hf_cg' and step == 390")["train_loss"]
    values = np.append(np.minimum(losses, 5), [5.0] * (beside.n - len(losses)))  # diverged before
    assert beside.capped_loss(390, 5) == pytest.approx(values.mean())
    errors = beside.table.query("metric == 'test_accuracy'")["in_errors"]
    assert beside.beyond(1) == pytest.approx(sum(abs(error) > 1 for error in errors) / len(errors))


def test_trials_with_one_seed_move_together() -> None:
    name = "adaptive_hf_published"
    own, one = (load(REFERENCE / study) for study in ("causes", "attribution"))
    assert own[name].n == one[name].n == 20
    assert one.fluctuates_as(name, 100) < 0.5 * own.fluctuates_as(name, 100)
