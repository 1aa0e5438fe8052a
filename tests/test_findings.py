"""Texts with numbers from the committed studies, against the data."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import pytest

from docs.findings import Jumps, Study, interval, load
from docs.findings.__main__ import ROOT, fill, targets, verdict
from tests.simulated_studies import simulate_study

PAIR = {"hf": 12, "adaptive_hf": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("findings")
    return Study(simulate_study(folder, "s", trials=12, points=4, reruns=3, recipes=tuple(PAIR)).folder)


def test_every_text_is_what_its_template_and_the_results_give() -> None:
    """`make findings` writes them."""
    for file, text in targets().items():
        assert file.read_text() == text, f"{file.relative_to(ROOT)}: run `make findings`"


def test_the_numbers_of_a_recipe_are_those_of_its_trials(made: Study) -> None:
    trials = made.data.trials
    for recipe in made.recipes:
        own = trials[trials["recipe"] == recipe.name]
        assert recipe.n == 12 == sum(map(int, recipe.counts.split(" / ")))
        assert recipe.diverged == (own["outcome"] == "diverged").sum() and recipe.reruns == 3
        mean, *ends = map(float, re.findall(r"[\d.]+", recipe.accuracy))
        assert (len(ends) == 2) == (recipe.trained in (0, 12)) and mean == pytest.approx(
            recipe.values("test_accuracy").mean(), abs=6e-4
        )
        loss = own["train_loss"].where(own["status"] == "ok", math.log(10)).clip(upper=math.log(10))
        mean, error = map(float, recipe.band("train_loss").split(" ± "))
        assert mean == pytest.approx(loss.mean(), abs=6e-4)
        assert error == pytest.approx(loss.std() / math.sqrt(12), abs=6e-4)
        assert recipe.mean("train_loss").startswith(f"{mean:.3f}")
        again = made.data.reruns[made.data.reruns["recipe"] == recipe.name]["test_accuracy"]
        mean = again.clip(lower=0.1).mean()
        assert float(recipe.rerun_accuracy.split()[0]) == pytest.approx(mean, abs=6e-4)
        accuracy = own[own["status"] == "ok"]["test_accuracy"]
        assert recipe.range == f"{accuracy.min():.3f} to {accuracy.max():.3f}"
        count, n, share, *_ = map(float, re.findall(r"[\d.]+", recipe.above(0.5)))
        assert (count, n) == ((accuracy > 0.5).sum(), 12) and share == pytest.approx(count / 12, abs=6e-3)
        assert recipe.work > 0
        assert sum(map(int, recipe.rerun.counts.split(" / "))) == recipe.reruns
    share, low, high = map(float, re.findall(r"[\d.]+", made["hf"].share_trained))
    assert share == pytest.approx(made["hf"].trained / 12, abs=6e-3) and 0 <= low < share < high <= 1
    few = made["hf"].where("lr < 0.1")
    assert few.n == (trials[trials["recipe"] == "hf"]["params.lr"] < 0.1).sum() and 0 < few.n < 12
    assert made.trials_each == "12" and few.counts.startswith(f"{few.trained} / {few.stood} / ")
    quick = load(ROOT / "results" / "reference" / "quick")
    assert quick.prerun_trials == 4 and quick.proposal("sigma") == "[0.52, 1.6]"
    paper = load(ROOT / "results" / "reference" / "paper")
    results, problems = paper.data.study.prerun.read_results()
    said = [result.status for result in results]
    assert problems == []
    assert (paper.prerun_trials, paper.prerun_diverged) == (len(said), said.count("diverged")) == (15, 11)
    assert made.steps == made.data.curves["step"].max() > 0
    assert made.verdict[-1].startswith("Condition: design fair")


def test_the_spread_of_final_values(made: Study) -> None:
    for recipe in made.recipes:
        own = made.data.trials.query("recipe == @recipe.name")
        accuracy = own["test_accuracy"].where(own["status"] == "ok", 0.1).astype(float).clip(lower=0.1)
        assert recipe.spread("test_accuracy") == pytest.approx(accuracy.std())


def test_what_trials_reached_and_what_those_that_trained_cost() -> None:
    fair = load(ROOT / "results" / "reference" / "fair")
    for recipe in fair.recipes:
        curves = fair.data.curves.query("recipe == @recipe.name")
        reached, work = [], []
        for trial, curve in curves.groupby("trial"):
            own = curve.sort_values("step")
            if own["test_accuracy"].max() >= 0.5:
                reached.append(trial)
            row = recipe.trials.query("trial == @trial").iloc[0]
            if row["outcome"] == "trained":
                work.append(own["work"].iloc[-1])
        assert recipe.reached == len(reached) >= recipe.trained == len(work) == recipe.that_trained.n
        assert not work or recipe.that_trained.work == np.median(work)
    steps = fair.data.steps.query("recipe == 'hf_published' and step <= 15")
    share = fair.share_of_steps("hf_published", "reduction_ratio < 0.25", first=15)
    assert share == pytest.approx((steps["reduction_ratio"] < 0.25).mean())
    peaks = [
        trial["direction_l1"].max()
        for _, trial in fair.data.steps.query("recipe == 'adaptive_hf_published'").groupby("trial")
    ]
    found = fair.measured("adaptive_hf_published", "l1")["sigma"].range
    assert (found.low, found.high) == pytest.approx((np.median(peaks), max(peaks)))


def test_the_first_jump_of_each_trial() -> None:
    steps = pd.DataFrame(
        [
            (1, 1, 0.1, 9.0, 2.0, "progress"), (1, 2, 0.2, 6.0, 2.0, "progress"),
            (1, 3, 4.0, 4.0, 800.0, "negative_curvature"), (1, 4, 400.0, 6.0, 8e6, "progress"),
            (2, 1, 0.1, 9.0, 2.0, "progress"), (2, 2, 0.9, 6.0, 2.0, "progress"),
            (3, 1, 0.5, 6.0, 2.0, "progress"), (3, 2, 5.0, 9.0, 20.0, "progress"),
        ],
        columns=["trial", "step", "direction_l2", "damping", "step_size", "stop"],
    )  # fmt: skip
    found = Jumps.of(steps.sample(frac=1, random_state=0))
    assert found.trials == [1, 3]
    assert found.direction == pytest.approx((20 + 10) / 2) and found.alpha == pytest.approx((400 + 10) / 2)
    fair = load(ROOT / "results" / "reference" / "fair")
    assert set(fair.jumps("adaptive_hf").trials) < set(fair["adaptive_hf"].trials["trial"])


def test_shares_of_steps_of_some_trials() -> None:
    fair = load(ROOT / "results" / "reference" / "fair")
    small = fair["hf_published"].where("lr < 0.134")
    steps = fair.data.steps.query("recipe == 'hf_published'")
    own = [steps[steps["trial"] == trial] for trial in small.trials["trial"]]
    assert len(own) == small.n > 0
    ratios = np.concatenate([trial["reduction_ratio"].to_numpy() for trial in own])
    share = fair.share_of_steps("hf_published", "reduction_ratio < 0.25", small)
    assert share == pytest.approx((ratios < 0.25).mean())
    with pytest.raises(IndexError):
        _ = small.accuracy  # means are of all trials


def test_p_of_the_new_seeds_is_that_of_all_sign_changes(made: Study) -> None:
    """By brute force, and Holm's rule by hand for two metrics."""
    again = made.data.reruns
    assert (again["status"] == "ok").all()
    p = []
    for metric in ("train_loss", "test_accuracy"):
        a, b = (again[again["recipe"] == name][metric].to_numpy() for name in PAIR)
        signs = np.array(list(itertools.product([1, -1], repeat=len(a))))
        p.append((abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-12).mean())
    holm = {min(p): min(1, 2 * min(p)), max(p): max(min(1, 2 * min(p)), max(p))}
    for metric, raw in zip(("train_loss", "test_accuracy"), p, strict=True):
        assert made.rerun_p("hf", "adaptive_hf", metric) == pytest.approx(holm[raw])
        assert made.rerun_p("adaptive_hf", "hf", metric) == made.rerun_p("hf", "adaptive_hf", metric)


