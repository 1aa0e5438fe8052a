"""Files of one trial: a finished trial is kept, and a damaged file is set aside."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from ahf_cli.study.files import atomic_write
from ahf_cli.study.frames import curves_frame, steps_frame
from ahf_cli.study.store import Study
from tests.studies import CURVE, RESULT, STEPS

MANIFEST = {"command": "ahf search", "commit": "abc", "versions": {"torch": "2"}, "plan": {"hf": 2}}


def opened(path: Path, **identity: object) -> Study:
    study = Study(path, "s")
    study.open_for_writing("seed: 0\n", {"seed": 0, "task": {"name": "lenet"}, **identity}, MANIFEST)
    return study


def test_a_trial_reads_back_as_it_was_written(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        trial = pickle.loads(pickle.dumps(study.trial("hf", 0)))
        trial.write_params({"lr": 0.1})
        trial.save_checkpoint(b"one", 1)
        assert trial.result() is None
        assert trial.finish(RESULT, CURVE, STEPS)
    assert study.trials_folder / "hf" / "000" == trial.path
    got = trial.result()
    assert got is not None and math.isnan(got.measured["validation_loss"]) and math.isnan(got.extra["peak"])
    known = ("train_loss", "test_loss", "test_accuracy")
    assert list(got.measured) == list(RESULT.measured)
    assert [got.measured[k] for k in known] == [RESULT.measured[k] for k in known]
    assert replace(got, measured={}, extra={}) == replace(RESULT, measured={}, extra={})
    assert trial.read_params() == {"lr": 0.1}
    assert [r.measured["train_loss"] for r in CURVE] == trial.curve()["train_loss"].tolist()
    assert trial.steps()["stop"].tolist() == ["progress", "progress"]
    assert "NaN" not in (trial.path / "result.json").read_text()
    assert sorted(p.name for p in trial.path.iterdir()) == [
        "curve.csv", "params.json", "result.json", "steps.csv.gz",
    ]  # fmt: skip
    assert gzip.decompress((trial.path / "steps.csv.gz").read_bytes()).startswith(b"step,loss,loss_after")


def test_the_bytes_of_a_trial_do_not_depend_on_the_clock(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        trial = Study(tmp_path, name).trial("hf", 0)
        trial.finish(RESULT, CURVE, STEPS)
        contents.append({p.name: p.read_bytes() for p in trial.path.iterdir()})
    assert contents[0] == contents[1]
    assert contents[0]["steps.csv.gz"][4:8] == bytes(4)  # gzip's time stamp


@pytest.mark.parametrize("name", ["result.json", "curve.csv", "steps.csv.gz"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.4, 0.8, 0.99, -1.0])
def test_a_truncated_file_makes_the_trial_unfinished_and_stays_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, part: float
) -> None:
    study = Study(tmp_path, "s")
    trial = study.trial("hf", 0)
    trial.finish(RESULT, CURVE, STEPS)
    whole = (trial.path / name).read_bytes()
    torn = whole[: int(len(whole) * part)] if part >= 0 else whole[:-2]
    (trial.path / name).write_bytes(torn)
    with caplog.at_level(logging.WARNING, "ahf"):
        assert trial.result() is None
    assert name in caplog.text
    assert (trial.path / f"{name}.corrupt-1").read_bytes() == torn
    assert study.finished("hf") == [] and curves_frame(study).empty
    assert trial.finish(RESULT, CURVE, STEPS) and trial.result() is not None
    (trial.path / name).write_bytes(b"x")
    assert trial.result() is None
    assert (trial.path / f"{name}.corrupt-2").exists()


@pytest.mark.parametrize(
    "change",
    [{"status": "fine"}, {"steps": "many"}, {"params": None}, {"recipe": "adaptive_hf"}, {"files": {}}],
)
def test_a_wrong_value_in_result_json_is_not_believed(tmp_path: Path, change: dict[str, object]) -> None:
    trial = Study(tmp_path, "s").trial("hf", 0)
    trial.finish(RESULT, CURVE, STEPS)
    file = trial.path / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert trial.result() is None and (trial.path / "result.json.corrupt-1").exists()


def test_a_changed_digit_in_the_curve_is_noticed(tmp_path: Path) -> None:
    trial = Study(tmp_path, "s").trial("hf", 0)
    trial.finish(RESULT, CURVE, STEPS)
    file = trial.path / "curve.csv"
    file.write_bytes(file.read_bytes().replace(b"2.3", b"1.3", 1))
    assert trial.result() is None


def test_steps_may_be_left_out(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    study.trial("hf", 0).finish(RESULT, CURVE, STEPS)
    (study.trial("hf", 0).path / "steps.csv.gz").unlink()
    assert len(study.finished("hf")) == 1
    assert steps_frame(study, "hf").empty and "update_l2" in steps_frame(study, "hf")


def test_a_finished_trial_is_kept_and_a_failed_one_replaced(tmp_path: Path) -> None:
    trial = Study(tmp_path, "s").trial("hf", 0)
    assert trial.finish(replace(RESULT, status="failed", error="out of memory"), [], [])
    assert trial.finish(RESULT, CURVE, STEPS)
    assert not trial.finish(replace(RESULT, value=9.0), CURVE, STEPS)
    kept = trial.result()
    assert kept is not None and kept.value == RESULT.value


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    trial = Study(tmp_path, "s").trial("hf", 0)
    assert trial.load_checkpoints() == []
    for step in (1, 2, 3):
        trial.save_checkpoint(b"state %d" % step, step)
    assert trial.load_checkpoints() == [b"state 3", b"state 2"]
    newest = trial.path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes().replace(b"state 3", b"state 9"))
    assert trial.load_checkpoints() == [b"state 2"]
    assert (trial.path / "checkpoint.pt.corrupt-1").exists()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(tmp_path / "x", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"old"
