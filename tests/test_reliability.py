"""Searches that are killed, or lack disk space, or have damaged files; in short and at length."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ahf_cli.study.store import Study
from benchmarks.reliability import __main__ as page
from benchmarks.reliability import damage, kills
from benchmarks.reliability.toy import Toy, plan


@pytest.mark.parametrize(
    ("trials", "count"), [(8, 2), pytest.param(100, 30, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_a_search_killed_again_and_again_ends_as_one_left_alone(
    tmp_path: Path, trials: int, count: int
) -> None:
    found = kills.search_killed(tmp_path, trials, count)
    assert found["equal"] and found["trials"] == found["planned"] == 2 * trials
    assert found["complete"] == {"trials": 2 * trials, "slots": 2 * trials}
    assert found["damaged"] == 0 and found["kills"] > 0


def test_of_two_searches_on_one_folder_one_works_and_the_other_says_so(tmp_path: Path) -> None:
    found = kills.two_at_once(tmp_path, 6)
    assert found["code"] == 1 and "study 'toy' is in use by process" in found["said"]
    assert found["counted"] == found["trials"] == found["planned"] == 12


@pytest.mark.parametrize("name", damage.FILES)
@pytest.mark.parametrize("positions", [12, pytest.param(None, marks=pytest.mark.long)], ids=["short", "long"])
def test_a_file_cut_short_is_set_aside_and_redone(tmp_path: Path, name: str, positions: int | None) -> None:
    logging.getLogger("ahf").setLevel(logging.ERROR)
    found = damage.cut(tmp_path, name, positions)
    logging.getLogger("ahf").setLevel(logging.NOTSET)
    assert found["noticed"] == found["redone"] == found["positions"] > 10
    assert not found["others_touched"]


@pytest.mark.parametrize("positions", [1, pytest.param(24, marks=pytest.mark.long)], ids=["short", "long"])
def test_a_database_cut_short_is_made_anew(tmp_path: Path, positions: int) -> None:
    found = damage.database_cut(tmp_path, positions)
    assert found["survived"] == found["positions"] == positions


@pytest.mark.parametrize("step", [997, pytest.param(23, marks=pytest.mark.long)], ids=["short", "long"])
def test_a_disk_that_fills_up_leaves_whole_trials_or_none(tmp_path: Path, step: int) -> None:
    found = damage.writes_failed(tmp_path, step)
    assert found["torn"] == 0 and 10 < found["failed"] < found["positions"]


@pytest.mark.long
def test_a_search_on_a_full_file_system_says_so_and_goes_on_when_there_is_room() -> None:
    found = damage.disk_filled()
    if found is None:
        pytest.skip("no file system can be mounted here")
    assert found["code"] == 1 and "full" in found["said"] + found["said"].replace("No space left", "full")
    assert "Traceback" not in found["said"]
    assert found["trials"] == found["planned"] and found["complete"] == {"trials": 80, "slots": 80}


def test_a_clock_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ahf_cli.search import search as module
    from ahf_cli.search.search import Hooks, Search
    from ahf_cli.search.storage import open_storage, sqlite_url
    from ahf_cli.study.status import survey
    from ahf_cli.study.store import Study
    from tests.searches import FakePool

    study, url = Study(tmp_path, "toy"), sqlite_url(tmp_path / "a.db")
    study.open_for_writing("", {}, {"plan": {"hf": 3, "adaptive_hf": 3}})
    for trials, year in ((1, 2040), (3, 1999)):
        monkeypatch.setattr(module, "_now", lambda y=year: f"{y}-01-01T00:00:00+00:00")
        os.utime(study.folder, (0, 0))
        storage = open_storage(url)
        search = Search(plan(trials), study.trials, storage)
        assert search.run(lambda: FakePool(study, lambda job: None, 1), Hooks())
        storage.close()
    assert [r.slot for r in study.finished("hf")] == [0, 1, 2]
    assert [(s.ok, s.waiting, s.seconds_left) for s in survey(study)[0]] == [(3, 0, 0.0)] * 2
    study.close()


def test_a_study_of_an_older_version_is_read_and_resumed(tmp_path: Path) -> None:
    """Version 0.1.0 wrote `tests/old_study`; its index has attributes of enqueued trials."""
    import shutil

    from ahf_cli.search.pool import ProcessPool
    from ahf_cli.search.search import Search
    from ahf_cli.search.storage import open_storage, sqlite_url
    from ahf_cli.study.index import whole_index
    from ahf_cli.study.store import Study

    shutil.copytree(Path(__file__).parent / "old_study", tmp_path / "old")
    study = Study(tmp_path, "old")
    before = [(r.slot, r.value) for r in study.finished("hf")]
    assert before and study.planned() == {"hf": 3}
    storage = open_storage(sqlite_url(whole_index(study.folder)))
    search = Search(plan(4, names=("hf",)), study.trials, storage)
    assert [slot for _, slot in search.unfinished] == [2, 3]
    assert search.run(lambda: ProcessPool(Toy(study.trials), 1))
    storage.close()
    assert [(r.slot, r.value) for r in study.finished("hf")][: len(before)] == before
    with sqlite3.connect(study.folder / "study.db") as connection:
        (count,) = connection.execute("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'").fetchone()
    connection.close()
    assert count == 4


def test_the_page_on_reliability_holds_the_numbers_that_are_kept() -> None:
    text = page.render(json.loads(page.NUMBERS.read_text()))
    assert text in page.PAGE.read_text() and "NOT EQUAL" not in text


WORDS = [
    "search", "--preset", "smoke", "-o", "task.subset=400", "-o", "task.batch_size=64",
    "-o", "train.steps=12",
    "-o", "train.eval_every=4", "-o", "run.checkpoint_every=2", "-o", "run.workers=1", "--trials", "4",
]  # fmt: skip


def start(results: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ahf_cli", *WORDS, "--results", str(results), "-q"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def table(results: Path) -> dict[str, list[tuple[int, float, dict[str, float]]]]:
    study = Study(results, "smoke")
    return {
        name: [(r.slot, r.value, r.params) for r in study.finished(name)] for name in ("hf", "adaptive_hf")
    }


def curves(results: Path) -> set[tuple[str, int]]:
    """The learning curves so far: (file, its last change in nanoseconds)."""
    return {(str(file), file.stat().st_mtime_ns) for file in results.rglob("curve.csv")}


@pytest.mark.long
def test_a_real_search_killed_at_random_moments_ends_as_one_left_alone(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(straight).wait() == 0
    written = [file.stat().st_mtime for file in (straight / "smoke" / "trials").rglob("*.*")]
    trial = (max(written) - min(written)) / 8
    chance, kills = random.Random(0), 0
    while True:
        before = curves(killed)
        process = start(killed)
        if kills >= 8:
            assert process.wait(timeout=600) == 0
            break
        # The moment counts from the first evaluation: a slow start of Python kills nothing.
        while process.poll() is None and curves(killed) <= before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.2 * trial))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        family = psutil.Process(process.pid).children(recursive=True)
        victims = [process.pid, *(child.pid for child in family)] if kills % 2 else [process.pid]
        for pid in victims:  # the search alone, or with its workers
            os.kill(pid, signal.SIGKILL)
        process.wait()
        kills += 1
        for child in family:  # an orphan ends by itself, within a step
            child.wait(timeout=60)
    print(f"{kills} kills survived")
    assert kills >= 3
    assert table(killed) == table(straight)
    for file in killed.rglob("result.json"):
        assert json.loads(file.read_text())["status"] == "ok"
    assert len(list(killed.rglob("result.json"))) == 8
    assert not list(killed.rglob("*.corrupt-*"))