def test_a_change_is_named_with_its_difference() -> None:
    single = load(ROOT / "results" / "reference" / "attribution")
    assert single.choice("hf", "hf_ggn") == "curvature: hessian → ggn"
    parts = load(ROOT / "results" / "reference" / "stable_parts")
    _, low, high = map(float, re.findall(r"[-+]?[\d.]+", parts.paired("hf_stable", "hf_stable_cold")))
    assert low < high < 0


@pytest.mark.parametrize(
    ("numbers", "sign", "text"),
    [
        ((0.5, 0.4, 0.6), True, "+0.500 [0.400, 0.600]"),
        ((-0.5, -0.6, -0.4), True, "-0.500 [-0.600, -0.400]"),
        ((-1e-9, -1e-8, 1e-9), True, "0.000 [0.000, 0.000]"),
        ((0.1, math.nan, math.nan), False, "0.100"),  # every pair gives the same
        ((0.0675 + 2e-17, 0.0, 0.1), False, "0.068 [0.000, 0.100]"),
        ((0.0675 - 2e-17, 0.0, 0.1), False, "0.068 [0.000, 0.100]"),
    ],
)
def test_intervals_are_written_alike(numbers: tuple[float, float, float], sign: bool, text: str) -> None:
    assert interval(*numbers, sign=sign) == text


