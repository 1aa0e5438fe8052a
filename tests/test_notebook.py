"""The laboratory as a library: functions of `ahf_cli` that return studies."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

import ahf_cli
from ahf_cli.errors import InputError
from ahf_cli.report.study_data import pool
from ahf_cli.study.store import Study
from tests.studies import NAN, write_study

ROOT = Path(__file__).parents[1]
SMALL = {
    "study": "two",
    "task": {"subset": 200, "batch_size": 50},
    "train": {"steps": 4, "eval_every": 2},
    "search": {"trials": 2, "recipes": ["hf_stable", "adam"], "sampler": "random"},
    "prerun": {"trials": 2},
}


def test_importing_the_package_is_light_and_its_names_are_there() -> None:
    code = (
        "import sys, ahf_cli\n"
        "heavy = {'torch', 'pandas', 'pydantic', 'optuna'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert set(ahf_cli.__all__) <= set(dir(ahf_cli))\n"
        "assert all(getattr(ahf_cli, name) for name in ahf_cli.__all__)\n"
        "assert ahf_cli.HessianFree.__module__.startswith('ahf_cli.optim')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="module 'ahf_cli' has no attribute 'rum'"):
        _ = ahf_cli.rum


@pytest.mark.long
def test_the_example_prints_its_verdict_and_its_best_values() -> None:
    done = subprocess.run([sys.executable, "examples/notebook.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "This description supports no claim" in done.stdout
    assert re.search(r"^hf_stable +2 +0\.[3-9]", done.stdout, re.M), done.stdout


@pytest.mark.usefixtures("one_process")
def test_a_study_goes_from_configuration_to_pack_and_back(tmp_path: Path) -> None:
    config = ahf_cli.configure(SMALL, "seed=3")
    assert config.seed == 3 and ahf_cli.configure(config) == config
    study = ahf_cli.run(config, tmp_path)
    assert len(study.trials) == 4 and list(study.best.index) == sorted(
        study.best.index, key=lambda name: study.best["value"][name]
    )
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    pd.testing.assert_frame_equal(ahf_cli.run(config, tmp_path).trials, study.trials)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")} == before
    comparison = ahf_cli.compare(study, target=0.3)
    assert {"final_values", "time_to_target"} <= set(comparison.tables)
    packed = ahf_cli.pack(study, tmp_path / "packs")
    back = ahf_cli.unpack(packed, tmp_path / "back")
    for one in (packed, back):
        pd.testing.assert_frame_equal(one.trials, study.trials)
    both = ahf_cli.compare(study, ahf_cli.load_study("robust", ROOT / "results"))
    assert both.data.names == ("two", "robust")


def test_a_run_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    config = ahf_cli.configure(SMALL, "train.steps=900", "train.eval_every=450", "search.recipes=[adam]")
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        while not list(tmp_path.rglob("curve.csv")):
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    # A shell lets a test run in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=press, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ahf_cli.run(config, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    found = ahf_cli.status("two", tmp_path).loc["adam"]
    assert found["planned"] == 2 and found["ok"] < 2 and found["running"] == 0
    assert list(tmp_path.rglob("checkpoint.pt"))
    assert len(ahf_cli.run(config, tmp_path).trials) == 2
    found = ahf_cli.status("two", tmp_path).loc["adam"]
    assert found["ok"] == 2 and found["waiting"] == 0 and found["seconds_left"] == 0


@pytest.mark.usefixtures("one_process", "one_figure")
def test_a_prerun_proposes_ranges_and_a_single_run_trains(tmp_path: Path) -> None:
    found = ahf_cli.prerun(SMALL, tmp_path)
    assert found["hyperparameter"].tolist() == ["sigma", "smoothness"]
    assert (tmp_path / "two" / "prerun" / "ranges.yaml").exists()
    steps: list[int] = []
    study = ahf_cli.train(
        "adam", SMALL, tmp_path, lr=0.01, on_progress=lambda progress: steps.append(progress.step)
    )
    assert study.trials["params.lr"].tolist() == [0.01] and steps == [0, 1, 2, 3, 4]


def test_a_wrong_name_or_value_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--preset: unknown preset 'quik'; did you mean 'quick'"):
        ahf_cli.configure("quik")
    with pytest.raises(InputError, match="train.step"):
        ahf_cli.configure({"train": {"step": 3}})
    with pytest.raises(InputError, match="adam has no hyperparameter 'damping'"):
        ahf_cli.train("adam", SMALL, tmp_path, damping=1.0)
    with pytest.raises(InputError, match="compare needs studies with different names"):
        ahf_cli.compare()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_process", "one_figure")
def test_every_block_of_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in their order, with two trials in the pre-run."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) >= 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    names: dict[str, object] = {}
    blocks[1] = blocks[1].replace('"search": ', '"prerun": {"trials": 2}, "search": ')
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    losses = names["losses"]
    assert isinstance(losses, list) and losses[-1] < 0.5 * losses[0]


FINISHED = """\
study   one in {folder}
state   finished
trials  hf 2 of 2, adam 1 of 1
best    hf/001, training loss 0.2000
next    ahf compare --study {folder}"""


def test_a_study_is_shown_in_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, "one", {"hf": 2, "adam": 1}, {"hf": [0.3, 0.2], "adam": [0.25]})
    study = ahf_cli.load_study("one", tmp_path)
    assert repr(study) == FINISHED.format(folder=tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert repr(ahf_cli.load_study("one", ".")).endswith("next    ahf compare --study ./one")
    write_study(tmp_path, "begun", {"hf": 3, "adam": 1}, {"hf": [NAN, NAN]})
    begun = ahf_cli.load_study("begun", tmp_path)
    assert repr(begun).splitlines()[1:] == [
        "state   not finished: hf 2 of 3, adam 0 of 1",
        "trials  hf 2 of 3, adam 0 of 1",
        "best    no trial has ended with a value",
        f"next    ahf status --study {tmp_path / 'begun'}",
    ]
    with Study(tmp_path, "one") as held:
        held.lock()
        assert f"\nstate   in use by process {os.getpid()} on " in repr(study)
    both = repr(pool({"a": study, "b": begun})).splitlines()
    assert [line.split()[0] for line in both] == ["study", "state", "trials", "next"]
    assert both[-1] == f"next    ahf compare --study {tmp_path / 'one'} --study {tmp_path / 'begun'}"


def test_an_unfinished_study_is_shown_with_the_command_that_resumes(tmp_path: Path) -> None:
    write_study(tmp_path, "begun", {f"recipe{n}": 70 for n in range(20)}, {"recipe3": [0.1]})
    file = tmp_path / "begun" / "manifest.json"
    for command, shown in {
        "ahf search --preset quick": "ahf search --preset quick",
        "ahf train hf": "ahf train hf",
        "ahf -f kernel.json": f"ahf status --study {tmp_path / 'begun'}",
        "ahf": f"ahf status --study {tmp_path / 'begun'}",
    }.items():
        manifest = json.loads(file.read_text())
        manifest["sessions"] = [{**manifest["sessions"][-1], "command": command}]
        file.write_text(json.dumps(manifest))
        lines = repr(ahf_cli.load_study("begun", tmp_path)).splitlines()
        assert lines[-1] == f"next    {shown}"
        assert len(lines) == 5 and max(map(len, lines[1:3])) <= 110


def test_a_path_with_a_space_is_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my results"
    write_study(folder, "one", {"hf": 1}, {"hf": [0.3]})
    words = shlex.split(repr(ahf_cli.load_study("one", folder)).splitlines()[-1])
    assert words == ["next", "ahf", "compare", "--study", str(folder / "one")]
