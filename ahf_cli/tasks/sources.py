"""Where a data set's files are: looked for, checked against their digests, and fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_dir

from ahf_cli.errors import InputError
from ahf_cli.recipes.hyperparameters import nearest
from ahf_cli.tasks.datasets import DATA_SETS, DataSet
from ahf_cli.tasks.digests import damage, digests, missing, verify
from ahf_cli.tasks.ways import Report, Way, WayFailedError, move, system_folder, temporary, ways

__all__ = ["Report", "cache_folder", "digests", "fetch", "find", "locate", "verify"]

ENVIRONMENT = "AHF_DATA_DIR"


def find(name: str) -> DataSet:
    """Return the data set of that name, or raise InputError with the nearest known name."""
    if name not in DATA_SETS:
        raise InputError(f"unknown data set {name!r}{nearest(name, DATA_SETS, pluggable=True)}")
    return DATA_SETS[name]


def cache_folder(data: DataSet) -> Path:
    """Return a data set's folder in the user's cache, by the XDG rules."""
    return Path(user_cache_dir("ahf", appauthor=False)) / data.folder


def _explicit(data_dir: Path | None, data: DataSet) -> Path | None:
    """Return the folder that the option or the environment names.

    That is the named one, or in it the one that is called as in the cache.  MNIST is always in the latter:
    its files have the names of Fashion-MNIST's.
    """
    if data_dir is None and os.environ.get(ENVIRONMENT):
        data_dir = Path(os.environ[ENVIRONMENT])
    if data_dir is None:
        return None
    named = data_dir.expanduser()
    own = named / data.folder
    return own if own.is_dir() or data.name == "mnist" else named


def _known(data: DataSet) -> Path | None:
    """Return the cache or the system's folder, whichever first has all files; a damaged file is an error."""
    for folder in (cache_folder(data), system_folder(data)):
        if not missing(folder, data):
            verify(folder, data)
            return folder.resolve()
    return None


def locate(data_dir: Path | None = None, data: DataSet | None = None) -> Path:
    """Return the verified folder of a data set: `data_dir`, AHF_DATA_DIR, the cache or the system's.

    A folder that was named must hold the files; of the other two, one that lacks a file is passed over, but a
    damaged file is an error.  The data set is Fashion-MNIST unless given.
    """
    data = data or DATA_SETS["fashion_mnist"]
    named = _explicit(data_dir, data)
    if named is not None:
        verify(named, data)
        return named.resolve()
    folder = _known(data)
    if folder is None:
        also = f" nor in {system_folder(data)}" if data.debian else ""
        own = "" if data.name == "fashion_mnist" else f" {data.name}"
        raise InputError(
            f"{data.title} is {'neither' if also else 'not'} in {cache_folder(data)}{also}: "
            f"run `ahf data fetch{own}`, or set {ENVIRONMENT} to the folder that holds it"
        )
    return folder


def fetch(
    data_dir: Path | None = None, report: Report = lambda line: None, tried: Sequence[Way] = (),
    data: DataSet | None = None,
) -> Path:  # fmt: skip
    """Return the folder of the data as `locate` does, after getting the files if they are nowhere.

    A folder that was named gets the files that it lacks, from the cache or the system's folder if they are
    there.  `tried` (default: `ways`) are tried in order; InputError names each with its reason when all fail.
    """
    data = data or DATA_SETS["fashion_mnist"]
    named = _explicit(data_dir, data)
    if named is None:
        return _known(data) or _get(cache_folder(data), report, tried, data)
    present = {name: digest for name, digest in data.files.items() if (named / name).is_file()}
    found = (damage(named / name, digest, data.unpacked) for name, digest in present.items())
    if damaged := [line for line in found if line]:
        raise InputError(damaged)
    if len(present) < len(data.files):
        source = _known(data) or _get(named, report, tried, data)
        if source != named.resolve():
            report(f"copying {data.title} from {source}")
            _copy(source, named, data)
    return named.resolve()


def _get(target: Path, report: Report, tried: Sequence[Way], data: DataSet) -> Path:
    """Try the ways in order, into `target` where they can choose, and return the folder with the files."""
    failures = []
    for name, get in tried or ways(data):
        report(f"fetching {data.title}: {name}")
        try:
            folder = get(target, report, data)
            verify(folder, data)
            return folder.resolve()
        except (WayFailedError, InputError, OSError) as error:
            failures.append(f"  {name}: {error}")
            report(f"  failed: {error}")
    raise InputError(
        [
            f"{data.title} is not on this machine, and could not be fetched:",
            *failures,
            f"put {', '.join(data.files)} into {target}, or set {ENVIRONMENT} to the folder that holds them",
        ]
    )


def _copy(source: Path, target: Path, data: DataSet) -> None:
    try:
        with temporary(target) as folder:
            for name in data.files:
                shutil.copyfile(source / name, Path(folder, name))
            move(Path(folder), target, data)
    except OSError as error:
        raise InputError(f"data folder {target} cannot be written: {error.strerror or error}") from None
