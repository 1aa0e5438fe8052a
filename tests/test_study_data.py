"""Studies as tables, with labels and with a line for each damaged file."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from ahf_cli.errors import InputError
from ahf_cli.report.study_data import load_study, pool
from ahf_cli.study.store import Study
from tests.simulated_studies import simulate_study
from tests.studies import NAN, write_study

PLAN = {"hf": 3, "adaptive_hf": 2}
FINALS = {"hf": [0.5, 0.7, NAN], "adaptive_hf": [2.25, 1.9]}


def rewrite(study: Study, recipe: str, slot: int, curve: pd.DataFrame) -> None:
    """Write another curve into a trial, with its checksum."""
    folder = study.trial(recipe, slot).path
    data = curve.to_csv(index=False).encode()
    (folder / "curve.csv").write_bytes(data)
    result = json.loads((folder / "result.json").read_text())
    result["files"]["curve.csv"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "result.json").write_text(json.dumps(result))


def test_frames_are_tidy_and_steps_are_read_on_demand(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", PLAN, FINALS)
    data = load_study(study.folder)
    assert (len(data.trials), len(data.curves), len(data.steps)) == (5, 14, 50)
    assert list(data.steps.columns[:4]) == ["recipe", "trial", "status", "step"]
    assert data.recipes == ["hf", "adaptive_hf"] and data.problems == () and data.missing == []
    assert not len(data.reruns) and data.design == "paper" and not data.independent


def test_the_committed_study_is_whole() -> None:
    data = load_study(Path(__file__).parents[1] / "results" / "reference" / "quick")
    assert data.problems == () and data.missing == []
    assert data.trials.groupby("recipe").size().to_dict() == dict.fromkeys(data.recipes, 4)
    assert set(data.explanations) >= set(data.recipes)


def test_reruns_are_read_beside_the_trials(tmp_path: Path) -> None:
    study = simulate_study(tmp_path, "fair", trials=3, points=4, reruns=2, recipes=("hf", "hf_published"))
    data = load_study(study.folder)
    assert data.design == "fair" and data.independent
    assert data.reruns.groupby("recipe")["seed"].apply(list).to_dict() == {
        "hf": [1000, 1001], "hf_published": [1000, 1001],
    }  # fmt: skip
    assert len(data.rerun_curves) == 2 * 2 * 4
    manifest = json.loads((study.folder / "manifest.json").read_text())
    manifest["rerun_plan"] = {"hf": 5, "hf_published": 2}
    (study.folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_study(study.folder).missing == ["hf 2 of 5 re-runs"]


def test_studies_side_by_side_are_labelled(tmp_path: Path) -> None:
    one = write_study(tmp_path, "one", {"hf": 1}, {"hf": [0.5]})
    two = write_study(tmp_path, "two", {"hf": 2}, {"hf": [0.4]})
    data = pool({"A": load_study(one.folder), "B": load_study(two.folder)})
    assert data.recipes == ["A/hf", "B/hf"] and data.planned == {"A/hf": 1, "B/hf": 2}
    assert set(data.steps["recipe"]) == {"A/hf", "B/hf"} == set(data.curves["recipe"])
    assert data.missing == ["B/hf 1 of 2"] and "exact Hessian" in data.explanations["A/hf"]
    assert load_study(one.folder).names == ("one",)


def test_damaged_curves_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 5}, {"hf": [0.5, 0.6, 0.7, 0.8, 0.9]})
    whole = study.trial("hf", 0).curve()
    rewrite(study, "hf", 0, whole.assign(train_loss=[2.3, NAN, 0.5]))
    rewrite(study, "hf", 1, whole[:2])
    rewrite(study, "hf", 2, whole.drop(columns="test_accuracy"))
    rewrite(study, "hf", 3, whole[::-1])
    rewrite(study, "hf", 4, whole[:0])
    data = load_study(study.folder)
    assert data.problems == (
        "trial hf/000: curve.csv has values that are missing or not finite",
        "trial hf/001: curve.csv ends at step 5 of 10",
        "trial hf/002: curve.csv lacks test_accuracy",
        "trial hf/003: curve.csv has steps out of order",
        "trial hf/004: curve.csv has no rows",
    )
    assert len(data.trials) == 5


def test_a_half_deleted_study_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", PLAN, FINALS)
    (study.trial("hf", 0).path / "result.json").unlink()
    (study.trial("hf", 1).path / "steps.csv.gz").unlink()
    (study.trial("adaptive_hf", 0).path / "curve.csv").write_bytes(b"torn")
    (study.folder / "manifest.json").unlink()
    data = load_study(study.folder)
    assert sorted(zip(data.trials["recipe"], data.trials["trial"], strict=True)) == [
        ("adaptive_hf", 1), ("hf", 1), ("hf", 2),
    ]  # fmt: skip
    assert len(data.steps) == 20 and data.planned == {}
    assert data.problems == (
        "trial adaptive_hf/000: curve.csv is not the file that was written with result.json",
    )
    assert not list(study.folder.rglob("*.corrupt-*"))


def test_an_empty_study_has_no_rows_and_a_missing_one_is_named(tmp_path: Path) -> None:
    study = write_study(tmp_path, "paper", PLAN, {})
    data = load_study(study.folder)
    assert not len(data.trials) and data.missing == ["hf 0 of 3", "adaptive_hf 0 of 2"]
    with pytest.raises(InputError, match="no study 'papr' in .*did you mean 'paper'"):
        load_study(tmp_path / "papr")


def test_steps_that_are_no_gzip_are_set_aside(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 2}, {"hf": [0.5, 0.6]})
    file = study.trial("hf", 0).path / "steps.csv.gz"
    file.write_bytes(gzip.compress(b"step\n1\n"))
    assert load_study(study.folder).trials["trial"].tolist() == [1]
