"""Where the index of a search is kept: memory, a SQLite file, or a PostgreSQL database."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError

from ahf_cli.errors import AhfError, InputError

GRACE = 120
"""Seconds without a sign of life after which a running trial counts as lost."""
TURN = "10s"
"""Longest turn of a process that chooses a slot, as PostgreSQL writes it."""
FAILURES = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""Errors of a storage that does not answer."""
_NETWORK = {
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
    "pvfs2", "panfs", "orangefs", "ocfs2", "fuse.sshfs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs",
}  # fmt: skip


@dataclass
class Turn:
    """A process's turn to choose a slot."""

    lost: bool = False
    """it took too long, and another process may have had its turn meanwhile; known when it is over"""


@dataclass(frozen=True)
class Storage:
    """An open storage."""

    backend: BaseStorage
    shared: bool = False
    """several processes use it: PostgreSQL"""
    where: str = "memory"
    """its address without the password"""
    grace: int = GRACE
    engine: Engine | None = None

    @contextmanager
    def turn(self, name: str) -> Iterator[Turn]:
        """Let one process at a time choose a slot, where there are several.

        A process that stops within its turn loses it after `TURN`, and is told so afterwards.
        """
        turn = Turn()
        if not self.shared or self.engine is None:
            yield turn
            return
        try:
            with self.engine.begin() as connection:
                connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{TURN}'"))
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
                    {"name": name},
                )
                yield turn
        except DBAPIError as error:
            if "idle-in-transaction" not in str(error):
                raise
            turn.lost = True

    def close(self) -> None:
        """Close its connections."""
        if self.engine is not None:
            self.engine.dispose()


def in_memory() -> Storage:
    """Return a storage that ends with this process."""
    return Storage(InMemoryStorage())


def grace_period() -> int:
    """Return the seconds of `AHF_GRACE`, or `GRACE`; raises InputError where that is no whole number ≥ 1."""
    text = os.environ.get("AHF_GRACE", str(GRACE))
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 86_400:
        raise InputError(f"AHF_GRACE must be a number of seconds from 1 to 86400, got {text!r}")
    return int(text)


class OtherSchemaError(InputError):
    """The tables of a storage are those of another version of Optuna."""


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file, whatever characters are in its path."""
    return URL.create("sqlite", database=str(file.absolute())).render_as_string()


def open_storage(url: str) -> Storage:
    """Open a storage by its URL.

    Raises:
        OtherSchemaError: another version of Optuna made it.
        InputError: it cannot be opened; the message is one line and holds no password.
    """
    parsed, grace = parse_url(url), grace_period()
    shared = parsed.get_backend_name() == "postgresql"
    options: Mapping[str, Any] = {"connect_args": {"timeout": 60}}
    beat: dict[str, Any] = {}
    if shared:
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
        beat = {"heartbeat_interval": max(1, grace // 4), "grace_period": grace}
    elif parsed.database:
        refuse_network_file_system(Path(parsed.database))
    try:
        with quiet():
            # A URL's braces are a template of Optuna's.
            plain = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
            # Its constructor's own check would leave connections open.
            backend = RDBStorage(plain, dict(options), skip_compatibility_check=True, **beat)
            versions = backend.get_current_version(), backend.get_head_version()
            if versions[0] != versions[1]:
                backend.engine.dispose()
                raise OtherSchemaError(
                    f"storage {safe_url(url)} cannot be used: its tables are of version {versions[0]}, and "
                    f"this version of Optuna has {versions[1]}"
                )
            if not shared:
                event.listen(backend.engine, "connect", _relax)
                backend.engine.dispose()
            cached = optuna.storages.get_storage(backend)
    except ImportError:
        raise InputError("a PostgreSQL storage needs: pip install 'ahf-cli[postgres]'") from None
    except FAILURES as error:
        raise InputError(f"storage {safe_url(url)} cannot be opened: {reason(error)}") from None
    return Storage(cached, shared, safe_url(url), grace, backend.engine)


def _relax(connection: Any, record: object) -> None:
    """Let readers look at a SQLite file while it is written, and spare it the wait for the disk.

    After a power cut it may be damaged; it is an index, and is then made anew.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")


