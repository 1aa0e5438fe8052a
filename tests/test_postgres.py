"""Searches that several processes share through a real PostgreSQL server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ahf_cli.errors import AhfError, InputError
from ahf_cli.search import search as module
from ahf_cli.search import storage
from ahf_cli.search.plan import Best, rerun_plan
from ahf_cli.search.pool import Job
from ahf_cli.search.search import Hooks, Search
from ahf_cli.search.storage import Storage, open_storage
from ahf_cli.search.survey import survey
from ahf_cli.study.store import Study
from benchmarks.reliability import kills, machines
from benchmarks.reliability.postgres import PASSWORD, Cluster, cluster, database, programs
from benchmarks.reliability.toy import plan, toy_curve, toy_result
from tests.processes import ahf
from tests.searches import DIED, FakePool, completed, index_of

if programs() is None and not os.environ.get("AHF_REQUIRE_POSTGRES"):
    pytest.skip("no PostgreSQL here: install Debian's package postgresql", allow_module_level=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster() as running:
        yield running


@pytest.fixture
def joined(url: str) -> Iterator[Callable[..., Search]]:
    """Return a function that opens one more search on the same storage."""
    opened: list[Storage] = []

    def join(trials: int, study: Study, guest: bool = False, **about: object) -> Search:
        opened.append(open_storage(url))
        about = {"identity": {}, "trials": trials, **about}
        own = plan(trials, names=("hf",), prefix="toy/search/", guest=guest, about={"hf": about})
        return Search(own, study.trials, opened[-1])

    yield join
    for each in opened:
        each.close()


@pytest.fixture
def url(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> str:
    found = database(server)
    monkeypatch.setenv("AHF_GRACE", "2")
    return found


Join = Callable[..., Search]


def test_a_slot_that_two_processes_choose_is_trained_once(tmp_path: Path, url: str, joined: Join) -> None:
    one, two = (joined(2, Study(tmp_path, name)) for name in "ab")
    slots, others = one.slots["hf"], two.slots["hf"]
    params = {"lr": 0.1, "damping": 5.0}
    # Both have read the storage before either has chosen, as where a process had lost its turn.
    assert slots.claim(0, params) and others.claim(0, params)
    assert not slots.withdraw(0) and others.withdraw(0) and 0 not in others.claims
    assert others.claim(1, params) and slots.claim(1, params)
    assert slots.withdraw(1) and not others.withdraw(1)
    job = Job(one.plan.recipes["hf"], {0: params})
    assert slots.tell(toy_result(job, 0))
    others.refresh()
    assert others.free(2) == [] and sorted(others.complete()) == [0]
    assert completed(url, "toy/search/hf") == [0]


def test_what_a_killed_process_had_is_taken_over_with_the_same_hyperparameters(
    tmp_path: Path, url: str, joined: Join
) -> None:
    lost = joined(1, Study(tmp_path, "a"))
    job = lost._next_job(Hooks())
    assert job is not None
    other = joined(1, Study(tmp_path, "b"), guest=True)
    assert other._next_job(Hooks()) is None
    pool, began = FakePool(Study(tmp_path, "b"), lambda job: None, 1), time.monotonic()
    assert other.run(lambda: pool, Hooks())
    assert 1.5 < time.monotonic() - began < 20
    assert [j.params for j in pool.jobs] == [job.params] and pool.jobs[0].attempts == {0: 2}
    # The first process wakes up and has its result: it does not count, and says so.
    said: list[str] = []
    result = toy_result(job, 0)
    lost.records.trial("hf", 0).finish(result, toy_curve(result.value), [])
    lost._tell(result, Hooks(on_remark=said.append))
    assert said == ["hf/000: another process has taken this trial over; not counted"]
    assert completed(url, "toy/search/hf") == [0]


def test_a_process_killed_between_creating_and_beginning_a_trial_blocks_nothing(
    tmp_path: Path, url: str, joined: Join
) -> None:
    search = joined(2, Study(tmp_path, "a"))
    study = search.slots["hf"].study
    study.enqueue_trial({}, user_attrs={"slot": 0})  # the trial waits, and its process is gone
    assert search.run(lambda: FakePool(Study(tmp_path, "a"), lambda job: None, 1), Hooks())
    assert sorted(completed(url, "toy/search/hf")) == [0, 1]


def test_results_of_a_machine_without_the_folder_are_fetched(tmp_path: Path, url: str, joined: Join) -> None:
    apart, home = Study(tmp_path, "apart"), Study(tmp_path, "home")
    worker = joined(2, apart)
    assert worker.run(lambda: FakePool(apart, lambda job: None, 1), Hooks())
    assert joined(2, home).unfinished == []
    assert [r.params for r in home.finished("hf")] == [r.params for r in apart.finished("hf")]
    for name in ("curve.csv", "steps.csv.gz", "result.json"):
        assert (home.trial("hf", 1).path / name).read_bytes() == (
            apart.trial("hf", 1).path / name
        ).read_bytes()
    # A record that is damaged afterwards comes back from the storage.
    (home.trial("hf", 0).path / "curve.csv").write_text("")
    joined(2, home)
    assert len(home.finished("hf")) == 2


def test_more_trials_later_are_added_and_another_identity_is_refused(
    tmp_path: Path, url: str, joined: Join
) -> None:
    study = Study(tmp_path, "a")
    for trials in (2, 1, 4):
        search = joined(trials, study)
        assert search.run(lambda: FakePool(study, lambda job: None, 1), Hooks())
    assert sorted(completed(url, "toy/search/hf")) == [0, 1, 2, 3]
    assert search.slots["hf"].study.user_attrs["trials"] == 4
    with pytest.raises(InputError, match="has a study 'toy/search/hf' with other settings"):
        joined(4, study, identity={"seed": 1})


def test_a_trial_that_always_fails_is_given_up_by_all_and_tried_again_by_a_new_search(
    tmp_path: Path, url: str, joined: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path, "a")
    monkeypatch.setattr(module, "BREAKER", 99)

    def die(job: Job) -> object:
        return DIED if 1 in job.params else None

    def run(trials: int, guest: bool, misbehave: object = lambda job: None) -> list[Job]:
        pool = FakePool(study, misbehave, 1)  # type: ignore[arg-type]
        search = joined(trials, study, guest)
        assert search.run(lambda: pool, Hooks())
        return pool.jobs

    with pytest.raises(AhfError, match="failed 4 times each: hf/1"):
        run(2, False, die)
    with pytest.raises(AhfError, match="failed 4 times each: hf/1"):
        assert run(2, True) == []
    assert [job.params.keys() for job in run(2, False)] == [{1}]
    assert len([t for t in index_of(url, "toy/search/hf") if t.state.name == "FAIL"]) == 4


def test_workers_that_are_killed_lose_nothing(tmp_path: Path, url: str) -> None:
    found = machines.workers_killed(tmp_path, url, 8)
    assert found["trials"] == found["planned"] == 16
    assert found["complete"] == {"trials": 16, "slots": 16}


@pytest.mark.long
def test_many_workers_that_are_killed_lose_nothing(tmp_path: Path, server: Cluster) -> None:
    for seed in range(5):
        found = machines.workers_killed(tmp_path / str(seed), database(server), 40, seed)
        assert found["trials"] == found["planned"] == 80
        assert found["complete"] == {"trials": 80, "slots": 80}


@pytest.mark.long
def test_the_late_result_of_a_worker_that_was_paused_is_refused_in_peace(tmp_path: Path, url: str) -> None:
    found = machines.worker_paused(tmp_path, url)
    assert found["code"] == 0 and found["error"] == "" and len(found["refused"]) == 1
    assert not found["changed"] and found["complete"] == {"trials": 4, "slots": 4}


TINY = [
    "--preset", "smoke", "-o", "task.subset=400", "-o", "task.batch_size=64", "-o", "train.steps=2",
    "-o", "train.eval_every=2", "--recipe", "hf",
]  # fmt: skip


def check_no_password(folder: Path, said: list[str]) -> None:
    """Check that no output and no file holds the password."""
    assert not [text for text in said if PASSWORD in text]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def test_the_password_is_said_and_written_nowhere(tmp_path: Path, url: str) -> None:
    env = {"AHF_STORAGE": url, "AHF_DEBUG": "1"}
    search = kills.start(kills.command(tmp_path, "--trials", 2), env)
    titles = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True).stdout
    said = [titles, *search.communicate()]
    assert search.returncode == 0
    status = ahf("status", "--json", env=env)
    assert status.returncode == 0 and '"ok": 2' in status.stdout and ":***@" in status.stdout
    wrong = ahf("status", env={"AHF_STORAGE": url.replace(":marked", ":xmarked")})
    assert (
        wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "cannot be opened" in wrong.stderr
    )
    shown = ahf("status", "--storage", url, env={})
    assert shown.returncode == 2 and "--storage: holds a password" in shown.stderr
    kept = ahf("config", "show", "-o", f"storage={url}", env={})
    assert kept.returncode == 2 and "belongs into the environment variable AHF_STORAGE" in kept.stderr
    for done in (status, wrong, shown, kept):
        said += [done.stdout, done.stderr]
    check_no_password(tmp_path, said)


@pytest.mark.long
def test_a_real_search_and_worker_leave_the_password_nowhere(tmp_path: Path, url: str) -> None:
    env = {"AHF_STORAGE": url, "AHF_DEBUG": "1", "TMPDIR": str(tmp_path)}
    results = ("--results", str(tmp_path / "r"))
    words = ["search", *TINY, "--trials", "3", "-o", "run.workers=1", *results]
    search = subprocess.Popen(
        [sys.executable, "-m", "ahf_cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **env},
    )  # fmt: skip
    said, titles = list[str](), list[str]()
    while search.poll() is None and not list((tmp_path / "r").rglob("result.json")):
        time.sleep(0.05)
    titles.append(subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True).stdout)
    search.send_signal(signal.SIGTERM)
    said += search.communicate()
    assert search.returncode in (0, 75), said
    worker = ahf("worker", "--study", "smoke", "--results", str(tmp_path / "elsewhere"), env=env)
    assert worker.returncode == 0 and "sent through the storage" in worker.stderr, worker.stderr
    again = ahf(*words, env=env)
    assert again.returncode == 0, again.stderr
    assert len(Study(tmp_path / "r", "smoke").finished("hf")) == 3
    status = ahf("status", "--study", "smoke", env=env)
    assert "3 ok" in status.stdout and "all trials are finished" in status.stdout
    repaired = ahf("repair", "smoke", *results, env=env)
    assert "3 finished trials" in repaired.stdout and "3 trials indexed" in repaired.stdout, repaired
    wrong = ahf(*words, env={"AHF_STORAGE": url.replace(":marked", ":xmarked")})
    assert (
        wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "cannot be opened" in wrong.stderr
    )
    for done in (worker, again, status, repaired, wrong):
        said += [done.stdout, done.stderr]
    assert sorted(completed(url, "smoke/search/hf")) == [0, 1, 2]
    removed = ahf("rm", "smoke", "--yes", *results, env=env)
    assert removed.returncode == 0 and "deleted" in removed.stdout
    assert "no search 'smoke'" in ahf("status", "--study", "smoke", env=env).stderr
    check_no_password(tmp_path, [*said, *titles])


def test_a_process_that_sleeps_through_its_turn_withdraws_what_another_has_taken(
    tmp_path: Path, url: str, joined: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = joined(1, Study(tmp_path, "a")), joined(1, Study(tmp_path, "b"), guest=True)
    choose, taken = slow._choose, list[Job | None]()

    def asleep(hooks: Hooks) -> Job | None:
        time.sleep(1.5)
        taken.append(quick._next_job(Hooks()))
        with monkeypatch.context() as patched:
            patched.setattr(slow.slots["hf"], "refresh", lambda: None)  # it had looked before it slept
            return choose(hooks)

    monkeypatch.setattr(storage, "TURN", "1s")
    monkeypatch.setattr(slow, "_choose", asleep)
    assert slow._next_job(Hooks()) is None and slow.slots["hf"].claims == {}
    assert taken[0] is not None and sorted(quick.slots["hf"].claims) == [0]


def test_re_runs_are_shared_like_a_search_and_begin_anew_for_another_best_trial(
    tmp_path: Path, url: str, joined: Join
) -> None:
    home, apart = Study(tmp_path, "home"), Study(tmp_path, "apart")
    search = joined(3, home)
    assert search.run(lambda: FakePool(home, lambda job: None, 1), Hooks())
    best = search.best()
    guest = joined(3, apart, guest=True)
    assert guest.best() == best  # without a single file of its own
    again = rerun_plan(guest.plan, best, 4, "toy/rerun/")
    helper = Search(again, apart.reruns.trials, guest.storage)
    pool = FakePool(apart.reruns, lambda job: None, 1)
    assert helper.run(lambda: pool, Hooks())
    assert sorted(start.seed for job in pool.jobs for start in job.starts.values()) == [1, 2, 3, 4]
    leader = Search(replace(again, guest=False), home.reruns.trials, search.storage)
    assert leader.unfinished == [] and len(home.reruns.finished("hf")) == 4
    slot = best["hf"].slot
    (stage,) = survey(search.storage, "toy", "rerun")
    assert (stage.recipe, stage.ok, stage.planned) == (f"hf@{slot:03d}", 4, 4)
    other = {"hf": Best((slot + 1) % 3, search.slots["hf"].complete()[(slot + 1) % 3].params)}
    anew = Search(
        rerun_plan(search.plan, other, 4, "toy/rerun/"), Study(tmp_path, "new").reruns.trials, search.storage
    )
    assert len(anew.unfinished) == 4
