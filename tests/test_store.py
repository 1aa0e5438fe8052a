"""A study on disk: identity, growth, lock, names and tables."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pytest import approx

from ahf_cli.cli import main
from ahf_cli.errors import AhfError, InputError
from ahf_cli.study.find import find_study, study_names
from ahf_cli.study.frames import curves_frame, steps_frame, trials_frame, write_tables
from ahf_cli.study.status import survey
from ahf_cli.study.store import Study
from tests.studies import CURVE, RESULT, STEPS

NAN = math.nan
MANIFEST = {"command": "ahf search", "commit": "abc", "versions": {"torch": "2"}, "plan": {"hf": 2}}


def opened(path: Path, **identity: object) -> Study:
    study = Study(path, "s")
    study.open_for_writing("seed: 0\n", {"seed": 0, "task": {"name": "lenet"}, **identity}, MANIFEST)
    return study


def test_the_same_identity_resumes_and_the_plan_only_grows(tmp_path: Path) -> None:
    opened(tmp_path).close()
    created = Study(tmp_path, "s").manifest()["created"]
    for n in (5, 3):
        with Study(tmp_path, "s") as study:
            study.open_for_writing(
                "seed: 0\nworkers: 2\n", {"task": {"name": "lenet"}, "seed": 0.0}, {"plan": {"hf": n, "b": 1}}
            )
    manifest = study.manifest()
    assert study.planned() == {"hf": 5, "b": 1}
    assert manifest["created"] == created and manifest["schema"] == 1 and len(manifest["sessions"]) == 3
    assert manifest["sessions"][0]["commit"] == "abc" and manifest["sessions"][0]["started"]
    assert (study.folder / "config.yaml").read_text() == "seed: 0\nworkers: 2\n"


def test_another_identity_is_refused_with_the_difference_and_nothing_changes(tmp_path: Path) -> None:
    opened(tmp_path, train={"steps": 10, "batch": 128}).close()
    before = {p: p.read_bytes() for p in (tmp_path / "s").glob("*.*")}
    study = Study(tmp_path, "s")
    identity = {"seed": 1, "task": {"name": "lenet"}, "train": {"steps": 10}, "design": "fair"}
    with pytest.raises(InputError) as caught:
        study.open_for_writing("seed: 1\n", identity, MANIFEST)
    assert caught.value.lines[1:] == [
        "seed: on disk 0, asked for 1",
        "train.batch: on disk 128, asked for nothing",
        'design: on disk nothing, asked for "fair"',
    ]
    assert {p: p.read_bytes() for p in (tmp_path / "s").glob("*.*")} == before
    opened(tmp_path, train={"steps": 10, "batch": 128}).close()  # the refusal released the lock


def test_a_study_grows_in_recipes_and_in_nothing_else(tmp_path: Path) -> None:
    def identity(**recipes: int) -> dict[str, object]:
        parts = {name: {"fixed": {"rule": rule}} for name, rule in recipes.items()}
        spaces = {name: {"lr": {"low": 0, "high": rule}} for name, rule in recipes.items()}
        plugins = (
            {"plugins": {f"recipe {name}": "0" for name in recipes if name == "c"}} if "c" in recipes else {}
        )
        return {"train": {"longer": recipes}, "recipes": parts, "spaces": spaces, **plugins}

    opened(tmp_path, **identity(a=1)).close()
    opened(tmp_path, **identity(a=1, b=2)).close()
    opened(tmp_path, **identity(b=2, a=1, c=3)).close()
    study = Study(tmp_path, "s")
    assert study.manifest()["identity"]["recipes"].keys() == {"a", "b", "c"}
    for other, lines in (
        (identity(a=1, b=2, c=4, d=5), ["train.longer.c", "recipes.c.fixed.rule", "spaces.c.lr.high"]),
        (
            identity(a=1, c=3, d=5),
            ["train.longer.b", "recipes.b.fixed.rule", "spaces.b.lr.low", "spaces.b.lr.high"],
        ),
        ({**identity(a=1, b=2, c=3, d=5), "plugins": {"recipe c": "1"}}, ["plugins.recipe c"]),
        ({**identity(a=1, b=2, c=3, d=5), "seed": 1}, ["seed"]),
    ):
        with pytest.raises(InputError) as caught:
            opened(tmp_path, **other)
        assert [line.partition(":")[0] for line in caught.value.lines[1:]] == lines


def test_what_cannot_be_told_to_be_the_same_study_is_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    study.trial("hf", 0).finish(RESULT, CURVE, STEPS)
    with pytest.raises(InputError, match="holds trials but no manifest.json"):
        opened(tmp_path)
    (study.folder / "manifest.json").write_text('{"schema": 1, "iden')
    with pytest.raises(InputError, match="manifest.json is damaged"):
        opened(tmp_path)
    (study.folder / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(InputError, match="schema 2"):
        study.planned()


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"cannot write results to {tmp_path / 'file' / 's'}"):
        opened(tmp_path / "file")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a b", "x" * 65, "x\n"])
def test_names_are_never_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="study name must be 1 to 64"):
        Study(tmp_path, name)
    with pytest.raises(InputError, match="recipe name must be"):
        Study(tmp_path, "s").trial(name, 0)


def test_a_missing_study_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study 'papr' in .*; it has none"):
        find_study(tmp_path, "papr")
    for name in ("paper", "fair"):
        Study(tmp_path, name).prerun.trial("hf", 0).finish(RESULT, CURVE, STEPS)
    (tmp_path / "notes").mkdir()
    assert study_names(tmp_path) == ["fair", "paper"]
    with pytest.raises(InputError, match="did you mean 'paper'"):
        find_study(tmp_path, "papr")


def test_frames_join_trials_by_recipe_in_the_order_of_the_plan(tmp_path: Path) -> None:
    with Study(tmp_path, "s") as study:
        study.open_for_writing("", {}, {"plan": {"z": 2, "hf": 2}})
        for recipe, slot in (("hf", 1), ("hf", 0), ("z", 1000), ("a", 2)):
            study.trial(recipe, slot).finish(replace(RESULT, recipe=recipe, slot=slot), CURVE, STEPS)
        assert study.recipes() == ["z", "hf", "a"]
        trials = trials_frame(study)
        assert trials["trial"].tolist() == [1000, 0, 1, 2] and trials["params.lr"].tolist() == [0.1] * 4
        assert len(curves_frame(study)) == 12 and len(steps_frame(study, "hf")) == 4
        write_tables(study)
    assert (study.folder / "trials.csv").read_text().count("\n") == 5
    assert (study.folder / "curves.csv").read_text().count("\n") == 13


HOLD = """
    import sys, time
    from pathlib import Path
    from ahf_cli.study.store import Study
    study = Study(Path(sys.argv[1]), "s")
    study.open_for_writing("seed: 0\\n", {"seed": 0, "task": {"name": "lenet"}}, {})
    print("open", flush=True); time.sleep(60)
