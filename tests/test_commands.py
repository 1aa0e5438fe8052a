"""The commands that train, end to end on 400 images of Fashion-MNIST."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import load
from ahf_cli.interruption import resume_line
from ahf_cli.report.trace_file import read_trace
from ahf_cli.study.store import Study
from ahf_cli.tasks.folder import locate
from tests.processes import ahf

LENET = ("conv1", "conv2", "fc1", "fc2", "fc3")
TINY = [
    "--preset",
    "smoke",
    *["-o", "task.subset=400", "-o", "task.batch_size=64", "-o", "train.steps=3", "-o", "train.eval_every=2"],
]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the results folder of a finished study of two recipes with two trials each, and its pre-run."""
    results = tmp_path_factory.mktemp("results")
    done = ahf("reproduce", *TINY, "--results", str(results), "--json", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert set(document) == {"prerun", "search", "compare"}
    return results


def test_reproduce_leaves_a_whole_study(searched: Path) -> None:
    folder = searched / "smoke"
    for name in (
        "config.yaml", "manifest.json", "trials.csv", "curves.csv", "prerun/ranges.yaml",
        "prerun/figures/prerun_steps.png", "prerun/figures/prerun_smoothness.png",
        "prerun/data/prerun_steps.csv",
        "report/figures/figure2.png", "report/data/figure2.csv",
        "report/tables/final_values.csv", "trials/hf/000/result.json", "trials/adaptive_hf/001/steps.csv.gz",
    ):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    with open(folder / "trials/hf/000/curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "2", "3"]
    assert not list(folder.rglob("checkpoint*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"]["train-images-idx3-ubyte.gz"] and manifest["versions"]["torch"]
    # A pre-run and its search do not repeat each other's trials.
    study = Study(searched, "smoke")
    assert study.finished("adaptive_hf")[0].params != study.prerun.finished("adaptive_hf")[0].params


def test_a_session_that_trains_nothing_changes_no_manifest(searched: Path) -> None:
    """A manifest with one more session would claim results of two versions of the code."""
    manifest = Study(searched, "smoke").folder / "manifest.json"
    before = manifest.read_bytes()
    assert main(["search", *TINY, "--results", str(searched), "-q"]) == 0
    assert manifest.read_bytes() == before and len(json.loads(before)["sessions"]) == 1


def test_a_finished_study_is_said_to_be_done(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in searched.rglob("result.json")}
    assert main(["search", *TINY, "--results", str(searched)]) == 0
    said = capsys.readouterr()
    assert "all 4 trials are done" in said.err and "hf: 2 trials: 2 did not train" in said.out
    assert {p: p.read_bytes() for p in searched.rglob("result.json")} == before


@pytest.mark.long
def test_a_second_prerun_recipe_has_its_own_folder_and_says_how_to_go_on(searched: Path) -> None:
    results = ["--results", str(searched)]
    done = ahf("prerun", *TINY, *results, "--recipe", "adaptive_hf_published", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    ranges = searched / "smoke" / "prerun-adaptive_hf_published" / "ranges.yaml"
    assert (
        "sigma σ: proposed [" in done.stdout and "], the paper's [30, 100]\n  median and max" in done.stdout
    )
    words = shlex.split(done.stdout.splitlines()[-1].partition(": ")[2])
    name = ["--study", "smoke-ranges-adaptive_hf_published"]
    assert words == ["ahf", "search", *name, "--ranges", str(ranges), *words[6:]]
    assert words[6:] == ["--recipe", "adaptive_hf_published", *TINY, *results]
    one = ahf(*words[1:], "--trials", "1", "-q")
    assert one.returncode == 0, one.stderr
    assert Study(searched, "smoke-ranges-adaptive_hf_published").finished("adaptive_hf_published")
    assert Study(searched, "smoke").prerun.recipes() == ["adaptive_hf"]


@pytest.mark.usefixtures("one_figure")
def test_compare_draws_the_study(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "tables", "--study", "smoke", "--results", str(searched), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["final_values"]
    assert {row["recipe"] for row in rows} == {"hf", "adaptive_hf"}
    assert main(["compare", "plots", "--study", "smoke", "--results", str(searched), "--band", "iqr"]) == 0
    assert "figure2.png" in capsys.readouterr().out


def test_another_configuration_is_refused(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (searched / "smoke" / "config.yaml").read_bytes()
    assert main(["search", *TINY, "-o", "seed=5", "--results", str(searched)]) == 2
    error = capsys.readouterr().err
    assert "study 'smoke' exists with other settings" in error and "seed: on disk 0, asked for 5" in error
    assert (searched / "smoke" / "config.yaml").read_bytes() == before


@pytest.mark.usefixtures("one_process")
def test_a_study_grows_in_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each recipe that is added has its own definition, its own ranges and its own number of trials."""
    shared = ["search", *TINY, "--results", str(tmp_path), "--trials", "1", "-q"]
    mine = ["-o", "recipes.mine={base: hf, curvature: ggn}", "-o", "spaces.mine.lr={low: 0.5, high: 0.6}"]
    assert main([*shared, *mine, "--recipe", "mine"]) == 0
    study = Study(tmp_path, "smoke")
    before = (study.trial("mine", 0).path / "result.json").read_bytes()
    assert main([*shared, "--recipe", "adam", "--trials", "2"]) == 0
    assert study.planned() == {"mine": 1, "adam": 2} and len(study.finished("adam")) == 2
    assert (study.trial("mine", 0).path / "result.json").read_bytes() == before
    whole = load(file=study.folder / "config.yaml")
    assert whole.searched == ("mine", "adam") and whole.space("mine")["lr"].high == 0.6
    assert study.manifest()["identity"] == json.loads(json.dumps(whole.identity()))
    capsys.readouterr()
    assert main([*shared, "-o", "spaces.adam.lr={low: 0.5, high: 0.6}", "--recipe", "adam"]) == 2
    assert "spaces.adam.lr.low: on disk 1e-05, asked for 0.5" in capsys.readouterr().err
    assert main(["repair", "smoke", "--results", str(tmp_path)]) == 0
    assert "3 trials indexed" in capsys.readouterr().out


@pytest.mark.usefixtures("one_process")
def test_ranges_of_the_prerun_are_searched(searched: Path) -> None:
    ranges = searched / "smoke" / "prerun" / "ranges.yaml"
    words = ["--ranges", str(ranges), "--study", "ranged", "--recipe", "adaptive_hf", "--trials", "1"]
    assert main(["search", *TINY, *words, "--results", str(searched), "-q"]) == 0
    (result,) = Study(searched, "ranged").finished("adaptive_hf")
    assert result.params["sigma"] < 30  # 2-norms at the start are of order 0.1, not the paper's 30 to 100


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("search --preset rnn", "interrupted; this resumes it: ahf search --preset rnn"),
        ("search --preset rnn --dry-run", "interrupted"),
        ("compare --study rnn", "interrupted"),
    ],
)
def test_an_interrupted_command_is_named_where_it_resumes(
    words: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ahf", *words.split()])
    assert resume_line() == line


def test_a_run_of_a_fair_preset_plans_no_reruns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--preset", "pinn", "-o", "train.steps=1", "-o", "train.longer={}", "--results", str(tmp_path)]
    assert main(["train", "lm", *words, "--study", "one", "-q"]) == 0
    capsys.readouterr()
    assert main(["status", "--study", "one", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 ok" in said and "waiting, of 3" not in said and "reruns" not in said


@pytest.mark.long
def test_terminated_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    words = [
        "search",
        *TINY,
        "-o",
        "train.steps=12",
        "--recipe",
        "hf",
        "--trials",
        "1",
        "-o",
        "run.workers=1",
    ]
    straight = ahf(*words, "--results", str(tmp_path / "a"))
    assert straight.returncode == 0, straight.stderr
    command = [sys.executable, "-m", "ahf_cli", *words, "--results", str(tmp_path / "b")]
    trial = Study(tmp_path / "b", "smoke").trial("hf", 0)
    process = subprocess.Popen([*command, "-o", "run.checkpoint_every=1"], stderr=subprocess.PIPE, text=True)
    while not (trial.path / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 75, said
    assert "interrupted; this resumes it: ahf search --preset smoke" in said
    assert trial.result() is None and trial.load_checkpoints()
    again = ahf(*words, "--results", str(tmp_path / "b"))
    assert again.returncode == 0, again.stderr
    other = Study(tmp_path / "a", "smoke").trial("hf", 0)
    names = [c for c in other.curve().columns if c != "seconds"]
    assert trial.curve()[names].equals(other.curve()[names])
    assert trial.steps().equals(other.steps())


def test_a_run_with_a_trials_hyperparameters_is_that_trial(searched: Path) -> None:
    trial = Study(searched, "smoke").trial("adaptive_hf", 1)
    asked = (trial.read_params() or {})["params"]
    words = [word for name, value in asked.items() for word in ("-p", f"{name}={value!r}")]
    unset = {"OMP_NUM_THREADS": ""}  # bitwise only with a worker's one thread, which is the default
    done = ahf("train", "adaptive_hf", *words, *TINY, "--study", "one", "--results", str(searched), env=unset)
    assert done.returncode == 0, done.stderr
    own = Study(searched, "one").trial("adaptive_hf", 0)
    kept = [name for name in trial.curve().columns if name != "seconds"]
    assert own.curve()[kept].equals(trial.curve()[kept]) and own.steps().equals(trial.steps())
    assert (own.read_params() or {})["params"] == {**asked, "mu": 1e-8}
    assert Study(searched, "one").manifest()["threads"] == 1


def test_train_saves_a_curve_and_says_when_it_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "hf", "-p", "lr=0.3", "-p", "damping=5", *TINY, "--results", str(tmp_path)]
    first = ahf(*words, "--threads", "2")
    assert first.returncode == 0, first.stderr
    assert "hf, lr=0.3 damping=5: 3 steps in" in first.stdout and "test accuracy" in first.stdout
    assert "curve.csv" in first.stdout and "figure2.png" in first.stdout
    assert "step     0  train loss" in first.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("train-hf-")
    assert json.loads((folder / "manifest.json").read_text())["threads"] == 2
    before = {p: p.read_bytes() for p in folder.rglob("*.*") if p.name != ".lock"}
    assert main([*words, "--json"]) == 0
    second = capsys.readouterr()
    assert second.err == f"hf: done already, in {folder}\n"
    document = json.loads(second.out)
    assert document["params"] == {"lr": 0.3, "damping": 5.0} and document["final"]["step"] == 3
    assert {p: p.read_bytes() for p in folder.rglob("*.*") if p.name != ".lock"} == before
    assert main([*words, "-p", "damping=6", "--study", folder.name]) == 2
    assert "damping must be given once, got 5 and 6" in capsys.readouterr().err


def test_a_diverged_run_does_not_call_its_last_evaluation_final(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "hf", "-p", "lr=1e30", *TINY, "--results", str(tmp_path), "-q"]
    assert main(words) == 0
    end, last, *_ = capsys.readouterr().out.splitlines()
    assert end == "hf, lr=1e+30 damping=30: diverged at step 1 of 3"
    assert last.startswith("last evaluation before that, at step 0: training loss 2.2980, test")
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["status"], document["final"], document["last_evaluation"]["step"]) == (
        "diverged",
        None,
        0,
    )


def test_a_recorded_run_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "own.npz"
    assert main(["train", "hf", "-p", "lr=0.3", *TINY, "--record", str(file), "--json", "-q"]) == 0
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert printed.err == "" and (said["steps"], said["examples"], said["bytes"]) == (
        3,
        2 * 3 * 64,
        file.stat().st_size,
    )
    layers = [f"{layer}.{part}" for layer in LENET for part in ("weight", "bias")]
    assert list(read_trace(file).init) == layers
    assert main(["verify", str(file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["files"]
    assert found["setup"]["kind"] == "lenet"
    assert [d["quantity"] for d in found["deviations"]][-10:] == [f"final/{layer}" for layer in layers]


def test_a_recording_never_replaces_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.npz"
    file.write_text("mine")
    assert main(["train", "hf", *TINY, "--record", str(file)]) == 2
    assert f"--record: FILE must not exist yet, got {file}" in capsys.readouterr().err
    assert main(["train", "hf", *TINY, "--record", "/proc/own.npz"]) == 2
    assert "--record: cannot write to /proc (" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recording_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    words = ["train", "hf", *TINY, "-o", "train.steps=700", "-o", "task.subset=50000"]
    command = [sys.executable, "-m", "ahf_cli", *words, "--record", str(tmp_path / "r.npz")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 75 and out == "", err
    assert said[1].startswith("warning: 700 steps read 89,600 examples, 0.6 GB in float64 memory")
    assert err.splitlines()[-1].startswith("ahf: interrupted; ") and "is not written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--recipe", "hff"], "--recipe: search.recipes: unknown recipe 'hff'; did you mean 'hf'?"),
        (["search", "--trials", "0"], "--trials must be ≥ 1, got 0"),
        (["search", "--study", "../x"], "--study: study: must be a string that matches"),
        (["search", "--device", "cuda"], "run.device: must be a device that is there, got 'cuda'"),
        (["search", "--ranges", "no.yaml"], "no.yaml: cannot be read"),
        (["search", "-o", "spaces.hf.lr.low=2"], "spaces.hf.lr"),
        (["search", "--results", "/proc/ahf"], "cannot write results to /proc/ahf/smoke"),
        (
            ["prerun", "--recipe", "adaptive"],
            "--recipe: prerun.recipe: unknown recipe 'adaptive'; did you mean 'adaptive_hf'?",
        ),
        (["train", "hff"], "unknown recipe 'hff'; did you mean 'hf'?"),
        (["train", "hf_ggn", "-o", "seed=1"], "unknown recipe 'hf_ggn'; the preset attribution defines it"),
        (["train", "hf", "--threads", "0"], "--threads must be an integer in [1, 1024], got 0"),
        (["train", "hf", "-p", "lr=0"], "--param: lr must be in (0, inf), got 0.0"),
        (["train", "hf", "-p", "lr=x", "-p", "sigma=3"], "--param: hf has no hyperparameter 'sigma'"),
        (["train", "hf", "-p", "lr=nan"], "--param: lr must be in (0, inf), got nan"),
        (["train", "hf", "-p", "lr=1", "-p", "lr=2"], "--param: lr must be given once, got 1 and 2"),
        (["train", "hf", "-p", "lr"], "--param: must be NAME=VALUE, got 'lr'"),
        (["train", "adaptive_hf", "-p", "beta2=1"], "--param: beta2 must be in [0, 1), got 1.0"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = [] if "--results" in words else ["--results", str(tmp_path / "r")]
    if "--device" in words and __import__("torch").cuda.is_available():
        words = ["search", "--device", "tpu"]
        message = "tpu"
    assert main([*words, *TINY, *results]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""
    assert not list((tmp_path / "r").glob("*/trials"))


def test_truncated_data_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in locate().iterdir():
        if file.name.endswith(".gz"):
            content = file.read_bytes()
            cut = len(content) // 2 if file.name.startswith("t10k-images") else len(content)
            (tmp_path / file.name).write_bytes(content[:cut])
    monkeypatch.setenv("AHF_DATA_DIR", str(tmp_path))
    assert main(["search", *TINY, "--results", str(tmp_path / "r")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "t10k-images-idx3-ubyte.gz is damaged" in line


def test_a_damaged_database_is_set_aside_and_made_anew(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = searched / "smoke" / "study.db"
    file.write_bytes(os.urandom(5000))
    assert main(["search", *TINY, "--results", str(searched)]) == 0
    assert "all 4 trials are done" in capsys.readouterr().err
    assert (searched / "smoke" / "study.db.corrupt-1").exists() and file.exists()
