"""What commands say of a search is what its trials are."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ahf_cli.cli import main
from ahf_cli.cli.remaining import refuse_vanished
from ahf_cli.cli.summary import summarize, summary_lines
from ahf_cli.errors import IncompleteError
from ahf_cli.experiment.best import best_trial, own_value
from ahf_cli.experiment.config import load
from ahf_cli.study.pack import unpack
from ahf_cli.study.store import Study, find_study
from tests.made_up import write_study
from tests.test_store import RESULT

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
CAP = math.log(10)


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """A results folder with the finished study `quick` in folders."""
    unpack(find_study(REFERENCE, "quick"), tmp_path)
    return tmp_path


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_the_best_trial_is_named_by_its_own_value_and_ties_are_broken_by_it() -> None:
    capped = [replace(RESULT, slot=s, value=CAP, train_loss=loss) for s, loss in enumerate((8634.0, 45.0))]
    best = best_trial(capped)
    assert best is not None and (best.slot, own_value(best)) == (1, 45.0)
    gone = replace(RESULT, slot=2, status="diverged", value=CAP)
    assert best_trial([gone]) is None and math.isnan(own_value(gone))
    below = replace(RESULT, slot=3, value=1.0, train_loss=1.0)
    assert best_trial([*capped, gone, below]) == below


def test_the_summary_of_a_study_prints_values_of_its_trials(quick: Path) -> None:
    study = Study(quick, "quick")
    summary = summarize(study, load("quick"), 1.0)
    for name, found in summary["recipes"].items():
        (own,) = [r for r in study.finished(name) if r.slot == found["best_trial"]]
        assert found["best_value"] == own.train_loss and found["missing"] == 0
        assert any(
            f"training loss {own.train_loss:.4f}" in s or f"{own.train_loss:.4f}" in s
            for s in summary_lines(summary)
        )
    refuse_vanished(summary)


def test_vanished_trials_are_incomplete(quick: Path) -> None:
    shutil.rmtree(quick / "quick" / "trials" / "hf" / "001")
    summary = summarize(Study(quick, "quick"), load("quick"), 1.0)
    with pytest.raises(
        IncompleteError, match=r"have vanished from .*: hf 3 of 4 trials; the same command"
    ) as caught:
        refuse_vanished(summary)
    assert caught.value.exit_code == 3


def test_fewer_trials_than_a_study_has_change_no_file(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(quick)
    words = ["search", "--preset", "quick", "--results", str(quick)]
    assert main([*words, "--trials", "3"]) == 0
    assert "the 3 asked for are finished, and no file is changed" in capsys.readouterr().err
    assert state(quick) == before
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("nothing is left to do: all trials of quick are finished in ")
    assert state(quick) == before


def test_rm_of_a_link_keeps_the_study_that_it_leads_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path / "far", "s", {"hf": 1}, {"hf": [0.5]})
    before = state(study.folder)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "s").symlink_to(study.folder)
    assert main(["rm", "s", "--yes", "--results", str(tmp_path / "own")]) == 0
    assert f"{study.folder} stays as it is" in capsys.readouterr().out
    assert not (tmp_path / "own" / "s").is_symlink() and state(study.folder) == before


def test_a_reference_study_is_deleted_by_its_path_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REFERENCE / "signs", tmp_path / "reference" / "signs")
    words = ["--yes", "--results", str(tmp_path)]
    assert main(["rm", "signs", *words]) == 2
    assert "is a reference study; ahf rm takes its path" in capsys.readouterr().err
    assert main(["rm", str(tmp_path / "reference" / "signs"), *words]) == 0
    assert not (tmp_path / "reference" / "signs").exists()
