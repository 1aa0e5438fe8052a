"""Where the four Fashion-MNIST files are: looked for, checked against their digests, and fetched."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from platformdirs import user_cache_dir

from ahf_cli.errors import InputError

# Digests of the unpacked content, not of the archives: Debian ships the same images as torchvision, but its
# archives carry no file name and another time in the gzip header, so their own digests differ.
FILES: dict[str, str] = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""file name → SHA-256 of its unpacked content (`zcat FILE | sha256sum`)"""

ENVIRONMENT = "AHF_DATA_DIR"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""where Debian's package puts the files"""
PACKAGE = "dataset-fashion-mnist"
SOCKET_SECONDS, STALL_SECONDS, IMPORT_SECONDS, DOWNLOAD_SECONDS = 6.0, 8.0, 60.0, 900.0
APT_SECONDS = 300.0
SHOWN = 12
"""hex digits of a digest in a message"""

Report = Callable[[str], None]
Way = tuple[str, Callable[[Path, Report], Path]]
"""a name for messages, and a function (cache folder, report) → folder that now holds the files"""


class WayFailedError(Exception):
    """One way of fetching did not work; the message says why in a few words."""


def cache_folder() -> Path:
    """Return the user's cache folder for the data, by the XDG rules."""
    return Path(user_cache_dir("ahf", appauthor=False)) / "fashion-mnist"


def missing(folder: Path) -> list[str]:
    """Return the names of the data files that a folder lacks."""
    return [name for name in FILES if not (folder / name).is_file()]


@lru_cache(maxsize=64)
def _unpacked_digest(path: Path, size: int, modified: int) -> tuple[str, str]:
    # size and time of change are arguments only so that a file that was altered is read again
    digest = hashlib.sha256()
    try:
        with gzip.open(path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error) as error:
        return digest.hexdigest(), f", {str(error).rstrip('.')}"
    return digest.hexdigest(), ""


def _damage(path: Path, expected: str) -> str | None:
    status = path.stat()
    found, broken = _unpacked_digest(path, status.st_size, status.st_mtime_ns)
    if found == expected and not broken:
        return None
    return (
        f"{path} is damaged: SHA-256 of its unpacked content must be {expected[:SHOWN]}…, "
        f"found {found[:SHOWN]}…{broken}; replace or delete it"
    )


def verify(folder: Path) -> None:
    """Check that a folder holds all four files, each with its known content; InputError names the bad."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    if absent := missing(folder):
        raise InputError(
            f"data folder {folder} must hold the four Fashion-MNIST files; no {', '.join(absent)}"
        )
    damaged = [line for name, digest in FILES.items() if (line := _damage(folder / name, digest))]
    if damaged:
        raise InputError(damaged)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file's unpacked content, verified; the same whatever the source."""
    verify(folder)
    return dict(FILES)


def _explicit(data_dir: Path | None) -> Path | None:
    if data_dir is None and os.environ.get(ENVIRONMENT):
        data_dir = Path(os.environ[ENVIRONMENT])
    return data_dir.expanduser() if data_dir is not None else None


def _known() -> Path | None:
    """Return the cache or the system's folder, whichever first has all files; a damaged file is an error."""
    for folder in (cache_folder(), SYSTEM_FOLDER):
        if not missing(folder):
            verify(folder)
            return folder.resolve()
    return None


def locate(data_dir: Path | None = None) -> Path:
    """Return the verified folder of the data: `data_dir`, AHF_DATA_DIR, the cache or the system's.

    A folder that was named must hold the files; of the other two, one that lacks a file is passed over, but a
    damaged file is an error.
    """
    named = _explicit(data_dir)
    if named is not None:
        verify(named)
        return named.resolve()
    folder = _known()
    if folder is None:
        raise InputError(
            f"Fashion-MNIST is neither in {cache_folder()} nor in {SYSTEM_FOLDER}: run `ahf data fetch`, "
            f"or set {ENVIRONMENT} to the folder that holds it"
        )
    return folder


def fetch(data_dir: Path | None = None, report: Report = lambda line: None, ways: Sequence[Way] = ()) -> Path:
    """Return the folder of the data as `locate` does, after getting the files if they are nowhere.

    A folder that was named gets the files that it lacks, from the cache or the system's folder if they are
    there.  `ways` (default: `WAYS`) are tried in order; InputError names each with its reason when all fail.
    """
    named = _explicit(data_dir)
    if named is None:
        return _known() or _get(cache_folder(), report, ways)
    present = [name for name in FILES if (named / name).is_file()]
    if damaged := [line for name in present if (line := _damage(named / name, FILES[name]))]:
        raise InputError(damaged)
    if len(present) < len(FILES):
        source = _known() or _get(named, report, ways)
        if source != named.resolve():
            report(f"copying Fashion-MNIST from {source}")
            _copy(source, named)
    return named.resolve()


