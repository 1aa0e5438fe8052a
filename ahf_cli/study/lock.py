"""A folder's lock: one process writes, and any may ask which."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import IO

from ahf_cli.errors import AhfError, InputError


class FolderLock:
    """An advisory lock on the file `.lock` of a folder, which the system drops when its process ends."""

    def __init__(self, folder: Path):
        self._path = folder / ".lock"
        self._file: IO[str] | None = None

    def acquire(self, what: str) -> None:
        """Take the lock, or raise AhfError that says what is in use, and by which process."""
        self.release()
        file = self._open(os.O_RDWR | os.O_CREAT)
        for attempt in range(5):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 4:
                    file.seek(0)
                    holder = file.read(200).strip() or "unknown"
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
            with self._open(os.O_RDONLY) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read(200).strip() or "unknown"
        except (OSError, InputError):
            return None
        return None

    def _open(self, how: int) -> IO[str]:
        """Open the file itself: a link is not followed, and a pipe is not waited for."""
        try:
            descriptor = os.open(self._path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError:
            if self._path.is_symlink():
                raise InputError(f"{self._path} must be a regular file, and is a link") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InputError(f"{self._path} must be a regular file")
        mode = "r" if how == os.O_RDONLY else "r+"
        return open(descriptor, mode, encoding="utf-8", errors="replace")
