"""What a result depends on besides its configuration: code, versions, machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ahf_cli.errors import InputError
from ahf_cli.training.source import commit

PACKAGES = ("ahf-cli", "torch", "torchvision", "optuna", "numpy", "pandas")


def resolve_device(wanted: str) -> str:
    """Return `cpu` or `cuda`; raises InputError where CUDA is asked for and there is none."""
    available = torch.cuda.is_available()
    # Convolutions of 10-bit mantissas would make B unsymmetric and move CG's stops.
    torch.backends.cudnn.allow_tf32 = False
    if wanted == "cuda" and not available:
        raise InputError("run.device: must be a device that is there, got 'cuda', and PyTorch finds none")
    return "cuda" if wanted == "auto" and available else "cpu" if wanted == "auto" else wanted


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str) -> dict[str, Any]:
    """Return versions, commit and machine as plain data for a manifest."""
    return {
        **commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "cores": cores(),
        "host": platform.node(),
    }


def version(name: str) -> str | None:
    """Return the version of an installed package, None where it is not."""
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
