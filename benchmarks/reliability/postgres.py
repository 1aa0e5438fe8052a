"""A temporary PostgreSQL cluster under an unprivileged user."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSWORD = "marked-Pa55word"
"""the password of every such cluster; nothing that `ahf` writes may hold it"""


@dataclass
class Cluster:
    """A running server."""

    folder: Path
    port: int
    password: str
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """The URL of its one database, with the password."""
        return f"postgresql+psycopg://ahf:{self.password}@127.0.0.1:{self.port}/postgres"

    def environment(self) -> dict[str, str]:
        """Return an environment for processes that use it."""
        return {**os.environ, "AHF_STORAGE": self.url}


def programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`, None where there is no PostgreSQL."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return debian[-1].parent if debian else None


@contextmanager
def cluster(durable: bool = False) -> Iterator[Cluster]:
    """Run a server until the context ends; `durable` lets it wait for the disk, as a real one does."""
    bin_folder = programs()
    if bin_folder is None:
        raise FileNotFoundError("no PostgreSQL: install Debian's package postgresql")
    folder = Path(tempfile.mkdtemp(prefix="ahf-postgres-"))
    own: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = _unprivileged()
        os.chown(folder, user.pw_uid, user.pw_gid)
        own |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    (folder / "password").write_text(PASSWORD)
    os.chmod(folder / "password", 0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = folder / "data"
    subprocess.run(
        [bin_folder / "initdb", "-D", data, "-U", "ahf", "-A", "scram-sha-256", "--no-sync", "--no-locale",
         "-E", "UTF8", "--pwfile", folder / "password"], check=True, **own,
    )  # fmt: skip
    settings = [] if durable else ["-c", "fsync=off", "-c", "synchronous_commit=off"]
    process = subprocess.Popen(
        [bin_folder / "postgres", "-D", data, "-p", str(port), "-k", folder,
         "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=16MB", *settings], **own,
    )  # fmt: skip
    try:
        _wait(port, process)
        yield Cluster(folder, port, PASSWORD, process)
    finally:
        process.send_signal(signal.SIGINT)  # whoever is connected is sent away
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LookupError("there is no user postgres or nobody to run the server")


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"postgres ended with code {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError("postgres does not answer")


def database(server: Cluster) -> str:
    """Make a new database on a server, and return its URL with the password."""
    import psycopg

    name = f"t{secrets.token_hex(6)}"
    for _ in range(100):  # it listens a moment before it takes connections
        try:
            plain = server.url.replace("+psycopg", "")
            with psycopg.connect(plain, autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"'.encode())
            break
        except psycopg.OperationalError:
            time.sleep(0.1)
    return server.url.rsplit("/", 1)[0] + f"/{name}"