"""
WRITE = """
    import sys
    from pathlib import Path
    from dataclasses import replace
    from tests.studies import CURVE, RESULT, STEPS
    from ahf_cli.study.store import Study
    print("open", flush=True)
    for slot in range(10_000):
        trial = Study(Path(sys.argv[1]), "s").trial("hf", slot)
        trial.save_checkpoint(bytes(10_000), slot)
        trial.finish(replace(RESULT, slot=slot), CURVE, STEPS)
"""


def start(program: str, path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_study_is_open_in_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    try:
        with pytest.raises(AhfError, match=f"study 's' is in use by process {process.pid} on "):
            opened(tmp_path)
        assert str(Study(tmp_path, "s").holder()).startswith(f"{process.pid} on ")
    finally:
        kill(process)
    assert Study(tmp_path, "s").holder() is None  # the name in the file is of the killed process
    opened(tmp_path).close()


def test_processes_that_ask_for_the_holder_do_not_see_each_other(tmp_path: Path) -> None:
    opened(tmp_path).close()
    lock = tmp_path / "s" / ".lock"
    before = lock.read_bytes()
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another process that asks
        assert Study(tmp_path, "s").holder() is None
        with pytest.raises(AhfError, match="study 's' is in use by process unknown"):
            opened(tmp_path)
    assert lock.read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    opened(tmp_path).close()
    (precious := tmp_path / "precious").write_text("mine")
    (lock := tmp_path / "s" / ".lock").unlink()
    if kind == "link":
        lock.symlink_to(precious)
    else:
        os.mkfifo(lock) if kind == "fifo" else lock.mkdir()
    rule = "is a link, and links are not followed" if kind == "link" else "must be a regular file"
    with pytest.raises(InputError, match=rf"\.lock: {rule}"):
        opened(tmp_path)
    assert Study(tmp_path, "s").holder() is None
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("at", [1, 2, 9, 20])
def test_a_killed_writer_leaves_only_whole_trials(
    tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    process = start(WRITE, tmp_path)
    study = Study(tmp_path, "s")
    while not (study.trial("hf", at - 1).path / "curve.csv").exists():
        time.sleep(0.001 * at)
    kill(process)
    written = list(study.trials_folder.glob("*/*/result.json"))
    with caplog.at_level(logging.WARNING, "ahf"):
        assert len(study.finished("hf")) == len(written)
    assert not caplog.records and len(written) >= at - 1
    for folder in study.trials_folder.glob("hf/*"):
        if not (folder / "result.json").exists():  # the one it was killed in
            trial = study.trial("hf", int(folder.name))
            assert trial.finish(replace(RESULT, slot=trial.slot), CURVE, STEPS)
    assert len(study.finished("hf")) == len(list(study.trials_folder.glob("hf/*")))


def test_a_running_trial_can_be_watched_and_a_torn_row_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path) as study:
        trial = study.trial("hf", 0)
        now = datetime.now(UTC).isoformat()
        trial.write_params({"recipe": "hf", "slot": 0, "params": {}, "started": now, "host": "here"})
        trial.begin_curve([])
        lines = []
        for row in CURVE:
            trial.append_curve(row)
            assert main(["status", "--study", "s", "--results", str(tmp_path)]) == 0
            lines += [line for line in capsys.readouterr().out.splitlines() if "trial 0" in line]
        assert [line.partition("; ")[2].partition(":")[0] for line in lines] == ["step 0", "step 1", "step 2"]
        whole = (trial.path / "curve.csv").read_bytes()
        (trial.path / "curve.csv").write_bytes(whole[:-5])
        (found, *_), damaged = survey(study)
        last = found.running[0].row
        assert last is not None and last.step == 1 and last.measured == approx(CURVE[1].measured, nan_ok=True)
        assert damaged == []
        trial.finish(RESULT, CURVE, STEPS)
        assert (trial.path / "curve.csv").read_bytes() == whole
