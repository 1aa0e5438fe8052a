"""Sources of a data set's files: torchvision's download and Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ahf_cli.errors import InputError
from ahf_cli.tasks.datasets import DATA_SETS, DataSet
from ahf_cli.tasks.folder import (
    ENVIRONMENT,
    cache_folder,
    complete_folder,
    named_folder,
    refuse_damaged,
    system_folder,
    verify,
)

SOCKET_SECONDS, STALL_SECONDS, IMPORT_SECONDS, DOWNLOAD_SECONDS = 6.0, 8.0, 60.0, 3600.0
APT_SECONDS = 300.0

Report = Callable[[str], None]
"""function of one progress line"""


class SourceError(Exception):
    """A source gave no files; the message is the reason in a few words."""


@dataclass(frozen=True)
class Source:
    """A named source of files."""

    name: str
    get: Callable[[Path, Report, DataSet], Path]
    """(folder to fill, report, data set) → folder that now holds the files, not yet verified"""


def sources(data: DataSet) -> tuple[Source, ...]:
    """Return the sources of a data set in the order of attempts."""
    torchvision = (Source("torchvision download", from_torchvision),) if data.torchvision else ()
    debian = (Source(f"Debian package {data.debian}", from_debian),) if data.debian else ()
    return (*torchvision, *debian)


def fetch(
    data_dir: Path | None = None, report: Report = lambda line: None, tried: Sequence[Source] = (),
    data: DataSet | None = None,
) -> Path:  # fmt: skip
    """Return the verified folder of a data set; downloads its files if no folder has them.

    A named folder gets the files that it lacks, if possible from the cache or the system's folder.

    Args:
        data_dir: named folder; AHF_DATA_DIR by default, and else the cache.
        report: function that gets the progress lines.
        tried: sources in the order of attempts; `sources(data)` by default.
        data: data set; Fashion-MNIST by default.

    Raises:
        InputError: a file is damaged, a folder cannot be written, or all sources fail; one line for each.
    """
    data = data or DATA_SETS["fashion_mnist"]
    named = named_folder(data_dir, data)
    if named is None:
        return complete_folder(data) or _get(cache_folder(data), report, tried, data)
    present = [name for name in data.files if (named / name).is_file()]
    refuse_damaged(named, data, present)
    if len(present) < len(data.files):
        source = complete_folder(data) or _get(named, report, tried, data)
        if source != named.resolve():
            report(f"copying {data.title} from {source}")
            _copy(source, named, data)
    return named.resolve()


def _get(target: Path, report: Report, tried: Sequence[Source], data: DataSet) -> Path:
    """Try the sources in order, and return the first folder with verified files."""
    failures = []
    for source in tried or sources(data):
        report(f"fetching {data.title}: {source.name}")
        try:
            folder = source.get(target, report, data)
            verify(folder, data)
            return folder.resolve()
        except (SourceError, InputError, OSError) as error:
            failures.append(f"  {source.name}: {error}")
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


def temporary(target: Path) -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder inside the target: `os.replace` moves a file from there without a copy."""
    target.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".fetch-", dir=target)


def move(folder: Path, target: Path, data: DataSet) -> Path:
    """Verify a data set's files, move each of them whole into the target, and return the target."""
    verify(folder, data)
    for name in data.files:
        os.replace(folder / name, target / name)
    return target


_TORCHVISION = """
import pathlib, socket, sys
socket.setdefaulttimeout(float(sys.argv[2]))
import torchvision.datasets
pathlib.Path(sys.argv[1], "imported").touch()
kind = getattr(torchvision.datasets, sys.argv[3])
if hasattr(kind, "url"):  # CIFAR: the class would also unpack and unpickle the archive
    torchvision.datasets.utils.download_url(kind.url, sys.argv[1])
else:
    kind(sys.argv[1], download=True)
"""


