"""Verdicts: claims, their conditions and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ahf_cli.report.comparison import Comparison
from ahf_cli.report.conditions import conditions, differences
from ahf_cli.report.study_data import StudyData, load_study, pool
from ahf_cli.report.text import sparkline
from ahf_cli.report.verdict import _pair_sentence, seeds_needed
from ahf_cli.study.store import Study
from ahf_cli.tasks.metrics import TEN_CLASSES
from tests.simulated_studies import simulate_study
from tests.studies import write_study

TWO = ("hf", "adaptive_hf")


@pytest.fixture(scope="module")
def fair(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    folder = tmp_path_factory.mktemp("verdict")
    return load_study(simulate_study(folder, "fair", trials=20, points=6, reruns=8, recipes=TWO).folder)


def changed(study: Study, **changes: Any) -> StudyData:
    file = study.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for path, value in changes.items():
        where = manifest
        *keys, last = path.split("__")
        for key in keys:
            where = where[key]
        where[last] = value
    file.write_text(json.dumps(manifest))
    return load_study(study.folder)


def test_re_runs_of_a_fair_design_support_a_claim_with_its_numbers(fair: StudyData) -> None:
    found = Comparison(fair).verdict
    assert found.claim and found.leader == "hf" and not found.refused and not found.stamp
    pair = Comparison(fair).tables["rerun_pairs"].numbers.set_index("metric").loc["test_accuracy"]
    assert found.sentences[0] == "hf has the best mean validation accuracy of the re-runs."
    text = found.sentences[1]
    assert text.startswith("hf is ahead of adaptive_hf in test accuracy") and "(8 seeds, p = 0.016)." in text
    assert pair["p_holm"] == pytest.approx(2 * 2 / 2**8)
    assert found.lines()[-1].startswith("Condition: design fair, 20 random trials a recipe of 1430 steps")
    assert any("All draws share one training seed" in line for line in found.lines())


def test_no_sentence_of_a_verdict_is_long(fair: StudyData) -> None:
    for sentence in re.split(r"(?<=\.) (?=[A-Za-z])", " ".join(Comparison(fair).verdict.lines())):
        assert len(sentence.split()) <= 25, sentence


def pair(**changes: Any) -> pd.Series[Any]:
    row = {
        "a": "hf", "b": "adam", "pairs": 20, "trained_a": 20, "trained_b": 20, "difference": -0.05,
        "difference_low": -0.07, "difference_high": -0.03, "p_holm": 0.001,
    }  # fmt: skip
    return pd.Series(row | changes)


AHEAD = "adam is ahead of hf in test accuracy by 0.050 [0.030, 0.070] (20 seeds, p = 0.001)."


@pytest.mark.parametrize(
    ("leader", "row", "said"),
    [
        ("adam", pair(), AHEAD),
        # The test set may contradict the validation that chose the leader.
        ("hf", pair(), AHEAD),
        (
            "adam", pair(p_holm=0.06),
            "Neither adam nor hf is shown to be ahead in test accuracy (20 seeds, p = 0.06).",
        ),
        (
            "adam", pair(trained_a=7, difference_low=math.nan, difference_high=math.nan),
            "adam is ahead of hf in test accuracy by 0.050 (20 seeds, p = 0.001); 20 and 7 re-runs trained.",
        ),
        ("adam", pair(p_holm=math.nan), "The pair adam and hf is no named contrast, and is not tested."),
    ],
)  # fmt: skip
def test_a_pair_has_its_sentence(leader: str, row: pd.Series[Any], said: str) -> None:
    other = "hf" if leader == "adam" else "adam"
    assert _pair_sentence(leader, other, row, TEN_CLASSES.headline) == said


def test_a_loss_is_ahead_where_it_is_lower() -> None:
    said = _pair_sentence("hf", "adam", pair(), TEN_CLASSES.loss)
    assert said == "hf is ahead of adam in training loss by 0.050 [0.030, 0.070] (20 seeds, p = 0.001)."


def test_as_many_seeds_are_needed_as_a_difference_needs_to_be_significant() -> None:
    for tests in (1, 2, 42, 100):
        n = seeds_needed(tests)
        assert tests * 2 ** (1 - n) <= 0.05 < tests * 2 ** (2 - n)


def test_a_worse_recipe_named_first_is_turned_round(tmp_path: Path) -> None:
    study = simulate_study(tmp_path, "s", trials=20, points=6, reruns=8, recipes=("adaptive_hf", "hf"))
    said = Comparison(load_study(study.folder)).verdict.sentences
    assert said[1].startswith("hf is ahead of adaptive_hf")


def test_equal_recipes_are_not_shown_to_differ(tmp_path: Path) -> None:
    one, two = (
        simulate_study(tmp_path, name, trials=20, points=6, reruns=8, recipes=("hf",), seed=seed)
        for seed, name in enumerate(("one", "two"))
    )
    both = pool({"a": load_study(one.folder), "b": load_study(two.folder)})
    assert Comparison(both).verdict.sentences[1].startswith("Neither ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"trials": 20, "reruns": 0}, "there are no re-runs"),
        ({"trials": 20, "reruns": 3}, "each recipe has 3 of the 7 new seeds that 2 tests need"),
        ({"trials": 6, "reruns": 8}, "each recipe has 6 of the 20 trials that a claim needs"),
        ({"trials": 20, "reruns": 8, "design": "paper"}, "the design is paper, not fair"),
    ],
)
def test_what_is_too_little_for_a_claim_is_described_only(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    study = simulate_study(tmp_path, "s", points=4, recipes=TWO, **options)
    found = Comparison(load_study(study.folder)).verdict
    assert not found.claim and "supports no claim" in " ".join(found.sentences)
    assert why in " ".join(found.sentences)


def test_a_bayesian_search_is_described_only(tmp_path: Path) -> None:
    study = simulate_study(tmp_path, "s", trials=20, points=4, reruns=0, recipes=TWO)
    data = changed(study, identity__search__sampler="tpe", identity__search__design="paper")
    found = Comparison(data).verdict
    assert not found.claim and "trials of a Bayesian search depend on each other" in " ".join(found.sentences)
    assert set(Comparison(data).tables["best_of_k"].numbers["how"]) == {"so far"}
    assert "beats" not in Comparison(data).tables


def test_different_numbers_of_trials_are_refused_unless_forced(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 3, "adaptive_hf": 2}, {"hf": [0.5, 0.6], "adaptive_hf": [0.7]})
    data = load_study(study.folder)
    refused = Comparison(data).verdict
    assert refused.lines() == [
        "No verdict, since conditions differ:", "- trials differ: hf 2, adaptive_hf 1",
    ]  # fmt: skip
    forced = Comparison(data, force=True).verdict
    assert forced.stamp == "FORCED: trials differ: hf 2, adaptive_hf 1" and not forced.claim
    assert forced.lines()[0].startswith("FORCED")
    assert "adaptive_hf trained in 1 of 1 trials" in " ".join(forced.lines())


def test_each_condition_that_differs_is_named(tmp_path: Path) -> None:
    same = simulate_study(tmp_path, "a", trials=2, points=3, reruns=0, recipes=("hf",))
    other = simulate_study(tmp_path, "b", trials=2, points=3, reruns=0, recipes=("hf",))
    first = load_study(same.folder)
    assert differences(pool({"a": first, "b": load_study(other.folder)})) == []
    space = {"lr": {"low": 0.01, "high": 1, "log": True}, "damping": {"low": 1, "high": 30, "log": False}}
    data = changed(
        other, identity__spaces__hf=space, identity__train__steps=99, sessions=[
            {"commit": "b" * 40, "versions": {"torch": "9"}}
        ],
    )  # fmt: skip
    said = differences(pool({"a": first, "b": data}))
    assert said[0] == "the range of lr differs: a/hf [0.001, 1] log, b/hf [0.01, 1] log"
    assert [line.split(":")[0] for line in said[1:]] == [
        "train differs", "commits differ", "versions of torch differ",
    ]  # fmt: skip
    assert "versions of torch differ: 2.14.1, 9" in said


def test_a_single_recipe_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 1}, {"hf": [0.5]})
    found = Comparison(load_study(study.folder)).verdict
    alone = "hf is the only recipe with trials, and a comparison needs two."
    assert not found.claim and found.sentences == (alone,)


def test_conditions_of_a_study_without_a_manifest_are_said_to_be_unknown(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 1}, {"hf": [0.5]})
    (study.folder / "manifest.json").unlink()
    assert "unknown model on unknown data" in conditions(load_study(study.folder))


def test_a_sparkline_goes_from_low_to_high_and_leaves_gaps() -> None:
    assert sparkline([0, 0.5, 1, 2, -1, float("nan")], 0, 1) == "▁▅█" + "█▁ "
    assert len(sparkline(range(100), 0, 100)) == 16 and sparkline([], 0, 1) == "" == sparkline([1], 1, 1)


def test_recipes_of_another_kind_have_ranges_of_their_own(tmp_path: Path) -> None:
    """Adam, HF and each class may have different ranges; two recipes of one kind must share theirs."""
    study = simulate_study(tmp_path, "s", trials=2, points=3, reruns=0, recipes=("hf", "hf_published"))
    adam = {"lr": {"low": 1e-5, "high": 0.1, "log": True}}
    own = changed(
        study, identity__spaces__adam=adam,
        identity__recipes__adam={"structure": {"method": "adam"}, "fixed": {"beta1": 0.9}},
    )  # fmt: skip
    assert not [line for line in differences(own) if "range" in line]
    classes: dict[str, Any] = {}
    for name, path, high in (("soap", "x.SOAP", 0.1), ("lion", "x.Lion", 0.01), ("soap_high", "x.SOAP", 1)):
        classes[f"identity__spaces__{name}"] = {"lr": {"low": 1e-4, "high": high, "log": True}}
        classes[f"identity__recipes__{name}"] = {"structure": {"optimizer": path}}
        said = [line for line in differences(changed(study, **classes)) if "range" in line]
        twice = "the range of lr differs: soap [0.0001, 0.1] log, soap_high [0.0001, 1] log"
        assert said == ([twice] if name == "soap_high" else [])
    narrow = {"lr": {"low": 0.01, "high": 1, "log": True}, "damping": {"low": 1, "high": 30, "log": False}}
    said = [line for line in differences(changed(study, identity__spaces__hf=narrow)) if "range" in line]
    assert "the range of lr differs: hf [0.01, 1] log, hf_published [0.001, 1] log" in said


def test_other_seeds_and_re_runs_of_another_trial_are_refused(fair: StudyData) -> None:
    assert differences(fair) == []
    ours = fair.trials["recipe"] == "hf"
    moved = fair.trials.assign(seed=fair.trials["seed"].where(~ours, fair.trials["trial"]))
    said = differences(dataclasses.replace(fair, trials=moved))
    assert said == ["training seeds of the draws differ: hf and adaptive_hf"]
    again = fair.reruns.assign(seed=fair.reruns["seed"] + (fair.reruns["recipe"] == "hf"))
    said = differences(dataclasses.replace(fair, reruns=again))
    assert said == ["training seeds of the re-runs differ: hf and adaptive_hf"]
    best = int(fair.best["trial"]["hf"])
    slots = fair.reruns["recipe"].map({"hf": best + 1, "adaptive_hf": int(fair.best["trial"]["adaptive_hf"])})
    said = differences(dataclasses.replace(fair, reruns=fair.reruns.assign(**{"extra.search_slot": slots})))
    assert said == [f"re-runs of hf repeat trial {best + 1}, and the best trial is {best}"]
