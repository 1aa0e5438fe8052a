"""A real search killed at random moments, again and again, ends as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ahf_cli.study.store import Study

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


@pytest.mark.long
def test_killed_at_random_moments(tmp_path: Path) -> None:
    straight = start(tmp_path / "straight")
    assert straight.wait() == 0
    chance, kills, deadline = random.Random(0), 0, time.monotonic() + 900
    while time.monotonic() < deadline:
        process = start(tmp_path / "killed")
        try:
            code = process.wait(timeout=chance.uniform(3, 8) if kills < 12 else None)
            assert code == 0
            break
        except subprocess.TimeoutExpired:
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
    assert table(tmp_path / "killed") == table(tmp_path / "straight")
    for file in (tmp_path / "killed").rglob("result.json"):
        assert json.loads(file.read_text())["status"] == "ok"
    assert len(list((tmp_path / "killed").rglob("result.json"))) == 8
    assert not list((tmp_path / "killed").rglob("*.corrupt-*"))
