"""Worker processes that die, fail and stop, with trials of milliseconds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ahf_cli.errors import AhfError
from ahf_cli.search.pool import Job, Outcome, ProcessPool, Report, ShouldStop
from ahf_cli.search.search import Hooks, Search
from ahf_cli.study.store import Study
from ahf_cli.training.records import TrialResult
from benchmarks.reliability.toy import Toy, plan


def search(
    study: Study, trials: int, workers: int, toy: Toy, said: list[str], on_result: object = None
) -> tuple[bool, list[int]]:
    pool = ProcessPool(toy, workers)
    told: list[TrialResult] = []

    def count(result: TrialResult) -> None:
        told.append(result)
        if callable(on_result):
            on_result(pool, len(told))

    done = Search(plan(trials, workers, ("hf",)), study.trials).run(
        lambda: pool, Hooks(on_result=count, on_remark=said.append)
    )
    return done, [result.slot for result in told]


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        ("kill", "was killed by SIGKILL (out of memory, or killed by somebody)"),
        ("exit", "ended with code 7"),
        ("disk", "No space left on device: curve.csv"),
    ],
)
def test_a_failure_of_the_machine_concerns_one_job_only(tmp_path: Path, trouble: str, why: str) -> None:
    study, said = Study(tmp_path, "s"), list[str]()
    (tmp_path / "trouble").write_text(trouble)
    done, told = search(study, 6, 2, Toy(study.trials, 0.02, 2, tmp_path / "trouble"), said)
    assert done and sorted(told) == [0, 1, 2, 3, 4, 5]
    assert len(said) == 1 and "(retry 1 of 3)" in said[0] and why in said[0]
    assert sorted(r.attempts for r in study.finished("hf")) == [1, 1, 1, 1, 1, 2]


def test_a_bug_is_said_and_nothing_is_left_running(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    (tmp_path / "trouble").write_text("oh")
    with pytest.raises(AhfError, match="failed, and the search stops: ZeroDivisionError: oh"):
        search(study, 4, 2, Toy(study.trials, 0.05, 2, tmp_path / "trouble"), [])
    assert not [c for c in psutil.Process().children() if "resource_tracker" not in " ".join(c.cmdline())]


def test_a_worker_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    study, said = Study(tmp_path, "s"), list[str]()
    started = time.monotonic()

    def kill_all(pool: ProcessPool, count: int) -> None:
        if count in (1, 3, 4):
            for pid in pool.pids():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    done, told = search(study, 4, 1, Toy(study.trials), said, kill_all)
    assert done and told == [0, 1, 2, 3] and said == []
    assert time.monotonic() - started < 30


def test_a_stop_is_heard_within_a_step_and_the_trial_stays_unfinished(tmp_path: Path) -> None:
    study, began = Study(tmp_path, "s"), time.monotonic()
    toy = Toy(study.trials, 60, 600)
    found = Search(plan(1, 1, ("hf",)), study.trials)
    done = found.run(lambda: ProcessPool(toy, 1), Hooks(should_stop=lambda: time.monotonic() - began > 2))
    assert not done and found.unfinished == [("hf", 0)] and study.finished("hf") == []
    assert time.monotonic() - began < 30


def test_a_terminated_worker_gives_its_trial_back(tmp_path: Path) -> None:
    study, said, sent = Study(tmp_path, "s"), list[str](), list[int]()
    pool = ProcessPool(Toy(study.trials, 0.5, 10), 1)

    def terminate(progress: object) -> None:
        if not sent:
            sent.extend(pool.pids())
            os.kill(sent[0], signal.SIGTERM)

    own = Search(plan(2, 1, ("hf",)), study.trials)
    assert own.run(lambda: pool, Hooks(on_progress=terminate, on_remark=said.append))
    assert said == [] and len(study.finished("hf")) == 2 and not psutil.pid_exists(sent[0])


def test_what_fails_at_the_start_of_a_worker_is_said(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    with pytest.raises(AhfError, match="^3 failures in a row, and this search leaves: No such file"):
        Search(plan(2, 1, ("hf",)), study.trials).run(lambda: ProcessPool(Broken(tmp_path / "data"), 1))


class Broken:
    def __init__(self, file: Path):
        self.file = file

    def __call__(self, report: Report, should_stop: ShouldStop) -> Callable[[Job], Outcome]:
        raise AssertionError(self.file.read_bytes())
