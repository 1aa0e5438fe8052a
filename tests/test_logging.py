"""`--log`: a target gets the records of each trial in order, and its errors stop no training."""

from __future__ import annotations

import ast
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ahf_cli.cli import main
from ahf_cli.config.load import Config, load
from ahf_cli.errors import InputError
from ahf_cli.search import targets
from ahf_cli.search.plan import Silent
from ahf_cli.search.run import run
from ahf_cli.search.single import Single, train_single
from ahf_cli.search.storage import in_memory
from ahf_cli.search.targets import TARGETS, Kind, TargetRun, numbers, target
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder
from ahf_cli.training.records import CurveRow, StepRow, TrialResult

FIT = [
    *["task.data=rosenbrock", "task.model=rosenbrock", "task.loss=least_squares", "task.batch_size=2"],
    *["task.subset=null", "task.dtype=float64", "train.eval_subset=null", "train.steps=7"],
    *["train.eval_every=3", "run.checkpoint_every=2"],
]
WORDS = ["--preset", "smoke", *itertools.chain(*(("-o", setting) for setting in FIT))]
CALLS = ("open", "step", "evaluation", "end")


class Remarks(Silent):
    """A reporter that keeps the remarks."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Copies:
    """A target in memory: the calls of each run, and runs by their key."""

    def __init__(self, fails: str = "", after: int = 0):
        self.calls: dict[str, list[tuple[str, Any]]] = {}
        self.keys: dict[str, str] = {}
        self.opened: list[TargetRun] = []
        self.fails, self.after = fails, after

    def __call__(self, run: TargetRun) -> Copy:
        self.opened.append(run)
        self.called("open")
        return Copy(self, run)

    def called(self, name: str) -> None:
        self.after -= name == self.fails
        if name == self.fails and self.after < 0:
            raise ConnectionError(f"no answer to {name}\nand more")

    def of(self, name: str, kind: str) -> list[Any]:
        """Return the records of one kind that a run was given."""
        return [record for called, record in self.calls[name] if called == kind]


class Copy:
    """One run of `Copies`."""

    def __init__(self, copies: Copies, run: TargetRun):
        self.copies, self.run = copies, run
        self.resumed = copies.keys.setdefault(run.key, run.name) in copies.calls
        copies.calls.setdefault(run.name, [])

    def _take(self, name: str, record: object) -> None:
        self.copies.called(name)
        self.copies.calls[self.run.name].append((name, record))

    def step(self, row: StepRow) -> None:
        self._take("step", row)

    def evaluation(self, row: CurveRow) -> None:
        self._take("evaluation", row)

    def end(self, result: TrialResult | None) -> None:
        self._take("end", result)


Make = Callable[..., Copies]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that puts a target in memory in the place of `wandb`."""

    def make(*arguments: Any) -> Copies:
        made = Copies(*arguments)
        monkeypatch.setitem(TARGETS, "wandb", Kind(made, (), "wandb", {}))
        return made

    return make


def config(*more: str) -> Config:
    return load("smoke", None, [*FIT, *more])


def adam() -> Single:
    """Return a run of seven steps."""
    own = config()
    return Single(own, own.recipe("adam"), {"lr": 0.01, "beta1": 0.9, "beta2": 0.9, "mu": 1e-8})


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches keep their index in memory and measure no costs."""
    monkeypatch.setattr("ahf_cli.search.run.own_storage", lambda study: in_memory())
    monkeypatch.setattr("ahf_cli.search.run._measure_once", lambda *arguments: None)


def rows(trial: TrialFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the evaluations and steps in a trial's files."""
    steps = trial.step_rows()
    assert steps is not None
    return trial.curve_rows().to_pylist(), steps.to_pylist()


def text(records: object) -> str:
    """Return records as text, in which NaN equals itself."""
    return repr(records)


