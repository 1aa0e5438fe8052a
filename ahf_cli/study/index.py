"""The database of a search in a study's folder: an index of its trials."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ahf_cli.errors import AhfError
from ahf_cli.study.files import set_aside


def whole_index(folder: Path, unusable: str = "") -> Path:
    """Return the database file `study.db` of a study's folder; a damaged or unusable one is set aside before.

    The database is an index of the trial folders, and is made anew from them.

    Args:
        folder: the study's folder.
        unusable: the reason to set a whole database aside as well, such as tables of another version.

    Raises:
        AhfError: another process holds the file.
    """
    file = folder / "study.db"
    if file.exists():
        try:
            with closing(sqlite3.connect(file)) as connection:
                (said,) = connection.execute("PRAGMA quick_check").fetchone()
        except sqlite3.OperationalError as error:  # locked: somebody looks at it
            raise AhfError(f"{file} cannot be opened: {error}") from None
        except sqlite3.DatabaseError as error:
            said = str(error)
        beside = [file.with_name(f"study.db-{end}") for end in ("journal", "wal", "shm")]
        if said != "ok":
            for part in (file, *beside):
                set_aside(part, said)
        elif unusable:
            set_aside(file, unusable)
            for part in beside:  # SQLite would read them with the new file
                part.unlink(missing_ok=True)
    return file.absolute()
