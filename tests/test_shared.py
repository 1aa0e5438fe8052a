"""Trials that two studies have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ahf_cli.cli import main
from ahf_cli.report.exhibits.new_seeds import pairs_of
from ahf_cli.report.shared import same_reruns, shared_sentences, shared_trials
from ahf_cli.report.study_data import StudyData, load_study, pool
from ahf_cli.report.verdict import Verdict
from tests.simulated_studies import simulate_study

N = 4
SAID = "4 trials of hf_published and 2 re-runs of hf_published are the same in one and two"


def simulated(tmp_path: Path, name: str, seed: int = 0) -> StudyData:
    recipes = ("hf_published",)
    return load_study(
        simulate_study(tmp_path, name, trials=N, points=3, reruns=2, recipes=recipes, seed=seed).folder
    )


def changed(data: StudyData, **identity: Any) -> StudyData:
    """Return a study with other sections of its identity."""
    ((name, manifest),) = data.manifests.items()
    return replace(data, manifests={name: {**manifest, "identity": {**manifest["identity"], **identity}}})


def pairs(a: StudyData, b: StudyData) -> pd.DataFrame:
    return shared_trials(pool({"one": a, "two": b}))


@pytest.fixture
def both(tmp_path: Path) -> tuple[StudyData, StudyData]:
    """Return two studies of equal content."""
    return simulated(tmp_path, "one"), simulated(tmp_path, "two")


def test_equal_studies_share_every_trial_and_re_run(both: tuple[StudyData, StudyData]) -> None:
    found = pairs(*both)
    assert found["phase"].value_counts().to_dict() == {"search": N, "rerun": 2} and found["same"].all()
    data = pool(dict(zip(("one", "two"), both, strict=True)))
    assert shared_sentences(data) == [f"{SAID}; they count once."]
    assert not len(shared_trials(both[0])) and shared_sentences(both[0]) == []


def test_neither_the_name_nor_the_slot_decides(both: tuple[StudyData, StudyData]) -> None:
    a, b = both
    identity = b.identity
    moved = changed(b, recipes={"other": identity["recipes"]["hf_published"]})
    moved = replace(
        moved, trials=b.trials.assign(recipe="other", trial=9 - b.trials["trial"]), reruns=b.reruns[:0]
    )
    found = pairs(a, moved)
    assert (found["trial_a"] + found["trial_b"]).tolist() == [9] * N and found["same"].all()
    assert shared_sentences(pool({"one": a, "two": moved})) == [
        "4 trials of hf_published = other are the same in one and two; they count once."
    ]


@pytest.mark.parametrize(
    ("column", "value"), [("seed", 7), ("planned_steps", 99), ("params.lr", 0.5), ("status", "failed")]
)
def test_another_setting_is_another_trial(
    both: tuple[StudyData, StudyData], column: str, value: object
) -> None:
    a, b = both
    trials = b.trials.copy()
    trials[column] = trials[column].where(trials.index != 0, value)
    assert (pairs(a, replace(b, trials=trials))["phase"] == "search").sum() == N - 1


@pytest.mark.parametrize(
    "identity",
    [
        {"task": {"data": "cifar10"}},
        {"recipes": {"hf_published": {"structure": {"curvature": "ggn"}, "fixed": {}}}},
        {"recipes": {}},
    ],
)
def test_another_task_or_structure_shares_nothing(
    both: tuple[StudyData, StudyData], identity: Mapping[str, Any]
) -> None:
    assert not len(pairs(both[0], changed(both[1], **identity)))


def test_an_evaluation_on_other_images_of_the_training_set_is_no_other_trial(
    both: tuple[StudyData, StudyData],
) -> None:
    a, b = both
    assert pairs(a, replace(b, trials=b.trials.assign(train_loss=0.1)))["same"].all()


def test_other_results_of_equal_settings_are_said(both: tuple[StudyData, StudyData]) -> None:
    a, b = both
    trials = b.trials.copy()
    ran = trials.index[trials["status"] == "ok"][0]
    trials.loc[ran, "test_loss"] += 1e-9
    other = replace(b, trials=trials, reruns=b.reruns[:0])
    assert pairs(a, other)["same"].tolist().count(False) == 1
    assert set(shared_sentences(pool({"one": a, "two": other}))) == {
        "3 trials of hf_published are the same in one and two; they count once.",
        "1 trial of hf_published has equal settings and seeds in one and two, but other results.",
    }


def test_the_code_is_that_of_the_session_in_which_a_trial_began(both: tuple[StudyData, StudyData]) -> None:
    def with_sessions(data: StudyData, dirty: bool) -> StudyData:
        ((name, manifest),) = data.manifests.items()
        sessions = [
            {"commit": "a" * 40, "dirty": False, "started": "2026-01-01"},
            {"commit": "b" * 40, "dirty": dirty, "started": "2026-01-03"},
        ]
        day = data.trials["trial"].map(lambda slot: f"2026-01-0{slot + 1}")
        found = replace(data, trials=data.trials.assign(started=day), reruns=data.reruns[:0])
        return replace(found, manifests={name: {**manifest, "sessions": sessions}})

    clean, dirty = with_sessions(both[0], False), with_sessions(both[1], True)
    assert pairs(clean, clean)["code"].tolist() == [True] * 4
    assert pairs(clean, dirty)["code"].tolist() == [True, True, False, False]


def test_the_same_re_runs_are_not_tested(tmp_path: Path, both: tuple[StudyData, StudyData]) -> None:
    data = pool({"one": both[0], "two": both[1]})
    assert same_reruns(data) == {frozenset({"one/hf_published", "two/hf_published"})}
    assert not len(pairs_of(data).numbers)
    data = pool({"one": both[0], "two": both[1], "three": simulated(tmp_path, "three", seed=1)})
    numbers = pairs_of(data).numbers
    assert set(zip(numbers["a"], numbers["b"], strict=True)) == {
        ("one/hf_published", "three/hf_published"), ("two/hf_published", "three/hf_published"),
    }  # fmt: skip


def test_a_refused_verdict_says_it_too() -> None:
    lines = Verdict((), False, "", ("seed differs",), shared=(SAID,)).lines()
    assert lines == ["No verdict, since conditions differ:", "- seed differs", SAID]


def test_compare_prints_the_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        simulated(tmp_path, name)
    studies = ["--study", "one", "--study", "two", "--results", str(tmp_path)]
    assert main(["compare", "tables", *studies]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(SAID) == 1 and "no named contrast" not in printed
