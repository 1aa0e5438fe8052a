"""Summaries of searches, against the trials on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ahf_cli.cli import main
from ahf_cli.cli.config import preset_purpose
from ahf_cli.cli.session import summary_lines
from ahf_cli.config.load import load, presets
from ahf_cli.errors import IncompleteError
from ahf_cli.optim.layers.compiled import numerics
from ahf_cli.search import run as runs
from ahf_cli.search import single
from ahf_cli.search.search import Search, SearchPlan
from ahf_cli.search.summary import refuse_vanished, summarize
from ahf_cli.study.store import Study
from ahf_cli.study.trials import best_trial, own_value
from tests.conftest import REFERENCE
from tests.searches import plan, result_of, run
from tests.studies import RESULT, write_study

CAP = math.log(10)


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def ending(loss: float) -> dict[str, float]:
    return {**RESULT.measured, "train_loss": loss}


def test_the_best_trial_is_named_by_its_own_value_and_ties_are_broken_by_it() -> None:
    capped = [
        replace(RESULT, slot=s, value=CAP, measured=ending(loss)) for s, loss in enumerate((8634.0, 45.0))
    ]
    best = best_trial(capped)
    assert best is not None and (best.slot, own_value(best)) == (1, 45.0)
    gone = replace(RESULT, slot=2, status="diverged", value=CAP)
    assert best_trial([gone]) is None and math.isnan(own_value(gone))
    below = replace(RESULT, slot=3, value=1.0, measured=ending(1.0))
    assert best_trial([*capped, gone, below]) == below


def test_the_summary_of_a_study_prints_values_of_its_trials(quick: Path) -> None:
    study = Study(quick, "quick")
    summary = summarize(study, load("quick"), 1.0)
    for name, found in summary["recipes"].items():
        (own,) = [r for r in study.finished(name) if r.slot == found["best_trial"]]
        assert found["best_value"] == own.measured["train_loss"] and found["missing"] == 0
        assert any(f"train loss {found['best_value']:.4f}" in line for line in summary_lines(summary))
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
    assert capsys.readouterr().out.startswith("all trials of quick are finished in ")
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


def test_other_settings_are_refused_before_anything_is_said_of_fewer_trials(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(quick)
    words = ["search", "--preset", "quick", "--results", str(quick), "--trials", "3", "-o", "seed=5"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "seed: on disk 0, asked for 5" in said and "are finished" not in said
    assert state(quick) == before


def test_trials_beyond_those_asked_for_count_among_the_best(tmp_path: Path) -> None:
    """A new index and fewer trials keep the best trial, and so its re-runs."""
    study = Study(tmp_path, "s")
    run(study, plan(8, names=("hf",)))
    whole = Search(plan(8, names=("hf",)), study.trials).best()["hf"]
    few = whole.slot  # the best lies beyond these
    assert few > 0
    assert Search(replace(plan(few, names=("hf",)), known=8), study.trials).best()["hf"] == whole


def test_a_new_index_breaks_ties_of_capped_values_as_the_folder_does(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    for job in run(Study(tmp_path, "drawn"), plan(2, names=("hf",))):
        for slot in job.params:
            loss = (8634.0, 45.0)[slot]
            study.trial("hf", slot).finish(
                replace(result_of(job, slot), value=CAP, measured=ending(loss)), [], []
            )
    assert Search(plan(2, names=("hf",)), study.trials).best()["hf"].slot == 1


@pytest.mark.usefixtures("one_figure")
def test_reproduce_of_a_finished_study_says_so_first_and_where_its_figures_are(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {p: p.read_bytes() for p in quick.rglob("result.json")}
    assert main(["reproduce", "--preset", "quick", "--results", str(quick)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"study 'quick' in {quick}/quick is finished; no trial is trained")
    assert f"figures in {quick}/quick/report/figures, {quick}/quick/prerun/figures" in said.out
    assert {p: p.read_bytes() for p in quick.rglob("result.json")} == results


@pytest.mark.parametrize("name", presets())
def test_every_preset_declares_its_duration_once(name: str) -> None:
    text = presets()[name].read_text(encoding="utf-8")
    assert "On two cores: " in preset_purpose(text) and text.lower().count("on two cores") == 1


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize("gone", ["quick/trials/hf/001", "quick"])
@pytest.mark.parametrize("command", ["search", "reproduce"])
def test_what_vanishes_while_a_command_runs_is_exit_code_3_after_the_summary(
    command: str, gone: str, quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conduct = runs.conduct

    def deleting(search: SearchPlan, *rest: Any) -> bool:
        done: bool = conduct(search, *rest)
        if search.stream == 0:
            shutil.rmtree(quick / gone)
        return done

    monkeypatch.setattr(runs, "conduct", deleting)
    assert main([command, "--preset", "quick", "--results", str(quick), "--json", "-q"]) == 3
    said = capsys.readouterr()
    summary = json.loads(said.out)
    found = (summary if command == "search" else summary["search"])["recipes"]["hf"]
    assert found["missing"] == (1 if "hf" in gone else 4)
    assert f"hf {4 - found['missing']} of 4 trials" in said.err and str(quick / "quick") in said.err
    assert len(said.err.splitlines()) == 1


def test_a_run_that_vanishes_is_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "_outcome", lambda *unused: RESULT)  # and nothing is on disk
    assert main(["train", "hf", "--preset", "smoke", "--results", str(tmp_path), "-q"]) == 3
    assert "hf: the finished trial has vanished from " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_rm_follows_no_lock_that_is_no_file(kind: str, tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 1}, {"hf": [0.5]})
    (outside := tmp_path / "outside").write_text("mine")
    (lock := study.folder / ".lock").unlink(missing_ok=True)
    if kind == "link":
        lock.symlink_to(outside)
    else:
        os.mkfifo(lock)
    assert main(["rm", "s", "--yes", "--results", str(tmp_path)]) == 0
    assert outside.read_text() == "mine" and not study.folder.exists()


def test_a_dry_run_counts_what_is_left(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(quick / "quick" / "trials" / "adaptive_hf" / "002")
    before = state(quick)
    words = ["search", "--preset", "quick", "--results", str(quick), "--dry-run", "--json", "-q"]
    assert main(words) == 0
    recipes = json.loads(capsys.readouterr().out)["recipes"]
    assert {name: (r["trials"], r["planned"]) for name, r in recipes.items()} == {"adaptive_hf": (1, 4)}
    assert main([*words[:-2], "-o", "run.batch=2"]) == 0
    said = capsys.readouterr().out
    assert "each with 2 trials side by side" in said and f"numerical path {numerics('cpu')}" in said
    assert state(quick) == before
