"""The environment of a result: commit of the code, versions of packages, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ahf_cli.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TRAINING = (
    "ahf_cli/optim",
    "ahf_cli/recipes",
    "ahf_cli/search/sampler.py",
    "ahf_cli/tasks",
    "ahf_cli/training/evaluate.py",
    "ahf_cli/training/records.py",
    "ahf_cli/training/train.py",
    "ahf_cli/errors.py",
)
"""Paths of the code that draws hyperparameters and trains; if they are equal, results are equal."""
BEFORE = (
    "ahf_cli/experiment/evaluate.py",
    "ahf_cli/experiment/records.py",
    "ahf_cli/experiment/space.py",
    "ahf_cli/experiment/train.py",
    "ahf_cli/hyperparameters.py",
    "ahf_cli/recipe.py",
    "ahf_cli/structure.py",
)
"""Earlier paths of that code, in the commits of committed studies."""


def commit(paths: Sequence[str] = (".", ":!results")) -> dict[str, Any]:
    """Return the commit of the source, and whether paths changed since; both None outside a checkout.

    Default: all paths but `results/`, where runs write and which holds no code.
    """
    if not (ROOT / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        head = _git("rev-parse", "HEAD").stdout.strip()
        changed = _git("status", "--porcelain", "--", *paths).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(changed)}


def same_training(one: str, other: str) -> bool:
    """Return whether two commits draw and train alike; False if Git does not know them."""
    try:
        return _git("diff", "--quiet", one, other, "--", *TRAINING, *BEFORE, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _git(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=check, timeout=10
    )


THREADS = "OMP_NUM_THREADS"
MAX_THREADS = 1024
PACKAGES = ("ahf-cli", "torch", "torchvision", "optuna", "numpy", "pandas")


def resolve_device(wanted: str) -> str:
    """Return `cpu` or `cuda`; raises InputError for `cuda` without a GPU."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InputError("run.device: must be a device that is there, got 'cuda', and PyTorch finds none")
    return "cuda" if wanted == "auto" and available else "cpu" if wanted == "auto" else wanted


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(given: int | None = None) -> int | None:
    """Return the number of threads of the option or the environment; None if neither is set.

    Raises InputError for a number outside [1, MAX_THREADS].
    """
    name, text = ("--threads", str(given)) if given is not None else (THREADS, os.environ.get(THREADS, ""))
    text = text.partition(",")[0].strip()  # OMP_NUM_THREADS may list one value a level of nesting
    if not text and given is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise InputError(f"{name} must be an integer in [1, {MAX_THREADS}], got {text}")
    return int(text)


def numerical_path(device: str) -> str:
    """Return the name of the numerical path on a device, such as `compiled`."""
    from ahf_cli.optim.layers.compiled import numerics

    return numerics(device)


def describe(device: str) -> dict[str, Any]:
    """Return versions, commit and machine as plain data for a manifest."""
    import torch

    return {
        **commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "numerics": numerical_path(device),
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "cores": cores(),
        "host": platform.node(),
    }


def version(name: str) -> str | None:
    """Return the version of an installed package; None if it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
