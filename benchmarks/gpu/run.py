"""Run the parts on the GPU machine: limits of time, state, archives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from ahf_cli.errors import AhfError, IncompleteError, InputError, InterruptedRunError
from ahf_cli.interruption import Interruption
from benchmarks import record
from benchmarks.gpu.pack import ROOT, install
from benchmarks.gpu.parts import Part, Step, parts

OUT = ROOT / "results" / "gpu"
MINUTES = 9.0
FILES = 8
GRACE = 30.0
"""Seconds from the signal that stops a command to the one that kills it; a part's limit includes them."""
STATE = "state.json"
SAID = 3
"""Last lines of a command's output in the state, beside the lines of failed tests."""
Record = dict[str, Any]


def run(
    names: Sequence[str], out: Path, packed: Path, device: str, small: bool, minutes: float, files: int
) -> None:
    """Run parts until each is done or its time is over; the same call resumes.

    Args:
        names: the parts.
        out: the folder that gets `state.json` and one archive a part.
        packed: the folder of wheels and data.
        device: `cuda` or `cpu`.
        small: run the short forms.
        minutes: the limit of a part.
        files: the most files in `out`.

    Raises:
        InputError: there is no such device, the packed folder is incomplete, `out` holds results of other
            settings or would hold too many files.
        IncompleteError: time was over before a part was done.
        InterruptedRunError: a signal stopped a part.
        AhfError: commands failed.
    """
    machine, out = record.machine(_gpu(device)), out.resolve()
    record.check_writable(out)
    state = _state(out, device, small)
    refuse_many(out, [*state["parts"], *names], files)
    with (
        tempfile.TemporaryDirectory(prefix="ahf-gpu-") as site,
        Interruption().watched(quiet=False) as stopped,
    ):
        manifest = install(packed, Path(site))
        state |= {"commit": manifest["commit"], "machine": machine}
        environment = {
            **os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1",
            "AHF_DATA_DIR": str(packed.resolve() / "data"),
            **({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
        }  # fmt: skip
        available = parts(device, small, out / "work")
        for name in names:
            if not stopped():
                run_part(name, available[name], out, state, environment, minutes * 60, stopped)
    _report(out, state, names, stopped())


def run_part(
    name: str, part: Part, out: Path, state: Record, environment: dict[str, str], seconds: float,
    stopped: Callable[[], bool],
) -> None:  # fmt: skip
    """Run the unfinished commands of a part within a limit; write the state after each, then the archive."""
    began, work, archive = time.monotonic(), out / "work" / name, out / f"{name}.tar.gz"
    deadline = began + seconds - min(GRACE, seconds / 10)
    if state["parts"].get(name, {}).get("done"):
        return
    if not work.exists() and not archive.exists():
        state["parts"].pop(name, None)  # the results of its commands are lost
    kept: Record = state["parts"].setdefault(name, {"done": False, "seconds": 0.0, "steps": {}})
    _open(archive, work)
    left = [s for s in part.steps if kept["steps"].get(s.name, {}).get("code") not in part.finished]
    for step, ended in _executed(
        left, part.at_once, work, environment, lambda: not stopped() and time.monotonic() < deadline
    ):
        before = kept["steps"].get(step.name, {"seconds": 0.0})
        kept["steps"][step.name] = {**ended, "seconds": round(before["seconds"] + ended["seconds"], 1)}
        record.write(out / STATE, state)
    codes = [kept["steps"].get(step.name, {}).get("code") for step in part.steps]
    kept["done"] = all(code in part.finished for code in codes)
    if part.study:
        kept["study"] = _finish_study(part.study, work, environment, kept["done"])
    kept["seconds"] = round(kept["seconds"] + time.monotonic() - began, 1)
    _close(work, archive)
    record.write(out / STATE, state)
    print(f"{name}: {describe(kept, len(part.steps))}", file=sys.stderr)


def execute(step: Step, log: Path, environment: dict[str, str], goes_on: Callable[[], bool]) -> Record:
    """Run a command; stop it where `goes_on` no longer holds; its exit code is then None."""
    began, cut = time.monotonic(), False
    with log.open("ab") as stream:
        start = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", *step.words], cwd=ROOT, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while process.poll() is None and not cut:
                cut = not goes_on()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0 if cut else 0.2)
            if cut:
                process.terminate()  # it tells its own workers
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it may have left running
            process.wait()
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").split("\n")
    code = None if cut and process.returncode != 0 else process.returncode
    return {"code": code, "seconds": time.monotonic() - began, "said": excerpt(lines)}


def excerpt(lines: Sequence[str]) -> list[str]:
    """Return the lines of failed tests and the last lines of a command's output."""
    lines = [line.rstrip() for line in lines if line.strip()]
    return [line for line in lines[:-SAID] if line.startswith(("FAILED", "ERROR"))] + lines[-SAID:]


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


def _state(out: Path, device: str, small: bool) -> Record:
    """Read the state of earlier runs; raise InputError where it is damaged or of other settings."""
    settings = {"device": device, "small": small}
    file = out / STATE
    if not file.exists():
        return {"settings": settings, "parts": {}}
    try:
        state: Record = json.loads(file.read_text(encoding="utf-8"))
        found, _ = state["settings"], state["parts"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: must be a file that `python -m benchmarks.gpu` wrote, got {error!r}"
        ) from error
    if found != settings:
        raise InputError(f"--out must be a folder of the same --device and --small, got {out} with {found}")
    return state


def _executed(
    steps: Sequence[Step], at_once: int, work: Path, environment: dict[str, str], goes_on: Callable[[], bool]
) -> Iterator[tuple[Step, Record]]:
    """Yield each command as it ends; none begins where `goes_on` no longer holds."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def one(step: Step) -> Record | None:
        return execute(step, logs / f"{step.name}.txt", environment, goes_on) if goes_on() else None

    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(one, step): step for step in steps}
        for future in as_completed(waiting):
            if (ended := future.result()) is not None:
                yield waiting[future], ended


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
        ahf("pack", name, "--to", str(work / "packed"))
        rmtree(work / name)
        (work / "packed" / name).rename(work / name)
        (work / "packed").rmdir()
    return status


def _open(archive: Path, work: Path) -> None:
    """Extract a part's archive, unless a killed run has left its folder."""
    if not work.exists() and archive.exists():
        fresh = work.with_name(f".{work.name}")
        rmtree(fresh, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(fresh, filter="data")
        fresh.rename(work)


def _close(work: Path, archive: Path) -> None:
    """Write a part's folder as one file, and delete the folder."""
    fresh = archive.with_name(f".{archive.name}")
    with tarfile.open(fresh, "w:gz") as tar:
        for path in sorted(work.iterdir()):
            tar.add(path, path.name)
    fresh.replace(archive)
    rmtree(work)
    with suppress(OSError):
        work.parent.rmdir()


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
