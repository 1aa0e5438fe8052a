"""The installation on this machine: its versions, device, data and disk, for reports of errors."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from ahf_cli.errors import InputError
from ahf_cli.training.environment import (
    PACKAGES,
    ROOT,
    THREADS,
    commit,
    cores,
    processor,
    thread_count,
    version,
)

LEAST_FREE = 100e6
"""bytes of free disk; the paper's study of 140 trials takes 21 MB"""


def examine(results: Path) -> dict[str, Any]:
    """Return the installation as plain data, section by section.

    Each section has a `problem`: one line if it prevents training, else None.  Home folders become `~`.
    """
    sections = {
        "versions": _versions(),
        "platform": {"system": platform.platform(), "processor": processor(), "problem": None},
        "threads": _threads(),
        "device": _device(),
        "numerics": _numerics(),
        "data": _data(),
        "results": _disk(results),
    }
    problems = [f"{name}: {found['problem']}" for name, found in sections.items() if found["problem"]]
    found: dict[str, Any] = without_home({"ready": not problems, "problems": problems, **sections})
    return found


def without_home(data: Any) -> Any:
    """Return plain data whose texts have `~` in place of the user's home folder."""
    if isinstance(data, dict):
        return {key: without_home(value) for key, value in data.items()}
    if isinstance(data, list):
        return [without_home(value) for value in data]
    if not isinstance(data, str):
        return data
    for home in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        data = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w-]|\.\w)", "~", data)
    return data


def _versions() -> dict[str, Any]:
    found = {name: version(name) for name in (*PACKAGES[1:], "matplotlib")}
    wrong = [f"{name} is not installed" for name, installed in found.items() if installed is None]
    for name in ("torch", "torchvision"):  # two builds that do not fit each other fail at import
        if found[name] is not None and (fault := _fault(name)):
            wrong.append(f"{name} {found[name]} cannot be imported: {fault}")
    return {
        "ahf": version(PACKAGES[0]),
        **commit(),
        "folder": str(ROOT),
        "python": platform.python_version(),
        "environment": sys.prefix,
        "packages": found,
        "problem": "; ".join(wrong) or None,
    }


def _fault(module: str) -> str | None:
    """Return the first line of the error that the import of a module raises."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _threads() -> dict[str, Any]:
    problem = None
    try:
        thread_count()
    except InputError as error:
        problem = error.lines[0]
    found = {"cores": cores(), THREADS: os.environ.get(THREADS), "torch": None, "problem": problem}
    if _fault("torch"):
        return found
    import torch

    return {**found, "torch": torch.get_num_threads()}


def _device() -> dict[str, Any]:
    """Return the device that `auto` takes; without a GPU, the reason."""
    cpu: dict[str, Any] = {"name": "cpu", "gpus": [], "reason": "PyTorch cannot be imported", "problem": None}
    if _fault("torch"):
        return cpu
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver; the error below says the same
        available = torch.cuda.is_available()
    if not available:
        return {**cpu, "reason": _without_gpu()}
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    named = [{"name": gpu.name, "gigabytes": round(gpu.total_memory / 1e9, 1)} for gpu in gpus]
    return {"name": "cuda", "gpus": named, "reason": None, "problem": None}


def _without_gpu() -> str:
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return "this build of PyTorch is for the CPU alone"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).split(". ")[0].splitlines()[0]
    return f"PyTorch finds none, with CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}"


def _numerics() -> dict[str, Any]:
    if fault := _fault("ahf_cli.optim.layers.compiled"):
        return {"cpu": None, "said": fault, "problem": None}  # PyTorch's own problem stands above
    from ahf_cli.optim.layers.compiled import described, numerics

    return {"cpu": numerics("cpu"), "said": described(), "problem": None}


def _data() -> dict[str, Any]:
    from ahf_cli.tasks.folder import locate

    try:
        return {"title": "Fashion-MNIST", "folder": str(locate()), "verified": True, "problem": None}
    except (InputError, OSError) as error:
        problem = "; ".join(error.lines) if isinstance(error, InputError) else str(error)
        return {"title": "Fashion-MNIST", "folder": None, "verified": False, "problem": problem}


def _disk(results: Path) -> dict[str, Any]:
    """Return the place of the results, which may not be there yet, and its free space."""
    whole = Path(os.path.abspath(results))
    there = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    free = shutil.disk_usage(there).free if there.exists() else 0
    problem = None
    if not there.is_dir():
        problem = f"{there} must be a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} must be a folder that this user may write"
    elif free < LEAST_FREE:
        problem = (
            f"{there} must have at least {LEAST_FREE / 1e6:.0f} MB of free disk, has {free / 1e6:.1f} MB"
        )
    return {"folder": str(whole), "free_gigabytes": round(free / 1e9, 3), "problem": problem}
