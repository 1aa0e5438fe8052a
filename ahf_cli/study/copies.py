"""Copies of the plug-ins that a study used, so that it can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ahf_cli.study.files import atomic_write, make_folder


def keep_plugins(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write plug-ins into `plugins/` of a study's folder; one that is there with other content is replaced.

    What its results depend on cannot have changed: that is part of a study's identity.
    """
    for name, content in files.items():
        target = folder / "plugins" / name
        if not target.exists() or target.read_bytes() != content:
            make_folder(target.parent)
            atomic_write(target, content)