def parse_url(url: str) -> URL:
    """Parse the URL of a storage, or raise InputError that does not repeat it."""
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        raise InputError("storage: must be a URL such as postgresql+psycopg://user@host/database") from None
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise InputError(
            f"storage: must begin with postgresql+psycopg:// or sqlite:///, got {parsed.drivername}://"
        )
    if parsed.drivername == "sqlite" and not parsed.database:
        raise InputError("storage: sqlite:/// must be followed by the path of a file")
    return parsed


def has_password(url: str) -> bool:
    """Tell whether a URL carries a password."""
    parsed = parse_url(url)
    return parsed.password is not None or "password" in parsed.query


def safe_url(url: str) -> str:
    """Return a URL without its password."""
    parsed = parse_url(url)
    return parsed.difference_update_query(["password"]).render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """Return the message of a database's driver in one line."""
    cause: BaseException = error
    while isinstance(cause, optuna.exceptions.StorageInternalError) and cause.__cause__ is not None:
        cause = cause.__cause__
    cause = getattr(cause, "orig", None) or cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


@contextmanager
def answering(storage: Storage) -> Iterator[None]:
    """Turn the errors of a storage that has gone away into one line."""
    try:
        yield
    except FAILURES as error:
        raise AhfError(
            f"storage {storage.where} does not answer: {reason(error)}; the same command goes on from here"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out Optuna's remarks that its heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def refuse_network_file_system(file: Path) -> None:
    """Raise InputError where a SQLite file would lie on a network file system, whose locks do not hold."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return
    kind = file_system(file, mounts)
    if kind in _NETWORK:
        raise InputError(
            f"{file} would be a SQLite database on a network file system ({kind}), where its locks do not "
            "hold: use a PostgreSQL storage (AHF_STORAGE=postgresql+psycopg://…), or a --results folder on a "
            "local disk"
        )


def file_system(file: Path, mounts: str) -> str:
    """Return the type of the file system that a path lies on, given the content of `/proc/mounts`."""
    path, found, kind = str(file.resolve()), "", ""
    for line in mounts.splitlines():
        _, place, name, *_ = [*line.split(" "), "", "", ""]
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)  # a space is \040
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found):
            found, kind = place, name
    return kind


LIMIT = 8_000_000
"""Bytes that one file may have; a longer one stays on the machine that wrote it."""

_TABLE = Table(
    "ahf_trial_files",
    MetaData(),
    Column("study", String(256), primary_key=True),
    Column("trial", Integer, primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)


class TrialFiles:
    """The files of finished trials, by the name of an Optuna study and the id of a trial in it.

    Two processes that were given the same slot have trials of their own: neither overwrites the other.
    """

    def __init__(self, storage: Storage):
        if storage.engine is None:
            raise ValueError("files of trials need a database")
        self._engine = storage.engine
        try:
            _TABLE.create(self._engine, checkfirst=True)
        except (IntegrityError, ProgrammingError):  # another process made it between question and answer
            _TABLE.create(self._engine, checkfirst=True)

    def put(self, study: str, trial: int, files: Mapping[str, bytes]) -> list[str]:
        """Store a trial's files; return the names of those that are too long."""
        small = {name: data for name, data in files.items() if len(data) <= LIMIT}
        rows = [{"study": study, "trial": trial, "name": n, "content": data} for n, data in small.items()]
        if rows:
            with self._engine.begin() as connection:
                connection.execute(insert(_TABLE), rows)
        return [name for name in files if name not in small]

    def get(self, study: str, trial: int) -> dict[str, bytes]:
        """Return a trial's files, none where it left none."""
        wanted = select(_TABLE.c.name, _TABLE.c.content).where(
            _TABLE.c.study == study, _TABLE.c.trial == trial
        )
        with self._engine.connect() as connection:
            return {name: bytes(content) for name, content in connection.execute(wanted)}

    def remove(self, study: str) -> None:
        """Remove the files of a study."""
        with self._engine.begin() as connection:
            connection.execute(delete(_TABLE).where(_TABLE.c.study == study))