def _get(target: Path, report: Report, ways: Sequence[Way]) -> Path:
    """Try the ways in order, into `target` where they can choose, and return the folder with the files."""
    failures = []
    for name, get in ways or WAYS:
        report(f"fetching Fashion-MNIST: {name}")
        try:
            folder = get(target, report)
            verify(folder)
            return folder.resolve()
        except (WayFailedError, InputError, OSError) as error:
            failures.append(f"  {name}: {error}")
            report(f"  failed: {error}")
    raise InputError(
        [
            "Fashion-MNIST is not on this machine, and could not be fetched:",
            *failures,
            f"put {', '.join(FILES)} into {target}, or set {ENVIRONMENT} to the folder that holds them",
        ]
    )


def _copy(source: Path, target: Path) -> None:
    try:
        with _temporary(target) as folder:
            for name in FILES:
                shutil.copyfile(source / name, Path(folder, name))
            _move(Path(folder), target)
    except OSError as error:
        raise InputError(f"data folder {target} cannot be written: {error.strerror or error}") from None


def _temporary(cache: Path) -> tempfile.TemporaryDirectory[str]:
    # inside the cache, so that os.replace stays on one file system; its own for every process
    cache.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache)


def _move(source: Path, cache: Path) -> Path:
    verify(source)
    for name in FILES:
        os.replace(source / name, cache / name)
    return cache


def _last_line(text: str, default: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("E: ") if lines else default


_TORCHVISION = """
import pathlib, socket, sys
socket.setdefaulttimeout(float(sys.argv[2]))
from torchvision.datasets import FashionMNIST
pathlib.Path(sys.argv[1], "imported").touch()
FashionMNIST(sys.argv[1], download=True)
"""


def _grow(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a download into `folder`; raise WayFailedError once nothing has come for STALL_SECONDS."""
    start = changed = time.monotonic()
    size = 0
    while process.poll() is None:
        time.sleep(0.1)
        now, found = time.monotonic(), sum(p.stat().st_size + 1 for p in folder.rglob("*"))
        if found != size:
            size, changed = found, now
        allowed = STALL_SECONDS if (folder / "imported").exists() else IMPORT_SECONDS
        if now - changed > allowed or now - start > DOWNLOAD_SECONDS:
            raise WayFailedError(f"nothing came for {now - changed:.0f} s, after {now - start:.0f} s")


def _download(folder: Path) -> None:
    # A process of its own can be ended: neither name look-ups nor a list of dead addresses obey a time limit.
    command = [sys.executable, "-c", _TORCHVISION, str(folder), str(SOCKET_SECONDS)]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            _grow(process, folder)
        finally:
            process.kill()
        if process.wait():
            log.seek(0)
            raise WayFailedError(
                _last_line(log.read().decode(errors="replace"), f"exit code {process.returncode}")
            )


def from_torchvision(cache: Path, report: Report) -> Path:
    """Download with torchvision into the cache."""
    with _temporary(cache) as folder:
        _download(Path(folder))
        return _move(Path(folder, "FashionMNIST", "raw"), cache)


def _run(*command: str, folder: Path | None = None) -> None:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(
            command, cwd=folder, env=environment, timeout=APT_SECONDS, check=True,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise WayFailedError(f"{command[0]} took longer than {APT_SECONDS:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise WayFailedError(
            f"{command[0]}: {_last_line(error.stderr, f'exit {error.returncode}')}"
        ) from None


def _apt(*arguments: str, folder: Path | None = None) -> None:
    limits = (f"-oAcquire::{key}" for key in ("http::Timeout=8", "https::Timeout=8", "Retries=0"))
    _run("apt-get", "-q", *limits, "-oDPkg::Lock::Timeout=60", *arguments, folder=folder)


def _install(report: Report) -> Path:
    report(f"  apt-get install {PACKAGE}")
    update = ""
    try:
        _apt("update")
    except WayFailedError as error:
        update = f" (and update: {error})"  # one dead source of many: the lists may still know the package
    try:
        # --reinstall: the package may be there with a file gone
        _apt("install", "-y", "--reinstall", "--no-install-recommends", PACKAGE)
    except WayFailedError as error:
        raise WayFailedError(f"{error}{update}") from None
    return SYSTEM_FOLDER


def _unpack(cache: Path, report: Report) -> Path:
    report(f"  apt-get download {PACKAGE}, unpacked into {cache}")
    with _temporary(cache) as name:
        folder = Path(name)
        try:
            _apt("download", PACKAGE, folder=folder)
        except WayFailedError:
            # without root the system's package lists stay as they are, so fetch lists of our own
            (folder / "lists" / "partial").mkdir(parents=True)
            own = (f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder}")
            _apt(*own, "update")
            _apt(*own, "download", PACKAGE, folder=folder)
        archive = next(folder.glob("*.deb"), None)
        if archive is None:
            raise WayFailedError("apt-get download left no package")
        _run("dpkg-deb", "-x", str(archive), str(folder / "files"))
        return _move(folder / "files" / SYSTEM_FOLDER.relative_to("/"), cache)


def from_debian(cache: Path, report: Report) -> Path:
    """Install Debian's package as root, or unpack it into the cache as anybody else."""
    if not shutil.which("apt-get"):
        raise WayFailedError("no apt-get on this system")
    return _install(report) if os.geteuid() == 0 else _unpack(cache, report)


WAYS: tuple[Way, ...] = (
    ("torchvision download", from_torchvision),
    (f"Debian package {PACKAGE}", from_debian),
)
