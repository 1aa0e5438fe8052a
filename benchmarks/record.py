"""The kept numbers: one JSON file a device, with versions and machine."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ahf_cli.errors import InputError
from ahf_cli.training.environment import commit, processor, version

SCHEMA = 2
PACKAGES = (
    "torch", "numpy", "ahf-cli", "backpack-for-pytorch", "curvlinops-for-pytorch", "hessian-eigenthings",
    "jax",
)  # fmt: skip
Record = dict[str, Any]


def stamp(quick: bool, load: float) -> Record:
    """Return date, commit and versions of the numbers."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(("ahf_cli",)),  # what is measured
        "quick": quick,
        "load_before": round(load, 2),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def machine(gpu: str | None) -> Record:
    """Return the machine of the numbers."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "gpu": gpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def merge(old: Record | None, new: Record) -> Record:
    """Put new tables in the place of old ones; the other old ones stay if they are of the same machine."""
    if old is None or old["machine"] != new["machine"]:
        return new
    return {**new, "sections": {**old["sections"], **new["sections"]}}


def read(file: Path) -> Record:
    """Read kept numbers; raises InputError if they are damaged or of another schema."""
    content = _parsed(file)
    if content["schema"] != SCHEMA:
        raise InputError(
            f"{file}: schema must be {SCHEMA}, got {content['schema']!r}; run `python -m benchmarks`"
        )
    return content


def earlier(file: Path) -> Record | None:
    """Read the numbers that new ones join; None if there are none, or of another schema."""
    content = _parsed(file) if file.exists() else None
    return content if content and content["schema"] == SCHEMA else None


def _parsed(file: Path) -> Record:
    try:
        content: Record = json.loads(file.read_text(encoding="utf-8"))
        _ = content["schema"], content["machine"], content["sections"], content["device"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: must be a file that `python -m benchmarks` wrote, got {error!r}"
        ) from error
    return content


def write(file: Path, content: Record) -> None:
    """Write numbers as strict JSON, the whole file or nothing."""
    write_text(file, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a whole file or nothing: temporary file beside it, then rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", suffix=".tmp", delete=False
    ) as temporary:
        try:
            temporary.write(text)
            temporary.flush()
            os.fsync(temporary.fileno())
            os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, file)
        except BaseException:
            Path(temporary.name).unlink(missing_ok=True)
            raise


def check_writable(folder: Path) -> None:
    """Raise InputError if a folder cannot be written, before minutes are spent on its content."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out must be a folder that can be written, got {folder}: {error}") from error