def test_a_run_has_every_step_every_evaluation_and_the_result(tmp_path: Path, copies: Make) -> None:
    said, single = copies(), adam()
    study = single.study(tmp_path, "s")
    result = train_single(single, study, log="wandb")
    trial = study.trial("adam", 0)
    (opened,) = said.opened
    assert (opened.study, opened.name, opened.step) == ("s", "trials/adam/000", 0)
    assert opened.params == single.params and opened.folder == study.folder / "log"
    evaluations, steps = rows(trial)
    assert text([row.plain() for row in said.of(opened.name, "evaluation")]) == text(evaluations)
    assert text([vars(row) for row in said.of(opened.name, "step")]) == text(steps)
    assert [row["step"] for row in evaluations] == [0, 3, 6, 7] and len(steps) == 7
    assert said.calls[opened.name][-1] == ("end", result)
    again = Remarks()
    assert train_single(single, study, log="wandb", reporter=again) is not None
    assert len(said.opened) == 1  # it is finished, and nothing trains
    assert again.lines == [f"adam: done already, in {study.folder}; --log shows no trial that is done"]


@pytest.mark.usefixtures("one_process", "light")
def test_each_trial_and_rerun_of_a_search_is_a_run_of_its_own(tmp_path: Path, copies: Make) -> None:
    said = copies()
    study = Study(tmp_path, "s")
    fair = config("search.recipes=[adam, lm]", "search.design=fair", "search.reruns=1", "run.batch=2")
    assert run(fair, study, log="wandb").done
    again = Remarks()
    assert run(fair, study, log="wandb", reporter=again).done
    assert again.lines.count("--log shows no trial that is done") == 2  # of the draws and of the re-runs
    names = [f"trials/{recipe}/{slot:03d}" for recipe in ("adam", "lm") for slot in (0, 1)]
    assert sorted(said.calls) == [*(f"reruns/{r}/000" for r in ("adam", "lm")), *names]
    assert len({opened.key for opened in said.opened}) == 6
    for opened in said.opened:
        stage, recipe, slot = opened.name.split("/")
        trial = (study if stage == "trials" else study.reruns).trials.trial(recipe, int(slot))
        evaluations, steps = rows(trial)
        assert text([row.plain() for row in said.of(opened.name, "evaluation")]) == text(evaluations)
        own = {row["step"]: text(row) for row in steps}
        told = said.of(opened.name, "step")
        assert told and all(text(vars(row)) == own[row.step] for row in told)
        order = [record.step for called, record in said.calls[opened.name] if called != "end"]
        assert order == sorted(order) and said.calls[opened.name][-1][0] == "end"
        assert said.of(opened.name, "end") == [trial.result()]


def test_a_resumed_run_goes_on_and_repeats_no_evaluation(tmp_path: Path, copies: Make) -> None:
    said, asked = copies(), itertools.count(1)
    single = adam()
    study = single.study(tmp_path, "s")
    assert train_single(single, study, log="wandb", should_stop=lambda: next(asked) > 4) is None
    assert said.of("trials/adam/000", "end") == [None]
    result = train_single(single, single.study(tmp_path, "s"), log="wandb")
    assert [opened.step for opened in said.opened] == [0, 5] and len(said.keys) == 1
    assert [row.step for row in said.of("trials/adam/000", "evaluation")] == [0, 3, 6, 7]
    assert [row.step for row in said.of("trials/adam/000", "step")] == list(range(1, 8))
    assert said.of("trials/adam/000", "end")[1] == result


def test_a_target_that_is_given_later_gets_the_earlier_evaluations(tmp_path: Path, copies: Make) -> None:
    said, asked = copies(), itertools.count(1)
    single = adam()
    assert train_single(single, single.study(tmp_path, "s"), should_stop=lambda: next(asked) > 4) is None
    assert train_single(single, single.study(tmp_path, "s"), log="wandb") is not None
    assert [row.step for row in said.of("trials/adam/000", "evaluation")] == [0, 3, 6, 7]
    assert [row.step for row in said.of("trials/adam/000", "step")] == [5, 6, 7]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """Return the trial of a run without a target."""
    single = adam()
    study = single.study(tmp_path_factory.mktemp("plain"), "s")
    assert train_single(single, study) is not None
    return study.trial("adam", 0)


