"""The committed studies keep their identities, columns and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ahf_cli.report.comparison import Comparison
from ahf_cli.report.exhibits.exhibit import Choices
from ahf_cli.report.study_data import pool, read_study
from ahf_cli.study.find import find_study
from ahf_cli.study.frames import curves_frame, steps_frame, trials_frame

REFERENCE = Path("results/reference")
GOLDEN = Path(__file__).parent / "golden"
STUDIES = sorted(path.parent.name for path in REFERENCE.glob("*/manifest.json"))


def test_there_are_studies() -> None:
    assert len(STUDIES) == 38


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_the_identity_of_its_manifest(name: str) -> None:
    manifest = json.loads((REFERENCE / name / "manifest.json").read_text())
    config = find_study(REFERENCE, str(REFERENCE / name)).config()
    assert json.loads(json.dumps(config.identity())) == manifest["identity"]


def tables(name: str) -> dict[str, pd.DataFrame]:
    """Trials and curves of a study, and the steps of each recipe."""
    study = find_study(REFERENCE, str(REFERENCE / name))
    steps = {f"steps of {recipe}": steps_frame(study, recipe) for recipe in study.recipes()}
    kept = {name: frame for name, frame in steps.items() if len(frame)}
    return {"trials": trials_frame(study), "curves": curves_frame(study), **kept}


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_of_a_study_keep_their_columns(name: str) -> None:
    expected = json.loads((GOLDEN / "reference_columns.json").read_text())
    frames = tables(name)
    found = {key: {c: str(t) for c, t in frame.dtypes.items()} for key, frame in frames.items()}
    assert found == {key: expected[name][key] for key in frames}
    assert {key: len(frame) for key, frame in frames.items()} == expected[name]["rows"]


def numbers(document: dict[str, Any]) -> dict[str, object]:
    """Return the leaves of a document by their paths; without the verdict's sentences."""
    leaves: dict[str, object] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{path}/{key}", inner)
        elif not path.startswith("/verdict/"):
            leaves[path] = value

    walk("", document)
    return leaves


@pytest.mark.parametrize("name", ["quick", "robust"])
def test_a_comparison_keeps_its_numbers(name: str) -> None:
    """Each cell of each table equals its value in the committed file."""
    data = pool({name: read_study(find_study(REFERENCE, str(REFERENCE / name)))})
    found = numbers(json.loads(json.dumps(Comparison(data, Choices(target=0.8, attribute=True)).document)))
    expected = numbers(json.loads((GOLDEN / f"{name}_comparison.json").read_text()))
    assert sorted(found) == sorted(expected) and len(found) > 500
    for path, value in expected.items():
        known = pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True) if isinstance(value, float) else value
        assert found[path] == known, path
