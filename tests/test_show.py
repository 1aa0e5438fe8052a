"""`ahf show`: the findings and the figure of a trial, by the trial's end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ahf_cli.cli import main
from ahf_cli.report.diagnosis import diagnose, trial_drawing
from ahf_cli.study.columns import rows_frame
from ahf_cli.training.records import StepRow, TrialResult
from tests.studies import NAN, finals, write_study

QUICK = ["--results", str(Path(__file__).parents[1] / "results" / "reference")]


def result(**changes: object) -> TrialResult:
    made = TrialResult("hf", 0, "ok", 60, 60, 0.5, "train_loss", {"lr": 0.01, "damping": 10.0}, 0,
                       finals(0.5, 0.5, 0.8, NAN, NAN), 1.0)  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def steps(n: int = 60, **columns: object) -> pd.DataFrame:
    row = StepRow(1, 2.3, 2.2, 1.0, 9, 3, 0.01, 0.01, NAN, 10, 0.5, -1, 9, "progress", 1, 1)
    frame = rows_frame([replace(row, step=t) for t in range(1, n + 1)], StepRow)
    return frame.assign(**columns)  # type: ignore[arg-type]


def said(found: TrialResult, frame: pd.DataFrame) -> str:
    return " ".join(diagnose(found, frame, "trained", 50).findings)


def test_a_damping_runaway_is_called_so() -> None:
    text = said(result(stalled=True), steps(damping=[10 * 1.5**t for t in range(60)], reduction_ratio=0.1))
    assert "Damping runaway: λ went from 10 to 2.45e+11, rising at 100% of the steps" in text
    assert "below ¼ at 100% of the steps" in text
    assert "runaway" not in said(result(), steps()) and "λ stayed at 10." in said(result(), steps())


def test_zero_steps_are_a_share() -> None:
    text = said(result(zero_steps=15), steps(step_size=0.0))
    assert "at 15 of 60 steps (25%) Eq. 3 was negative" in text


def test_updates_that_hardly_move_are_named() -> None:
    assert "the weights hardly move" in said(result(stalled=True), steps(update_l2=1e-6))


def test_the_first_value_that_is_not_finite_is_named_with_its_step() -> None:
    lost = [0.01] * 58 + [float("inf"), NAN]
    text = said(result(status="diverged", steps=60), steps(update_l2=lost, loss_after=[2.2] * 58 + [NAN] * 2))
    assert "First value that is not finite: update l2, loss after at step 59." in text
    assert "the step itself is not recorded" in said(result(status="diverged"), steps())


def test_cg_stops_are_counted_and_spikes_found() -> None:
    stop = ["progress"] * 45 + ["negative_curvature"] * 15
    text = said(result(), steps(stop=stop, loss=[2.3] * 30 + [50.0] + [1.0] * 29))
    assert (
        "CG: 9.0 iterations a step (most 9 of 50); CG stopped by progress 75%, negative curvature 25%."
        in text
    )
    assert "a spike to 50 at step 31" in text


def test_without_steps_the_outcome_is_all_that_is_said() -> None:
    found = diagnose(result(), steps(0), "trained")
    assert found.outcome.startswith("trained in 60 steps: training loss 0.5000")
    assert found.findings == ("Its steps are not on disk (steps.csv.gz), so there are no findings.",)
    assert diagnose(result(status="failed", error="out of memory"), steps(0), "failed").outcome.startswith(
        "failed: out of"
    )


def test_one_trial_of_the_committed_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "quick", "hf_published/3", *QUICK, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "hf_published/003 stood still" in text and "Damping runaway: λ went from 21.5" in text
    assert (tmp_path / "figures" / "trial_hf_published_003.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "data" / "trial_hf_published_003.csv")) == 60


def test_all_trials_are_listed_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "quick", *QUICK, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    outcomes = {t["trial"]: t["outcome"] for t in document["trials"]}
    assert len(outcomes) == 20 and outcomes["hf/001"].startswith("diverged at step 21")
    assert main(["show", "quick", "--prerun", *QUICK]) == 0
    assert "adaptive_hf/003" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["quik"], 2, "did you mean 'quick'"),
        (["quick", "hf"], 2, "trial must be RECIPE/SLOT, such as hf/000, got 'hf'"),
        (["quick", "hf_gn/0"], 2, "quick has no recipe 'hf_gn'; did you mean 'hf_ggn'?"),
        (["quick", "hf/9"], 2, "hf has no slot 009; it has 000 to 003"),
        (["quick", "../hf/0"], 2, "quick has no recipe '../hf'"),
    ],
)
def test_bad_names_are_one_clear_line(
    words: list[str], code: int, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", *words, *QUICK]) == code
    captured = capsys.readouterr()
    assert error in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_an_unfinished_trial_and_a_folder_that_cannot_be_written_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, "s", {"hf": 2}, {"hf": [0.5]})
    study.trial("hf", 1).write_params({"params": {}})
    assert main(["show", "s", "hf/1", "--results", str(tmp_path)]) == 3
    assert "trial hf/001 of s is not finished" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["show", "s", "hf/0", "--results", str(tmp_path), "--out", str(tmp_path / "file")]) == 2
    assert "choose another folder with --out" in capsys.readouterr().err


def test_a_recipe_without_linear_systems_is_not_asked_about_them() -> None:
    frame = steps(12, damping=NAN, reduction_ratio=NAN, cg_iterations=0, stop="inactive")
    text = said(result(), frame)
    assert "Batch loss" in text and not any(word in text for word in ("CG", "λ", "Reduction ratio"))
    drawn = trial_drawing(result(), frame, "trained")
    assert not isinstance(drawn, str) and drawn.panels == 3