@pytest.mark.parametrize(("call", "after"), [*((call, 0) for call in CALLS), ("evaluation", 2)])
def test_a_target_that_fails_is_one_warning_and_changes_no_record(
    call: str, after: int, plain: TrialFolder, tmp_path: Path, copies: Make, caplog: pytest.LogCaptureFixture
) -> None:
    said, single = copies(call, after), adam()
    result = train_single(single, single.study(tmp_path, "s"), log="wandb")
    assert result is not None and said.after == -1  # the call that failed was the last
    warning = f"warning: logging ends, and training goes on: ConnectionError: no answer to {call}"
    assert [record.getMessage() for record in caplog.records] == [warning]
    trial = Study(tmp_path, "s").trial("adam", 0)
    assert text(rows(trial)[1]) == text(rows(plain)[1])
    kept = [name for name in plain.curve().columns if name != "seconds"]
    assert len(kept) > 5 and plain.curve()[kept].equals(trial.curve()[kept])
    assert sorted(path.name for path in trial.path.iterdir()) == [
        "curve.csv", "params.json", "result.json", "steps.csv.gz"
    ]  # fmt: skip


@pytest.mark.usefixtures("one_process", "light")
def test_a_target_that_fails_in_a_search_is_one_warning(
    tmp_path: Path, copies: Make, caplog: pytest.LogCaptureFixture
) -> None:
    said, study = copies("end", 0), Study(tmp_path, "s")
    assert run(config("search.recipes=[adam]"), study, log="wandb").done
    assert len(caplog.records) == 1 and "no answer to end" in caplog.text
    assert len(study.finished("adam")) == 2 and list(said.calls) == ["trials/adam/000"]


@pytest.mark.parametrize("command", [["train", "adam"], ["search"]])
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_one_line_before_anything_is_written(
    name: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ})
    assert main([*command, *WORDS, "--results", str(tmp_path), "--log", name]) == 2
    package = "mlflow-skinny" if name == "mlflow" else name
    line = f"ahf: --log {name} needs the package {package}, which is not installed: pip install {package}\n"
    assert capsys.readouterr() == ("", line) and not list(tmp_path.iterdir())


def test_other_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_package.py").write_text("raise TypeError('descriptors cannot be created')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TARGETS, "wandb", Kind(Copies(), ("broken_package",), "wandb", {}))
    words = ["train", "adam", *WORDS, "--results", str(tmp_path / "r"), "--log", "wandb"]
    assert main(words) == 2
    reason = "cannot be imported: TypeError: descriptors cannot be created"
    assert capsys.readouterr().err == f"ahf: --log wandb: the package wandb {reason}\n"
    assert main([*words, "--record", str(tmp_path / "own.npz")]) == 2
    assert capsys.readouterr().err == "ahf: --record writes a trace alone: leave out --log wandb\n"
    with pytest.raises(InputError, match="--log must be one of tensorboard, mlflow, wandb, got 'disk'"):
        target("disk")
    assert not (tmp_path / "r").exists() and not (tmp_path / "own.npz").exists()


def test_a_package_is_imported_only_when_it_is_asked_for() -> None:
    tree = ast.parse(Path(targets.__file__).read_text())
    top = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(top) > 5 and not any(name in line for line in top for name in TARGETS)


def test_numbers_are_the_finite_ones_of_a_record() -> None:
    row = {"step": 3, "loss": 0.5, "cg_iterations": 2, "stop": "progress", "model_value": float("nan")}
    assert numbers("step", row) == {"step/loss": 0.5, "step/cg_iterations": 2.0}
    assert numbers("step", {"step": 1, "loss": float("inf")}) == {}
