"""Which state of the source a result comes from, as Git knows it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
"""What draws hyperparameters and trains with them: where these are equal, a trial comes out the same."""
BEFORE = (
    "ahf_cli/experiment/evaluate.py",
    "ahf_cli/experiment/records.py",
    "ahf_cli/experiment/space.py",
    "ahf_cli/experiment/train.py",
    "ahf_cli/hyperparameters.py",
    "ahf_cli/recipe.py",
    "ahf_cli/structure.py",
)
"""Where the same stood in earlier commits, which committed studies were trained at."""


def commit(paths: Sequence[str] = (".", ":!results")) -> dict[str, Any]:
    """Return the commit of the source and whether paths in it changed since; None outside a checkout.

    By default everything counts but `results/`: what runs write there does not change the code.
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
    """Whether two commits are known to draw and train alike; False where Git cannot tell."""
    try:
        return _git("diff", "--quiet", one, other, "--", *TRAINING, *BEFORE, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _git(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=check, timeout=10
    )
