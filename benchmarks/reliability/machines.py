"""Searches on several machines, as far as one machine allows: processes that share a PostgreSQL server."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from ahf_cli.search.storage import open_storage, sqlite_url
from benchmarks.reliability.kills import RECIPES, command, completed, finish, kill, start, table

GRACE = 2
"""Seconds after which a process that gives no sign of life has lost its trials."""


def workers_killed(folder: Path, url: str, trials: int, seed: int = 0) -> dict[str, Any]:
    """Run a search that four workers join, two of them without its folder; kill two at random moments."""
    environment = {"AHF_STORAGE": url, "AHF_GRACE": str(GRACE)}
    chance = random.Random(seed)
    words = ("--trials", trials, "--seconds", 0.05, "--steps", 5)
    search = start(command(folder, *words), environment)
    kinds = ("--join", "--join", "--apart", "--apart")
    workers = [start(command(folder, *words, kind), environment) for kind in kinds]
    for victim in (workers[0], workers[2]):
        time.sleep(chance.uniform(0, 0.5))
        kill(victim, family=True)
    counted = sum(len(finish(process)) for process in (search, workers[1], workers[3]))
    return {
        "workers": len(workers),
        "killed": 2,
        "counted": counted,
        "trials": sum(map(len, table(folder).values())),
        "planned": trials * len(RECIPES),
        "complete": completed(url, "toy/search/"),
    }


def worker_paused(folder: Path, url: str) -> dict[str, Any]:
    """Pause a worker past the grace period: the search does its trial, and its late result is refused."""
    environment = {"AHF_STORAGE": url, "AHF_GRACE": str(GRACE)}
    words = ("--trials", 2, "--seconds", 1.5, "--steps", 3)
    search = start(command(folder, *words), environment)
    late = start(command(folder, *words, "--apart"), environment)
    _wait_for_trial(folder, late.pid)
    family = [psutil.Process(late.pid), *psutil.Process(late.pid).children(recursive=True)]
    for process in family:
        os.kill(process.pid, signal.SIGSTOP)
    finish(search)
    before = table(folder)
    for process in family:
        os.kill(process.pid, signal.SIGCONT)
    out, error = late.communicate(timeout=120)
    return {
        "code": late.returncode,
        "refused": [line for line in out.splitlines() if "has taken this trial over; not counted" in line],
        "error": error,
        "changed": table(folder) != before,
        "trials": sum(map(len, before.values())),
        "planned": 2 * len(RECIPES),
        "complete": completed(url, "toy/search/"),
    }


def _wait_for_trial(folder: Path, pid: int) -> None:
    """Wait until a worker without the folder has begun a trial."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if list(folder.glob(f".worker-{pid}/trials/*/*/params.json")):
            time.sleep(0.2)
            return
        time.sleep(0.02)
    raise TimeoutError("the worker got no trial")


def load(folder: Path, url: str | None, trials: int, workers: int) -> dict[str, Any]:
    """Run trials that take no time: how many a second in all, and the time between two that end.

    The latter leaves out how long the processes take to start and to leave.
    """
    environment = {"AHF_STORAGE": url} if url else {}
    words = ("--trials", trials // len(RECIPES), "--sampler", "random", "--after", folder / "go")
    if url is None:
        processes = [start(command(folder, *words, "--workers", workers))]
    else:
        processes = [start(command(folder, *words), environment)]
        processes += [start(command(folder, *words, "--join"), environment) for _ in range(workers - 1)]
    (folder / "go").touch()
    began = time.monotonic()
    counted = sum(len(finish(process)) for process in processes)
    seconds = time.monotonic() - began
    where, prefix = (url, "toy/search/") if url else (sqlite_url(folder / "toy" / "study.db"), "")
    ended = _ends(where, prefix)
    return {
        "workers": workers,
        "trials": counted,
        "planned": trials,
        "seconds": seconds,
        "per_second": counted / seconds,
        "milliseconds": 1000 * (ended[-1] - ended[0]) / (len(ended) - 1),
    }


def _ends(url: str, prefix: str) -> list[float]:
    """Return when each trial of an index ended, in seconds, ascending."""
    import optuna

    storage = open_storage(url)
    with closing(storage):
        studies = [optuna.load_study(study_name=prefix + name, storage=storage.backend) for name in RECIPES]
        trials = [trial for study in studies for trial in study.get_trials(deepcopy=False)]
        return sorted(t.datetime_complete.timestamp() for t in trials if t.datetime_complete is not None)