def from_torchvision(target: Path, report: Report, data: DataSet) -> Path:
    """Download with torchvision into the target."""
    with temporary(target) as name:
        folder = Path(name)
        _download(folder, data.torchvision)
        raw = folder / data.torchvision / "raw"  # the folder of MNIST and its relatives
        return move(raw if raw.is_dir() else folder, target, data)


def _download(folder: Path, kind: str) -> None:
    # A process can be ended: neither name look-ups nor a list of dead addresses obey a time limit.
    command = [sys.executable, "-c", _TORCHVISION, str(folder), str(SOCKET_SECONDS), kind]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            _wait(process, folder)
        finally:
            process.kill()
        if process.wait():
            log.seek(0)
            output = log.read().decode(errors="replace")
            raise SourceError(_last_line(output, f"exit code {process.returncode}"))


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a download into a folder; raises SourceError if the folder stays unchanged for too long."""
    start = changed = time.monotonic()
    size = 0
    while process.poll() is None:
        time.sleep(0.1)
        now, found = time.monotonic(), sum(p.stat().st_size + 1 for p in folder.rglob("*"))
        if found != size:
            size, changed = found, now
        allowed = STALL_SECONDS if (folder / "imported").exists() else IMPORT_SECONDS
        if now - changed > allowed:
            raise SourceError(f"no data arrived for {now - changed:.0f} s; ended after {now - start:.0f} s")
        if now - start > DOWNLOAD_SECONDS:
            raise SourceError(f"it took longer than {DOWNLOAD_SECONDS:.0f} s")


def _last_line(text: str, default: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("E: ") if lines else default


def from_debian(target: Path, report: Report, data: DataSet) -> Path:
    """Install Debian's package with root's rights, or unpack it into the target without them."""
    if not shutil.which("apt-get"):
        raise SourceError("no apt-get on this system")
    return _install(report, data) if os.geteuid() == 0 else _unpack(target, report, data)


def _install(report: Report, data: DataSet) -> Path:
    report(f"  apt-get install {data.debian}")
    update = ""
    try:
        _apt("update")
    except SourceError as error:
        update = f" (and update: {error})"  # one of many servers: older lists may still name the package
    try:
        # --reinstall: a file of an installed package may be missing.
        _apt("install", "-y", "--reinstall", "--no-install-recommends", data.debian)
    except SourceError as error:
        raise SourceError(f"{error}{update}") from None
    return system_folder(data)


def _unpack(target: Path, report: Report, data: DataSet) -> Path:
    report(f"  apt-get download {data.debian}, unpacked into {target}")
    with temporary(target) as name:
        folder = Path(name)
        try:
            _apt("download", data.debian, folder=folder)
        except SourceError:
            # Without root's rights the system's package lists stay as they are: fetch separate lists.
            (folder / "lists" / "partial").mkdir(parents=True)
            own = (f"-oDir::State::Lists={folder / 'lists'}", f"-oDir::Cache={folder}")
            _apt(*own, "update")
            _apt(*own, "download", data.debian, folder=folder)
        archive = next(folder.glob("*.deb"), None)
        if archive is None:
            raise SourceError("apt-get download left no package")
        _run("dpkg-deb", "-x", str(archive), str(folder / "files"))
        return move(folder / "files" / system_folder(data).relative_to("/"), target, data)


def _run(*command: str, folder: Path | None = None) -> None:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(
            command, cwd=folder, env=environment, timeout=APT_SECONDS, check=True,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SourceError(f"{command[0]} took longer than {APT_SECONDS:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise SourceError(f"{command[0]}: {_last_line(error.stderr, f'exit {error.returncode}')}") from None


def _apt(*arguments: str, folder: Path | None = None) -> None:
    limits = (f"-oAcquire::{key}" for key in ("http::Timeout=8", "https::Timeout=8", "Retries=0"))
    _run("apt-get", "-q", *limits, "-oDPkg::Lock::Timeout=60", *arguments, folder=folder)
