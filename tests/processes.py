"""`ahf` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import ahf_cli

ROOT = Path(ahf_cli.__file__).parents[1]
COMPARE = """
import sys, typer
from ahf_cli.cli import compare
from ahf_cli.cli.options import DEFAULT_RESULTS
from ahf_cli.errors import AhfError
app = typer.Typer()
app.callback()(lambda: None)
app.add_typer(compare.app, name="compare")
code = 0
try:
    app(sys.argv[1:], standalone_mode=False)
except AhfError as error:
    print(*error.lines, sep="\\n", file=sys.stderr)
    code = error.exit_code
loaded = {"torch", "optuna"} & set(sys.modules)
sys.exit(f"imported {loaded}" if loaded else code)
"""


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which another process imports this copy of the package."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": paths, **(changes or {})}


def ahf(
    *words: str | Path, env: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its exit code and both streams."""
    command = [sys.executable, "-m", "ahf_cli", *map(str, words)]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        env=environment(env), check=False,
    )  # fmt: skip


def python(code: str, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a Python program with warnings as errors; return its exit code and both streams."""
    command = [sys.executable, "-W", "error", "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment(), check=False)


def compare(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `ahf compare`; the exit code is 1 if the command imports torch or Optuna."""
    return python(COMPARE, "compare", *map(str, words))
