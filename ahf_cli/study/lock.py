"""A folder's lock: one process writes, and any may ask which."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from ahf_cli.errors import AhfError


class FolderLock:
    """An advisory lock on the file `.lock` of a folder, which the system drops when its process ends."""

    def __init__(self, folder: Path):
        self._path = folder / ".lock"
        self._file: IO[str] | None = None

    def acquire(self, what: str) -> None:
        """Take the lock, or raise AhfError that says what is in use, and by which process."""
        self.release()
        file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  # held open until release()
        for attempt in range(5):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 4:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    file.close()
                    raise AhfError(f"{what} is in use by process {holder}") from None
                time.sleep(0.1)  # somebody may only be asking, as `holder` does
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back, where it is held."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def holder(self) -> str | None:
        """Return the process that holds the lock, as "PID on HOST"; None where none does."""
        try:
            with open(self._path, encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read().strip() or "unknown"
        except OSError:
            return None
        return None