def test_words_that_the_data_contradict_are_an_error(made: Study, tmp_path: Path) -> None:
    assert verdict(True, "holds") == "holds"
    template = tmp_path / "t.md"
    template.write_text("{{ verdict(study('s')['hf'].n == 12, 'holds') }}")
    assert fill(template, made.data.study.folder.parent) == "holds\n"
    template.write_text("{{ verdict(study('s')['hf'].n > 12, 'does not hold') }}")
    with pytest.raises(ValueError, match="the data contradict 'does not hold'"):
        fill(template, made.data.study.folder.parent)


def test_a_claim_that_the_rules_refuse_cannot_be_written(tmp_path: Path) -> None:
    def study(name: str, **options: Any) -> Study:
        recipes = tuple(PAIR)
        return Study(simulate_study(tmp_path, name, points=3, recipes=recipes, **options).folder)

    whole, few = study("whole", trials=20, reruns=8), study("few", trials=19, reruns=8)
    assert whole.ahead("adaptive_hf", "hf") and not whole.ahead("hf", "adaptive_hf")
    assert few.rerun_p("adaptive_hf", "hf") < 0.05 and not few.ahead("adaptive_hf", "hf")
    template = tmp_path / "t.md"
    template.write_text("{{ verdict(study('few').ahead('adaptive_hf', 'hf'), 'hf is ahead') }}")
    with pytest.raises(ValueError, match="the data contradict 'hf is ahead'"):
        fill(template, tmp_path)


def test_who_is_ahead_is_never_written_by_hand() -> None:
    """The words stand in `verdict(…)`, in a sentence of `ahf compare`, or in one that denies it."""
    for template in (ROOT / "docs" / "findings" / "templates").glob("*.md"):
        bare = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", "", template.read_text(), flags=re.DOTALL)
        assert not re.findall(r"is ahead|beats (?!HF)|is better|outperforms", bare), template.name


def test_a_template_with_an_unknown_name_is_an_error(made: Study, tmp_path: Path) -> None:
    template = tmp_path / "t.md"
    template.write_text("{{ study('s')['hf'].n }} trials")
    assert fill(template, made.data.study.folder.parent) == "12 trials\n"
    template.write_text("{{ study('s')['hf'].m }}")
    with pytest.raises(jinja2.UndefinedError):
        fill(template, made.data.study.folder.parent)
