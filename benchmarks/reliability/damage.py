"""Files cut short at many positions, and disks that are full or read-only."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ahf_cli.recipes.builtin import RECIPES
from ahf_cli.search.pool import Job
from ahf_cli.search.storage import sqlite_url
from ahf_cli.study import files
from ahf_cli.study.store import Study
from ahf_cli.study.trial_folder import TrialFolder
from ahf_cli.training.records import CurveRow, StepRow, TrialResult
from benchmarks.reliability.kills import command, completed, finish, start, table
from benchmarks.reliability.toy import toy_curve, toy_result

FILES = ("result.json", "curve.csv", "steps.csv.gz", "params.json", "checkpoint.pt")
Content = tuple[TrialResult, list[CurveRow], list[StepRow]]


def content(slot: int) -> Content:
    """Return a trial as a worker hands it to the store."""
    result = toy_result(Job(RECIPES["hf"], {slot: {"lr": 0.1, "damping": 4.0 + slot}}), slot)
    steps = [
        StepRow(s, 2.3, 2.2, 0.05, 5.0, 0.1, 0.005, 0.1, -1e-7, 10.0, 0.5, -0.1, 12, "progress", 1.0, -13.0)
        for s in (1, 2)
    ]
    return result, toy_curve(result.value), steps


def cut(folder: Path, name: str, positions: int | None = None) -> dict[str, Any]:
    """Cut one file of a trial at byte positions, all of them by default; only that trial may be affected."""
    study = Study(folder, "cut")
    for slot in (0, 1, 2):
        write(study.trial("hf", slot), slot, checkpoint=name == "checkpoint.pt" and slot == 1)
    trial = study.trial("hf", 1)
    file = trial.path / name
    whole = file.read_bytes()
    others = _bytes(study, (0, 2))
    # JSON that lacks nothing but its last newline is whole.
    length = len(whole.rstrip() if name.endswith(".json") else whole)
    count = positions or length
    tried = sorted({i * length // count for i in range(count)})
    noticed = redone = 0
    for at in tried:
        file.write_bytes(whole[:at])
        noticed += _noticed(trial, name)
        for damaged in trial.path.glob("*.corrupt-*"):
            damaged.unlink()
        write(trial, 1, checkpoint=name == "checkpoint.pt")
        redone += _is_whole(trial, name)
    found = {"file": name, "positions": len(tried), "noticed": noticed, "redone": redone}
    return {**found, "others_touched": _bytes(study, (0, 2)) != others}


def write(trial: TrialFolder, slot: int, checkpoint: bool = False) -> None:
    """Write a finished trial, or one with two checkpoints."""
    trial.write_params({"recipe": "hf", "slot": slot, "params": {"lr": 0.1, "damping": 4.0 + slot}})
    if checkpoint:
        trial.save_checkpoint(b"older" * 20, 1)
        trial.save_checkpoint(b"newer" * 20, 2)
    else:
        trial.finish(*content(slot))


def _noticed(trial: TrialFolder, name: str) -> bool:
    """Tell whether the damage is seen, and the file set aside under another name."""
    if name == "checkpoint.pt":
        seen = trial.load_checkpoints() == [b"older" * 20]
    elif name == "params.json":
        seen = trial.read_params() is None
    else:
        seen = trial.result() is None
    return seen and (trial.path / f"{name}.corrupt-1").exists()


def _is_whole(trial: TrialFolder, name: str) -> bool:
    if name == "checkpoint.pt":
        return trial.load_checkpoints()[0] == b"newer" * 20
    return trial.result() == content(1)[0] if name != "params.json" else trial.read_params() is not None


def _bytes(study: Study, slots: tuple[int, ...]) -> dict[Path, bytes]:
    folders = [study.trial("hf", slot).path for slot in slots]
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}


def database_cut(folder: Path, positions: int) -> dict[str, Any]:
    """Cut the database of a finished search at byte positions: it is made anew from the trials."""
    words = command(folder, "--trials", 3)
    finish(start(words))
    before, file, survived = table(folder), folder / "toy" / "study.db", 0
    whole = file.read_bytes()
    for i in range(positions):
        file.write_bytes(whole[: i * len(whole) // positions])
        counted = finish(start(words))
        same = completed(sqlite_url(file)) == {"trials": 6, "slots": 6}
        survived += not counted and table(folder) == before and same
    return {"file": "study.db", "positions": positions, "survived": survived}


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path | None]:
    """Mount a real file system of this size; None where that is not allowed here."""
    folder = Path(tempfile.mkdtemp(prefix="ahf-disk-"))
    size = f"size={kilobytes}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def disk_filled(kilobytes: int = 400) -> dict[str, Any] | None:
    """Fill a small disk during a search, make room, and go on; None where none can be mounted."""
    with small_disk(kilobytes) as folder:
        if folder is None:
            return None
        words = command(folder, "--trials", 40, "--seconds", 0.002)
        ballast = folder / "ballast"
        process = start(words)
        with contextlib.suppress(OSError), open(ballast, "wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
        out, error = process.communicate(timeout=120)
        found = {"code": process.returncode, "said": error.strip(), "kept": out.count("done ")}
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        finish(start(words))
        trials = sum(map(len, table(folder).values()))
        complete = completed(sqlite_url(folder / "toy" / "study.db"))
        return {**found, "trials": trials, "planned": 80, "complete": complete}


@contextmanager
def faulty_writes(allowed: int) -> Iterator[None]:
    """Let every write after the first so many bytes fail, as on a full disk, also within a file."""
    left, real = allowed, os.fsync

    def full(descriptor: int) -> None:
        nonlocal left
        about = os.fstat(descriptor)
        # Of a folder, which grows with the number of trials, always the same.
        left -= 4096 if stat.S_ISDIR(about.st_mode) else max(1, about.st_size)
        if left < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    files.os.fsync = full  # type: ignore[attr-defined]
    try:
        yield
    finally:
        files.os.fsync = real  # type: ignore[attr-defined]


def writes_failed(folder: Path, step: int) -> dict[str, Any]:
    """Let the disk be full after more and more bytes of a trial: it is there whole, or not at all."""
    study = Study(folder, "full")
    tried = torn = finished = 0
    for allowed in range(0, 20_000, step):
        trial = study.trial("hf", tried)
        tried += 1
        try:
            with faulty_writes(allowed):
                trial.finish(*content(trial.slot))
            finished += 1
        except OSError:
            torn += trial.result() not in (None, content(trial.slot)[0])
            torn += bool(list(trial.path.glob(".*.tmp")))
            trial.finish(*content(trial.slot))
        torn += trial.result() != content(trial.slot)[0]
    return {"positions": tried, "failed": tried - finished, "torn": torn}
