"""Files of finished trials in the database of a shared storage, for machines without a common folder."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Column, Integer, LargeBinary, MetaData, String, Table, delete, insert, select
from sqlalchemy.exc import IntegrityError, ProgrammingError

from ahf_cli.search.storage import Storage

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


class Deposit:
    """The files of finished trials, by the name of an Optuna study and the id of a trial in it.

    Two processes that were given the same slot have trials of their own: neither overwrites the other.
    """

    def __init__(self, storage: Storage):
        if storage.engine is None:
            raise ValueError("a deposit needs a database")
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
