"""The folder of a GPU machine without internet: the wheels that it lacks, and Fashion-MNIST."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from shutil import rmtree
from typing import Any

from ahf_cli.errors import AhfError, InputError
from ahf_cli.training.environment import commit
from benchmarks import record

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"
LIMIT = 60.0
"""MiB that a batch system lets travel"""
PYTHON = "3.12"
MIB = 2**20
MANIFEST = "packed.json"
MISSING = (
    "optuna", "alembic", "sqlalchemy", "mako", "colorlog",
    "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "platformdirs", "filelock",
    "bokeh", "tornado", "xyzservices", "narwhals",
    "psutil",
)  # fmt: skip
"""Packages that an image with PyTorch, pandas and matplotlib lacks, or may have in too old a version."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack(folder: Path, limit: float, python: str) -> None:
    """Download wheels and data into a folder, unless they are complete, and count their bytes.

    Args:
        folder: the folder that gets `wheels/`, `data/` and a manifest.
        limit: the most MiB of the folder and of the checkout without `results/`.
        python: the version of Python on the GPU machine.

    Raises:
        InputError: the sum is over the limit.
        AhfError: a download failed.
    """
    found = manifest(folder)
    if found is None or found["python"] != python:
        (folder / MANIFEST).unlink(missing_ok=True)
        _wheels(folder / "wheels", python)
        _data(folder / "data")
        files = (path for path in sorted(folder.glob("*/**/*")) if path.is_file())
        found = {"python": python, "files": {str(p.relative_to(folder)): p.stat().st_size for p in files}}
    if "checkout" not in found or (ROOT / ".git").exists():
        found |= {**commit(), "checkout": checkout_bytes(ROOT)}
        refuse_large(found, limit)
        record.write(folder / MANIFEST, found)
    total = refuse_large(found, limit)
    print(f"packed: {folder}, {total:.1f} MiB with the checkout, without results/", file=sys.stderr)


def manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a packed folder; None where it or a file is missing."""
    try:
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        complete = all((folder / name).stat().st_size == size for name, size in found["files"].items())
        return found if complete and {"python", "checkout"} <= found.keys() else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def refuse_large(found: dict[str, Any], limit: float) -> float:
    """Return the MiB of checkout, wheels and data; raise InputError where they are over the limit."""
    sizes = {
        "the checkout without results/": found["checkout"],
        **{
            what: sum(size for name, size in found["files"].items() if name.startswith(f"{what}/"))
            for what in ("wheels", "data")
        },
    }
    total: float = sum(sizes.values()) / MIB
    if total > limit:
        each = ", ".join(f"{what} {size / MIB:.1f}" for what, size in sizes.items())
        raise InputError(
            f"--limit: checkout, wheels and data must be at most {limit:g} MiB, got {total:.1f} ({each})"
        )
    return total


def checkout_bytes(root: Path) -> int:
    """Return the bytes of a checkout's files, without `results/` and files that Git ignores."""
    words = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ".", ":!results"]
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AhfError(f"pack counts the files of a Git checkout, and {root} is none: {_last(done.stderr)}")
    files = [root / name for name in done.stdout.split("\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file())


def _wheels(folder: Path, python: str) -> None:
    """Download the versions that this environment has, which are tested together."""
    try:
        pinned = [f"{name}=={metadata.version(name)}" for name in MISSING]
    except metadata.PackageNotFoundError as error:
        raise AhfError(
            f"pack takes the versions installed here, and {error.name} is not: `make install`"
        ) from error
    rmtree(folder, ignore_errors=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    print(f"downloading {len(pinned)} wheels …", file=sys.stderr)
    pip(
        "download", "--only-binary=:all:", "--no-deps", "--python-version", python, *platforms,
        "--dest", str(folder), *pinned,
    )  # fmt: skip


def _data(folder: Path) -> None:
    words = [sys.executable, "-m", "ahf_cli", "data", "fetch", "--data-dir", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise AhfError(f"`ahf data fetch` failed: {_last(done.stderr)}")


def pip(*words: str) -> None:
    """Run pip quietly; raise AhfError with its last line where it fails."""
    line = [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AhfError(f"`pip {words[0]}` failed: {_last(done.stderr)}")


def _last(text: str) -> str:
    """Return the last error of a program's output, else its last line."""
    lines = text.strip().splitlines() or ["it said nothing"]
    return ([line for line in lines if line.startswith("ERROR")] or lines)[-1]


def install(folder: Path, site: Path) -> dict[str, Any]:
    """Install the wheels of a packed folder into the folder `site`, without internet; return the manifest.

    Raises:
        InputError: the folder is incomplete, or was packed for another version of Python.
        AhfError: pip failed.
    """
    found, here = manifest(folder), f"{sys.version_info.major}.{sys.version_info.minor}"
    if found is None:
        raise InputError(
            f"--packed must be a folder that `python -m benchmarks.gpu pack` completed, got {folder}"
        )
    if found["python"] != here:
        raise InputError(
            f"--packed must hold wheels for Python {here}, got wheels for {found['python']}: "
            f"pack with --python {here}"
        )
    wheels = sorted(str(file) for file in (folder / "wheels").glob("*.whl"))
    pip("install", "--no-index", "--no-deps", "--no-compile", "--target", str(site), *wheels)
    return found
