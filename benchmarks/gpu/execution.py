"""Commands of a part: run within a limit of time, their ends yielded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.pack import ROOT
from benchmarks.gpu.parts import Step

GRACE = 30.0
"""Seconds between the signals that stop and that kill a command; a part's limit includes them."""
SAID = 3
"""Last lines of a command's output in the state, beside the lines of failed tests."""


@dataclass(frozen=True)
class Ended:
    """The end of a command: exit code, None if it was stopped; seconds; the lines that tell most."""

    code: int | None
    seconds: float
    said: list[str]


def executed(
    steps: Sequence[Step], at_once: int, work: Path, environment: dict[str, str], goes_on: Callable[[], bool]
) -> Iterator[tuple[Step, Ended]]:
    """Yield each command as it ends; none begins where `goes_on` no longer holds."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    def one(step: Step) -> Ended | None:
        return execute(step, logs / f"{step.name}.txt", environment, goes_on) if goes_on() else None

    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(one, step): step for step in steps}
        for future in as_completed(waiting):
            if (ended := future.result()) is not None:
                yield waiting[future], ended


def execute(step: Step, log: Path, environment: dict[str, str], goes_on: Callable[[], bool]) -> Ended:
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
                os.killpg(process.pid, signal.SIGKILL)  # and its children that may still run
            process.wait()
    with log.open("rb") as stream:
        stream.seek(start)
        lines = stream.read().decode(errors="replace").split("\n")
    code = None if cut and process.returncode != 0 else process.returncode
    return Ended(code, time.monotonic() - began, excerpt(lines))


def excerpt(lines: Sequence[str]) -> list[str]:
    """Return the lines of failed tests and the last lines of a command's output."""
    lines = [line.rstrip() for line in lines if line.strip()]
    return [line for line in lines[:-SAID] if line.startswith(("FAILED", "ERROR"))] + lines[-SAID:]
