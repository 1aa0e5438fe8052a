"""Run the parts on the GPU machine: limits of time, state, archives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from ahf_cli.errors import AhfError, IncompleteError, InputError, InterruptedRunError
from ahf_cli.interruption import Interruption
from benchmarks import record
from benchmarks.gpu import archive
from benchmarks.gpu.execution import GRACE, executed
from benchmarks.gpu.pack import ROOT, install
from benchmarks.gpu.parts import Part, parts

OUT = ROOT / "results" / "gpu"
MINUTES = 9.0
FILES = 8
ARCHIVE = 12.0
"""MiB of an archive; five archives fit the limit"""
STATE = "state.json"
Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """The options of a run.

    Attributes:
        out: the folder that gets `state.json` and one archive a part.
        packed: the folder of wheels and data.
        device: `cuda` or `cpu`.
        small: whether the parts have their short forms.
        minutes: the limit of a part.
        files: the most files in `out`.
        archive: the most MiB of an archive with checkpoints.
    """

    out: Path
    packed: Path
    device: str
    small: bool = False
    minutes: float = MINUTES
    files: int = FILES
    archive: float = ARCHIVE


def run(names: Sequence[str], settings: Settings) -> None:
    """Run parts until each is done or its time is over; the same call resumes.

    Raises:
        InputError: there is no such device, the packed folder is incomplete, `out` holds results of other
            settings or would hold too many files.
        IncompleteError: time was over before a part was done.
        InterruptedRunError: a signal stopped a part.
        AhfError: commands failed.
    """
    machine, out = record.machine(_gpu(settings.device)), settings.out.resolve()
    record.check_writable(out)
    state = _state(out, settings)
    refuse_many(out, [*state["parts"], *names], settings.files)
    with (
        tempfile.TemporaryDirectory(prefix="ahf-gpu-") as site,
        Interruption().watched(quiet=False) as stopped,
    ):
        state |= {"commit": install(settings.packed, Path(site))["commit"], "machine": machine}
        available = parts(settings.device, settings.small, out / "work")
        for name in names:
            if stopped():
                break
            try:
                run_part(name, available[name], settings, state, _environment(settings, site), stopped)
            except AhfError as error:  # the other parts go on
                print(f"error: {name}: {error}", file=sys.stderr)
    _report(out, state, names, stopped())


def run_part(
    name: str, part: Part, settings: Settings, state: Record, environment: dict[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Run the unfinished commands of a part; write the state after each of them, then the archive."""
    began, limit = time.monotonic(), settings.minutes * 60
    deadline = began + limit - min(GRACE, limit / 10)
    out = settings.out.resolve()
    work, file = out / "work" / name, out / f"{name}.tar.gz"
    if state["parts"].get(name, {}).get("done"):
        return
    if not work.exists() and not file.exists():
        state["parts"].pop(name, None)  # the results of its commands are lost
    kept: Record = state["parts"].setdefault(name, {"done": False, "seconds": 0.0, "steps": {}})
    kept["commit"] = state.get("commit")
    archive.extract(file, work)
    steps: Record = kept["steps"]
    left = [step for step in part.steps if not _finished(part, steps, step.name)]
    for step, ended in executed(
        left, part.at_once, work, environment, lambda: not stopped() and time.monotonic() < deadline
    ):
        before = steps.get(step.name, {"seconds": 0.0})["seconds"]
        steps[step.name] = {**asdict(ended), "seconds": round(before + ended.seconds, 1)}
        record.write(out / STATE, state)
    kept["done"] = all(_finished(part, steps, step.name) for step in part.steps)
    if part.study:
        kept["study"] = _finish_study(part.study, work, environment, kept["done"])
    kept["seconds"] = round(kept["seconds"] + time.monotonic() - began, 1)
    archive.close(work, file, settings.archive)
    record.write(out / STATE, state)
    print(f"{name}: {describe(kept, len(part.steps))}", file=sys.stderr)


def _finished(part: Part, steps: Record, name: str) -> bool:
    return name in steps and steps[name]["code"] in part.finished


def _environment(settings: Settings, site: str) -> dict[str, str]:
    """Return the variables of the commands: wheels, data, device, and one thread unless a command asks."""
    hidden = {} if settings.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    return {
        **os.environ, **hidden, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1",
        "AHF_DATA_DIR": str(settings.packed.resolve() / "data"),
    }  # fmt: skip


def describe(kept: Record, steps: int) -> str:
    """Return a part's state in words."""
    ended = [s for s in kept["steps"].values() if s["code"] is not None]
    failed = [name for name, s in kept["steps"].items() if s["code"] not in (None, 0)]
    done = "done" if kept["done"] else "not done"
    said = f"{done}, {len(ended)} of {steps} commands ended, {kept['seconds']:.0f} s"
    return said + (f", exit code not 0: {', '.join(failed)}" if failed else "")


def refuse_many(out: Path, names: Sequence[str], files: int) -> None:
    """Raise InputError where the state and one archive a part are more files than may come back."""
    if (needed := 1 + len(set(names))) > files:
        raise InputError(f"--files must be at least {needed} for {needed - 1} parts in {out}, got {files}")


def _gpu(device: str) -> str | None:
    """Return the name of the GPU, None for a CPU; raise InputError where there is no GPU."""
    if device == "cpu":
        return None
    import torch

    if not torch.cuda.is_available():
        raise InputError("--device must be a device that is there, got 'cuda', and PyTorch finds none")
    return torch.cuda.get_device_name()


def _state(out: Path, own: Settings) -> Record:
    """Read the state of earlier runs; raise InputError where it is damaged or of other settings."""
    settings = {"device": own.device, "small": own.small}
    file = out / STATE
    if not file.exists():
        return {"settings": settings, "parts": {}}
    try:
        state: Record = json.loads(file.read_text(encoding="utf-8"))
        found = state["settings"]
        for part in state["parts"].values():
            _ = part["done"], part["seconds"], [step["code"] for step in part["steps"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: must be a file that `python -m benchmarks.gpu` wrote, got {error!r}"
        ) from error
    if found != settings:
        raise InputError(f"--out must be a folder of the same --device and --small, got {out} with {found}")
    return state


def _finish_study(name: str, work: Path, environment: dict[str, str], done: bool) -> Any:
    """Pack a finished study in place of its folders; return the status of its searches."""

    def ahf(*words: str) -> str:
        line = [sys.executable, "-m", "ahf_cli", *words, "--results", str(work), "--json"]
        ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise AhfError(f"`ahf {words[0]}` failed, and {work} keeps the study: {ended.stderr.strip()}")
        return ended.stdout

    if not (work / name).exists():
        return None
    status = json.loads(ahf("status", "--study", name))
    if done:
        packed = work / "packed"
        rmtree(packed, ignore_errors=True)  # of a killed run
        ahf("pack", name, "--to", str(packed))
        (work / name).rename(packed / "folders")
        (packed / name).rename(work / name)
        rmtree(packed)
    return status


def _report(out: Path, state: Record, names: Sequence[str], stopped: bool) -> None:
    files = [path for path in out.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    print(f"written: {out}, {len(files)} files, {size:.1f} MB", file=sys.stderr)
    unfinished = [name for name in names if not state["parts"].get(name, {}).get("done")]
    if not unfinished:
        return
    line = f"not done: {', '.join(unfinished)}; the same command resumes"
    if stopped:
        raise InterruptedRunError(line)
    codes = {s["code"] for name in unfinished for s in state["parts"][name]["steps"].values()}
    raise (AhfError if codes - {None, 0, 3, 75} else IncompleteError)(line)
