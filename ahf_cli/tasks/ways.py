"""Ways of getting a data set's files: torchvision's download, and Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ahf_cli.tasks.datasets import DataSet
from ahf_cli.tasks.digests import verify

SYSTEM = Path("/usr/share/datasets")
"""where Debian's packages put the files"""
SOCKET_SECONDS, STALL_SECONDS, IMPORT_SECONDS, DOWNLOAD_SECONDS = 6.0, 8.0, 60.0, 3600.0
APT_SECONDS = 300.0

Report = Callable[[str], None]
Get = Callable[[Path, Report, DataSet], Path]
"""(cache folder, report, data set) → folder that now holds the files, which are not verified yet"""
Way = tuple[str, Get]
"""a name for messages, and how"""


class WayFailedError(Exception):
    """One way of fetching did not work; the message says why in a few words."""


def system_folder(data: DataSet) -> Path:
    """Return where Debian's package of a data set puts its files."""
    return SYSTEM / data.folder


def temporary(cache: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a folder inside the cache, its own for every process; from there `os.replace` needs no copy."""
    cache.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache)


def move(source: Path, cache: Path, data: DataSet) -> Path:
    """Move a data set's files into the cache, each whole or not at all, and return that."""
    verify(source, data)
    for name in data.files:
        os.replace(source / name, cache / name)
    return cache


def _last_line(text: str, default: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("E: ") if lines else default


_TORCHVISION = """
import pathlib, socket, sys
socket.setdefaulttimeout(float(sys.argv[2]))
import torchvision.datasets
pathlib.Path(sys.argv[1], "imported").touch()
kind = getattr(torchvision.datasets, sys.argv[3])
if hasattr(kind, "url"):  # CIFAR: the archive alone, which torchvision would unpack and unpickle unasked
    torchvision.datasets.utils.download_url(kind.url, sys.argv[1])
else:
    kind(sys.argv[1], download=True)
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
        if now - changed > allowed:
            raise WayFailedError(f"nothing came for {now - changed:.0f} s, after {now - start:.0f} s")
        if now - start > DOWNLOAD_SECONDS:
            raise WayFailedError(f"it took longer than {DOWNLOAD_SECONDS:.0f} s")


_CLASSES = {
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"), "mnist": ("MNIST", "MNIST/raw"),
    "cifar10": ("CIFAR10", "."), "cifar100": ("CIFAR100", "."),
}  # fmt: skip
"""torchvision's class of a data set, and where that puts the files"""


def _download(folder: Path, kind: str) -> None:
    # A process of its own can be ended: neither name look-ups nor a list of dead addresses obey a time limit.
    command = [sys.executable, "-c", _TORCHVISION, str(folder), str(SOCKET_SECONDS), kind]
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


def from_torchvision(cache: Path, report: Report, data: DataSet) -> Path:
    """Download with torchvision into the cache."""
    if data.name not in _CLASSES:
        raise WayFailedError(f"torchvision has no {data.title}")
    kind, place = _CLASSES[data.name]
    with temporary(cache) as folder:
        _download(Path(folder), kind)
        return move(Path(folder, place), cache, data)


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


def _install(report: Report, data: DataSet) -> Path:
    report(f"  apt-get install {data.debian}")
    update = ""
    try:
        _apt("update")
    except WayFailedError as error:
        update = f" (and update: {error})"  # one dead source of many: the lists may still know the package
    try:
        # --reinstall: the package may be there with a file gone
        _apt("install", "-y", "--reinstall", "--no-install-recommends", data.debian)
    except WayFailedError as error:
        raise WayFailedError(f"{error}{update}") from None
    return system_folder(data)


def _unpack(cache: Path, report: Report, data: DataSet) -> Path:
    report(f"  apt-get download {data.debian}, unpacked into {cache}")
    with temporary(cache) as name:
        folder = Path(name)
        try:
            _apt("download", data.debian, folder=folder)
        except WayFailedError:
            # without root the system's package lists stay as they are, so fetch lists of our own
            (folder / "lists" / "partial").mkdir(parents=True)
            own = (f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder}")
            _apt(*own, "update")
            _apt(*own, "download", data.debian, folder=folder)
        archive = next(folder.glob("*.deb"), None)
        if archive is None:
            raise WayFailedError("apt-get download left no package")
        _run("dpkg-deb", "-x", str(archive), str(folder / "files"))
        return move(folder / "files" / system_folder(data).relative_to("/"), cache, data)


def from_debian(cache: Path, report: Report, data: DataSet) -> Path:
    """Install Debian's package as root, or unpack it into the cache as anybody else."""
    if not data.debian:
        raise WayFailedError(f"Debian has no package of {data.title}")
    if not shutil.which("apt-get"):
        raise WayFailedError("no apt-get on this system")
    return _install(report, data) if os.geteuid() == 0 else _unpack(cache, report, data)


def ways(data: DataSet) -> tuple[Way, ...]:
    """Return the ways of getting a data set, in the order in which they are tried."""
    debian = ((f"Debian package {data.debian}", from_debian),) if data.debian else ()
    return (("torchvision download", from_torchvision), *debian)
