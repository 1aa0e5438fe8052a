"""Searches that are killed at random moments, and started again until they are done."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from ahf_cli.search.storage import open_storage, sqlite_url
from ahf_cli.study.store import Study

RECIPES = ("hf", "adaptive_hf")
Table = dict[str, list[tuple[int, str, float, dict[str, float]]]]


def command(results: Path, *words: object) -> list[str]:
    """Return the command of a toy search."""
    return [sys.executable, "-m", "benchmarks.reliability.program", str(results), *map(str, words)]


def start(words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a process and wait until its search has begun."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"it did not begin: {process.communicate()[1]}")
    return process


def finish(process: subprocess.Popen[str]) -> list[str]:
    """Wait for a process that must succeed; return the trials that it counted."""
    out, error = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(f"it ended with code {process.returncode}: {error}{out}")
    return [line for line in out.splitlines() if line.startswith("done ")]


def kill(process: subprocess.Popen[str], family: bool) -> None:
    """Kill a process alone, or with its workers; an orphan must end by itself."""
    children = psutil.Process(process.pid).children(recursive=True)
    for victim in [process.pid, *(child.pid for child in children if family)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=30)
    left = [child.pid for child in children if child.is_running() and child.status() != "zombie"]
    if left:
        raise RuntimeError(f"processes {left} outlived their search")


def table(results: Path) -> Table:
    """Return all finished trials of a toy study: what its tables and figures are made of."""
    study = Study(results, "toy")
    return {name: [(r.slot, r.status, r.value, r.params) for r in study.finished(name)] for name in RECIPES}


def damaged(results: Path) -> list[Path]:
    """Return the files that were set aside."""
    return list(results.rglob("*.corrupt-*"))


def search_killed(folder: Path, trials: int, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill a search of one worker again and again; its results must be those of one left alone."""
    words = ("--trials", trials, "--seconds", 0.004, "--steps", 2)
    began = time.monotonic()
    finish(start(command(folder / "straight", *words)))
    each = (time.monotonic() - began) / 3 / kills  # so that the kills fall into the search
    chance, killed = random.Random(seed), 0
    while killed < kills:
        process = start(command(folder / "killed", *words))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=chance.uniform(0, 2 * each))
            break  # it was faster
        kill(process, family=bool(killed % 2))
        killed += 1
    finish(start(command(folder / "killed", *words)))
    return {
        "kills": killed,
        "trials": sum(map(len, table(folder / "killed").values())),
        "planned": trials * len(RECIPES),
        "equal": table(folder / "killed") == table(folder / "straight"),
        "damaged": len(damaged(folder / "killed")),
        "complete": completed(sqlite_url(folder / "killed" / "toy" / "study.db")),
    }


def completed(url: str, prefix: str = "") -> dict[str, int]:
    """Count complete trials and distinct slots among them in an index."""
    import optuna

    storage = open_storage(url)
    with closing(storage):
        slots = [
            (name, trial.user_attrs["slot"])
            for name in RECIPES
            for trial in optuna.load_study(study_name=prefix + name, storage=storage.backend).get_trials()
            if trial.state == optuna.trial.TrialState.COMPLETE
        ]
    return {"trials": len(slots), "slots": len(set(slots))}


def two_at_once(folder: Path, trials: int) -> dict[str, Any]:
    """Start two searches on one results folder: one works, and the other says that it does."""
    words = command(folder, "--trials", trials, "--seconds", 0.02)
    first = start(words)
    second = subprocess.run(words, capture_output=True, text=True, check=False)
    counted = finish(first)
    return {
        "code": second.returncode,
        "said": second.stderr.strip(),
        "counted": len(counted),
        "trials": sum(map(len, table(folder).values())),
        "planned": trials * len(RECIPES),
    }
